"""Rounding with error feedback: the error of one column is made up for by the columns that are still to be rounded.

    minimise Σ ‖(W − Ŵ) x‖² over the inputs x of the layer       H = mean x xᵀ + damping,   H⁻¹ = Uᵀ U, U upper triangular
    for each column j in order:  ŵ_j = round(w_j);  e = (w_j − ŵ_j) / U_jj;  w_k −= e · U_jk for all k > j

This is the method of GPTQ (Frantar et al., arXiv:2210.17323), in its triangular form. Scales of a group are searched (rounding.py) when its
first column is reached, on the values as they are then. Columns feed back within spans of SPAN columns only: that bounds the cubic work and
keeps a matrix H that is estimated from few inputs reliable. Inside, arrays are transposed: [columns, rows], one column is a long row.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from .codes import FLOATS, INTEGERS, nearest_float
from .rounding import Rounded, grouped_rounder, largest_value, num_threads, round_matrix
from .schemes import Format

Array = np.ndarray
SPAN = 1024  # columns
CHUNK_ROWS = 1024  # rounded together: 4 MiB of a span, shared by many short numpy calls
DAMPING = 0.1  # of the mean of H's diagonal
GIANT = 4.0  # times the usual length of an input: longer ones, like those of a first token, count as if they had this length
MIN_HALF = 32  # rows: smaller triangles are inverted whole
LEVELS = (8, 32, 128)  # columns whose errors are fed back together: see _feed_back

Column = Callable[[Array, Array, Array | None], tuple[Array, Array]]  # values, scales, zeros → codes, rounded values


def takes_feedback(fmt: Format) -> bool:
    """Whether it is worth the time: 4 bits. With 8 the error is too small to matter."""
    return fmt.bits == 4 and fmt.rows_per_scale == 1


def round_with_feedback(matrix: Array, fmt: Format, inputs: Array) -> Rounded:
    """`matrix` [N, K] f32; `inputs` [T, K] f32: some inputs of the layer, finite."""
    inputs = _without_giants(inputs)
    importance = np.square(inputs, dtype=np.float64).mean(axis=0).astype(np.float32)
    if not importance.mean() > 0:
        return round_matrix(matrix, fmt)
    importance /= importance.mean()
    num_rows, num_columns = matrix.shape
    codes = np.empty((num_columns, num_rows), np.uint8)
    scales = np.empty((num_columns // fmt.group, num_rows), np.float32)
    zeros = np.empty(scales.shape, np.uint8) if fmt.has_zeros else None
    is_grouped = fmt.group <= SPAN
    if not is_grouped:
        whole = round_matrix(matrix, fmt, importance=importance if fmt.group == num_columns else None)
        scales[...] = whole.scales.T
        if zeros is not None and whole.zeros is not None:
            zeros[...] = whole.zeros.T
    width = _span_len(fmt.group)
    spans = [slice(first, min(first + width, num_columns)) for first in range(0, num_columns, width)]
    with ThreadPoolExecutor(num_threads()) as pool:
        factors = pool.map(lambda columns: _factor(inputs[:, columns]), spans)
        for columns, factor in zip(spans, factors, strict=True):
            span = _Span(fmt, factor, importance[columns])

            def round_rows(start: int, columns: slice = columns, span: _Span = span) -> None:
                rows = slice(start, start + CHUNK_ROWS)
                values = np.ascontiguousarray(matrix[rows, columns].T)
                groups = slice(columns.start // fmt.group, -(-columns.stop // fmt.group))
                own_zeros = None if zeros is None else zeros[groups, rows]
                span.round(values, codes[columns, rows], scales[groups, rows], own_zeros, is_grouped)

            list(pool.map(round_rows, range(0, num_rows, CHUNK_ROWS)))
    by_rows = np.ascontiguousarray
    return Rounded(by_rows(codes.T), by_rows(scales.T), None if zeros is None else by_rows(zeros.T))


def _span_len(group: int) -> int:
    """Columns of a span: whole groups, or a part that divides a group."""
    if group <= SPAN:
        return SPAN // group * group
    return next(width for width in range(SPAN, 0, -1) if group % width == 0)


def _without_giants(inputs: Array) -> Array:
    """The inputs, shortened where a few would outweigh all others: their outputs are as much larger, and so may be their errors."""
    lengths = np.sqrt(np.square(inputs, dtype=np.float64).mean(axis=1))
    limit = GIANT * float(np.median(lengths))
    if limit == 0 or lengths.max() <= limit:
        return inputs
    return inputs * np.minimum(1.0, limit / np.maximum(lengths, limit)).astype(np.float32)[:, None]


def _factor(inputs: Array) -> Array:
    """U [K', K'] f32 of the inputs [T, K'] of a span: with the columns in reverse order H = L Lᵀ, and U is L⁻¹ in reverse."""
    backwards = np.ascontiguousarray(inputs[:, ::-1])
    h = (backwards.T @ backwards).astype(np.float64)
    diagonal = np.einsum("kk->k", h)
    mean = diagonal.mean()
    diagonal += DAMPING * (mean if mean > 0 else 1.0)
    inverse = _inverse_of_lower(np.linalg.cholesky(h))
    return np.ascontiguousarray(inverse[::-1, ::-1], np.float32)


def _inverse_of_lower(lower: Array) -> Array:
    """The inverse of a lower triangle, by halves: [A 0; B C]⁻¹ = [A⁻¹ 0; −C⁻¹ B A⁻¹ C⁻¹]."""
    half = len(lower) // 2
    if half < MIN_HALF:
        return np.tril(np.linalg.inv(lower))
    inverse = np.zeros_like(lower)
    inverse[:half, :half], inverse[half:, half:] = _inverse_of_lower(lower[:half, :half]), _inverse_of_lower(lower[half:, half:])
    inverse[half:, :half] = -(inverse[half:, half:] @ lower[half:, :half]) @ inverse[:half, :half]
    return inverse


class _Span:
    """Neighbouring columns that feed back into each other."""

    def __init__(self, fmt: Format, factor: Array, importance: Array) -> None:
        self._fmt, self._factor, self._importance = fmt, factor, importance
        self._rounder = grouped_rounder(fmt)
        self._column = _float_column(fmt) if fmt.dtype in FLOATS else _integer_column(fmt)

    def round(self, values: Array, codes: Array, scales: Array, zeros: Array | None, finds_scales: bool) -> None:
        """`values` [K', R] are used up; `codes` [K', R]; `scales` and `zeros` [groups, R], found here or given."""
        step, group_len = math.gcd(self._fmt.group, LEVELS[0]), self._fmt.group
        errors = np.empty_like(values)  # over U's diagonal
        for start in range(0, len(values), step):
            stop = min(start + step, len(values))
            group = start // group_len if finds_scales else 0
            if finds_scales and start % group_len == 0:
                self._find_scales(values[start : start + group_len], start, group, scales, zeros)
            own_zeros = None if zeros is None else zeros[group]
            self._round_step(values, codes, errors[start:stop], start, scales[group], own_zeros)
            self._feed_back(values, errors, start, stop)

    def _feed_back(self, values: Array, errors: Array, start: int, stop: int) -> None:
        """From the columns that are done to later ones: near ones after every few columns, far ones in one product for many.

        Behind a block of LEVELS[i] columns the rest of its block of LEVELS[i + 1] is updated; behind one of the last level, all others."""
        level = max((i for i, size in enumerate(LEVELS) if stop % size == 0), default=-1)
        first = stop - LEVELS[level] if level >= 0 else start
        end = len(values)
        if level < len(LEVELS) - 1:
            end = min(end, -(-stop // LEVELS[level + 1]) * LEVELS[level + 1])
        if stop < end:
            values[stop:end] -= self._factor[first:stop, stop:end].T @ errors[first:stop]

    def _find_scales(self, block: Array, start: int, group: int, scales: Array, zeros: Array | None) -> None:
        _, scales[group], found_zeros = self._rounder(block, self._importance[start : start + len(block)], self._fmt, True)
        if zeros is not None and found_zeros is not None:
            zeros[group] = found_zeros

    def _round_step(self, values: Array, codes: Array, errors: Array, start: int, scales: Array, zeros: Array | None) -> None:
        """Rounds the columns from `start`, as many as `errors` [columns, R] has."""
        stop = start + len(errors)
        for j, error in zip(range(start, stop), errors, strict=True):
            codes[j], rounded = self._column(values[j], scales, zeros)
            np.subtract(values[j], rounded, out=error)
            error /= self._factor[j, j]
            if j + 1 < stop:
                values[j + 1 : stop] -= self._factor[j, j + 1 : stop, None] * error


def _integer_column(fmt: Format) -> Column:
    table = INTEGERS[fmt.dtype]

    def column(values: Array, scales: Array, zeros: Array | None) -> tuple[Array, Array]:
        zero = np.float32(table.zero) if zeros is None else zeros.astype(np.float32)
        with np.errstate(divide="ignore", invalid="ignore"):
            steps = np.where(scales == 0, np.float32(0), values / scales)
        q = np.clip(np.rint(steps) + zero, 0, table.max_code)
        return q.astype(np.uint8), (q - zero) * scales

    return column


def _float_column(fmt: Format) -> Column:
    limit = largest_value(fmt)

    def column(values: Array, scales: Array, zeros: Array | None) -> tuple[Array, Array]:
        with np.errstate(divide="ignore", invalid="ignore"):
            scaled = np.where(scales == 0, np.float32(0), values / scales)
        q = nearest_float(fmt.dtype, np.clip(scaled, -limit, limit))
        return q, FLOATS[fmt.dtype][q] * scales

    return column
