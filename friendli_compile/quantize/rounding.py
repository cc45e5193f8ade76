"""Values → codes, scales, zero points: rounds one matrix as its format says.

    matrix [N, K] f32 ─▶ round_matrix(matrix, format, …) ─▶ Rounded ─▶ dequantize(…) ─▶ [N, K] f32

The scale of a group is not simply max|w| / qmax. Candidates around it (which clip the largest values, or use one code more on the negative
side) are tried, for each the scale is fitted by least squares, and the one with the smallest error Σ h·(w − ŵ)² is kept; `h` says how much
a column matters (the second moment of the layer's input), 1 where nothing is known. Work goes in blocks of rows that stay in the cache;
inside of a block elements of a group lie one behind the other in the first axis, so that sums over a group are sums of long rows:

    block [G, M]     M groups, from neighbouring columns, then rows
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from .codes import FLOATS, INTEGERS, MAX_E2M1, MAX_E4M3, nearest_float, storable_scales
from .schemes import Format

Array = np.ndarray
BLOCK_ELEMENTS = 1 << 15  # of one block: 128 KiB of f32, and a few arrays beside it
MAX_THREADS = 8  # between short numpy calls they wait for the interpreter: more gain nothing
TINY = np.float32(2.0**-119)  # smaller maxima count as zero, as for activations

# Multiples of max|w| / qmax (as reciprocals: codes that the largest value is mapped to, relative to the range).
CLIP_4BIT = tuple(float(x) for x in np.round(np.linspace(0.92, 1.46, 10), 3))
CLIP_8BIT = (1.0, 1.02, 1.06)
CLIP_FLOAT = (1.0, 0.875, 0.75, 0.625)
CLIP_ZEROS = tuple(float(x) for x in np.round(np.linspace(0.96, 1.44, 9), 3))


@dataclass(frozen=True, slots=True)
class Rounded:
    """A quantized matrix: codes [N, K] u8 as stored, scales [N, K/G] f32 that the scale dtype can hold, zeros [N, K/G] u8 of u4."""

    codes: Array
    scales: Array
    zeros: Array | None = None


def round_matrix(matrix: Array, fmt: Format, *, importance: Array | None = None, search: bool = True) -> Rounded:
    """`matrix` [N, K] f32, all finite. `importance` [K] ≥ 0: weight of an error in each column, where a group is a whole row.

    Without `search`: plain rounding to nearest."""
    if importance is not None and (fmt.group != matrix.shape[1] or fmt.rows_per_scale > 1):
        raise ValueError(f"importance of columns in groups of {fmt.group} × {fmt.rows_per_scale}, expected whole rows of {matrix.shape[1]}")
    num_rows, num_columns = matrix.shape
    num_groups = num_columns // fmt.group
    codes = np.empty((num_rows, num_columns), np.uint8)
    scales = np.empty((num_rows, num_groups), np.float32)
    zeros = np.empty((num_rows, num_groups), np.uint8) if fmt.has_zeros else None
    step = max(1, BLOCK_ELEMENTS // num_columns)
    if fmt.rows_per_scale > 1:
        step = fmt.rows_per_scale
    rounder = grouped_rounder(fmt)

    def round_rows(start: int) -> None:
        rows = slice(start, start + step)
        block = matrix[rows]
        found = rounder(_grouped(block, fmt), importance, fmt, search)
        _place(found, codes[rows], scales[rows], None if zeros is None else zeros[rows], fmt)

    with ThreadPoolExecutor(num_threads()) as pool:
        for _ in pool.map(round_rows, range(0, num_rows, step)):
            pass
    return Rounded(codes, scales, zeros)


def num_threads() -> int:
    """Threads that round rows: one per core that this process may use. Rows do not depend on how they are shared."""
    return min(MAX_THREADS, len(os.sched_getaffinity(0)))


def dequantize(rounded: Rounded, fmt: Format) -> Array:
    """[N, K] f32: the values that the kernels see."""
    num_rows, num_columns = rounded.codes.shape
    if fmt.dtype in FLOATS:
        values = FLOATS[fmt.dtype][rounded.codes]
    else:
        zero = np.uint8(INTEGERS[fmt.dtype].zero) if rounded.zeros is None else np.repeat(rounded.zeros, fmt.group, axis=1)
        values = rounded.codes.astype(np.float32) - np.asarray(zero, np.float32)
    return (values.reshape(num_rows, -1, fmt.group) * rounded.scales[:, :, None]).reshape(num_rows, num_columns)


# --- blocks


def _grouped(block: Array, fmt: Format) -> Array:
    """[rows, K] → [elements that share a scale, number of scales]."""
    num_rows = len(block)
    if fmt.rows_per_scale > 1:
        tiles = block.reshape(num_rows, -1, fmt.group).transpose(1, 0, 2).reshape(-1, num_rows * fmt.group)
        return np.ascontiguousarray(tiles.T)
    return np.ascontiguousarray(block.reshape(-1, fmt.group).T)


def _place(found: tuple[Array, Array, Array | None], codes: Array, scales: Array, zeros: Array | None, fmt: Format) -> None:
    """Writes grouped codes [G, M], scales [M] and zeros [M] where their rows are."""
    grouped, own_scales, own_zeros = found
    num_rows = len(codes)
    if fmt.rows_per_scale > 1:
        tiles = grouped.T.reshape(-1, num_rows, fmt.group).transpose(1, 0, 2)
        codes[...] = tiles.reshape(codes.shape)
        scales[...] = own_scales[None, :]
        return
    codes[...] = grouped.T.reshape(codes.shape)
    scales[...] = own_scales.reshape(scales.shape)
    if zeros is not None and own_zeros is not None:
        zeros[...] = own_zeros.reshape(zeros.shape)


# --- rounding of a block; all return (codes [G, M] u8, scales [M] f32, zeros [M] u8 or None)

Found = tuple[Array, Array, Array | None]


def grouped_rounder(fmt: Format) -> Callable[[Array, Array | None, Format, bool], Found]:
    """Rounds a block [G, M] whose groups are its columns: (block, importance [G] or None, format, search) → codes, scales, zeros."""
    if fmt.has_zeros:
        return _round_with_zeros
    return _round_floats if fmt.dtype in FLOATS else _round_integers


def _round_integers(w: Array, h: Array | None, fmt: Format, search: bool) -> Found:
    """Symmetric codes. The extreme value is mapped to the negative end where that reaches further (a scale may be negative)."""
    low, high = _range_of(fmt)
    extreme = _extreme(w)
    plain = storable_scales(np.abs(extreme) / high, fmt.scale_dtype)
    codes = _integer_codes(w, plain, low, high)
    if not search:
        codes, scales = _within_lane_sum(w, codes, plain, fmt)
        return (codes - low).astype(np.uint8), scales, None
    factors = CLIP_4BIT if fmt.bits == 4 else CLIP_8BIT
    scales = storable_scales(_fitted_scales(w, h, extreme, low, high, factors), fmt.scale_dtype)
    others = _integer_codes(w, scales, low, high)
    is_better = _error(w, others * scales, h) < _error(w, codes * plain, h)
    codes, scales = np.where(is_better, others, codes), np.where(is_better, scales, plain).astype(np.float32)
    codes, scales = _within_lane_sum(w, codes, scales, fmt)
    return (codes - low).astype(np.uint8), scales, None


def _within_lane_sum(w: Array, codes: Array, scales: Array, fmt: Format) -> tuple[Array, Array]:
    """Codes (without zero) and scales; where the codes of a lane exceed the format's sum, the scale of their group grows until they do not.

    Of normally distributed values about five groups of 128 in a thousand have such a lane."""
    if fmt.lane_sum is None:
        return codes, scales
    for attempt in itertools.count():
        excess = lane_sums(codes).max(axis=(0, 1)) / np.float32(fmt.lane_sum)
        too_large = excess > 1
        if not too_large.any():
            break
        least = np.float32(1 + 0.005 * 4**attempt)  # more each time: the smallest f16 scales grow in large steps only
        grown = storable_scales(scales[too_large] * np.maximum(excess[too_large], least), fmt.scale_dtype)
        scales[too_large] = grown
        codes[:, too_large] = _integer_codes(w[:, too_large], grown, *_range_of(fmt))
    return codes, scales


def _range_of(fmt: Format) -> tuple[np.float32, np.float32]:
    return np.float32(INTEGERS[fmt.dtype].smallest), np.float32(INTEGERS[fmt.dtype].largest)


def lane_sums(codes: Array) -> Array:
    """[G, M] codes without zero, G a multiple of 32 → [G/32, 2, M]: Σ |code| over columns k with k % 4 in {0, 1} and in {2, 3}."""
    num_columns, num_groups = codes.shape
    return np.abs(codes).reshape(num_columns // 32, 8, 2, 2, num_groups).sum(axis=(1, 3))


def _fitted_scales(w: Array, h: Array | None, extreme: Array, low: np.float32, high: np.float32, factors: tuple[float, ...]) -> Array:
    """[M]: of the candidates that map the extreme to `low` times a factor, the least-squares scale of the one that it serves best."""
    weights = np.ones(len(w), np.float32) if h is None else h
    best_gain = np.full(w.shape[1], -1.0, np.float32)
    best_scale = np.zeros(w.shape[1], np.float32)
    unit = low / np.where(extreme == 0, np.float32(1), extreme)  # codes per value
    q, product = np.empty_like(w), np.empty_like(w)
    for factor in factors:
        np.multiply(w, unit * np.float32(factor), out=q)
        np.rint(q, out=q)
        np.clip(q, low, high, out=q)
        along = weights @ np.multiply(q, w, out=product)
        size = weights @ np.multiply(q, q, out=product)
        known = np.where(size > 0, size, 1)
        gain = along * along / known  # by how much the best scale lowers the error
        is_better = gain > best_gain
        best_gain = np.where(is_better, gain, best_gain)
        best_scale = np.where(is_better, along / known, best_scale)
    return np.where(extreme == 0, np.float32(0), best_scale).astype(np.float32)


def _integer_codes(w: Array, scales: Array, low: np.float32, high: np.float32) -> Array:
    """Codes without their zero, as f32."""
    q = np.rint(w * _inverse(scales))
    return np.clip(q, low, high, out=q)


def _round_with_zeros(w: Array, h: Array | None, fmt: Format, search: bool) -> Found:
    """u4: the range from the smallest to the largest value (both sides of 0) in 15 steps, or less of it."""
    low, high = np.minimum(w.min(axis=0), 0), np.maximum(w.max(axis=0), 0)
    width = high - low
    best: Found | None = None
    best_error = np.full(w.shape[1], np.inf, np.float32)
    for factor in CLIP_ZEROS if search else (1.0,):
        scales = storable_scales((width / np.float32(15 * factor)).astype(np.float32), fmt.scale_dtype)
        inverse = _inverse(scales)
        middle = (low + high) * np.float32(0.5) if factor > 1 else low + width * np.float32(0.5)
        zeros = np.clip(np.rint(np.float32(7.5) - middle * inverse), 0, 15)
        codes = np.clip(np.rint(w * inverse) + zeros, 0, 15)
        error = _error(w, (codes - zeros) * scales, h)
        if best is None:
            best, best_error = (codes, scales, zeros), error
            continue
        is_better = error < best_error
        best = tuple(np.where(is_better, new, old) for new, old in zip((codes, scales, zeros), best, strict=True))  # type: ignore[assignment]
        best_error = np.where(is_better, error, best_error)
    assert best is not None and best[2] is not None
    return best[0].astype(np.uint8), best[1].astype(np.float32), best[2].astype(np.uint8)


def _round_floats(w: Array, h: Array | None, fmt: Format, search: bool) -> Found:
    """e4m3: the largest value becomes 448 or a little less. e2m1: a power of two, as the specification says or the next larger."""
    extreme = np.abs(_extreme(w))
    if fmt.dtype == "e2m1":
        plain = storable_scales(extreme, fmt.scale_dtype) * np.float32(2.0**-2)  # 2^(floor(log2 max) − 2): 2 is the exponent of 6
        plain = np.maximum(plain, np.float32(2.0**-126))
        candidates = [plain, plain * np.float32(2)] if search else [plain]
    else:
        base = extreme / np.float32(MAX_E4M3)
        candidates = [storable_scales(base / np.float32(factor), fmt.scale_dtype) for factor in (CLIP_FLOAT if search else (1.0,))]
    values = FLOATS[fmt.dtype]
    best_codes, best_scale = None, candidates[0]
    best_error = np.full(w.shape[1], np.inf, np.float32)
    for scales in candidates:
        scaled = np.clip(w * _inverse(scales), -largest_value(fmt), largest_value(fmt))
        codes = nearest_float(fmt.dtype, scaled)
        error = _error(w, values[codes] * scales, h)
        is_better = error < best_error
        best_codes = codes if best_codes is None else np.where(is_better, codes, best_codes)
        best_scale = np.where(is_better, scales, best_scale)
        best_error = np.where(is_better, error, best_error)
    assert best_codes is not None
    return best_codes, best_scale.astype(np.float32), None


def largest_value(fmt: Format) -> np.float32:
    return np.float32(MAX_E4M3 if fmt.dtype == "e4m3" else MAX_E2M1)


def _extreme(w: Array) -> Array:
    """[M]: the value of the largest magnitude of each group, with its sign; 0 where all are negligible."""
    low, high = w.min(axis=0), w.max(axis=0)
    extreme = np.where(-low > high, low, high)
    return np.where(np.abs(extreme) < TINY, np.float32(0), extreme)


def _inverse(scales: Array) -> Array:
    """1 / scale; 0 where the scale is 0."""
    return np.where(scales == 0, np.float32(0), np.float32(1) / np.where(scales == 0, np.float32(1), scales)).astype(np.float32)


def _error(w: Array, rounded: Array, h: Array | None) -> Array:
    """[M]: Σ h·(w − ŵ)² of each group."""
    difference = w - rounded
    weights = np.ones(len(w), np.float32) if h is None else h
    return weights @ np.multiply(difference, difference, out=difference)
