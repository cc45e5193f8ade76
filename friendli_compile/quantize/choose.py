"""From a scheme to the format of one matrix: what the scheme leaves open is decided by looking at the values.

dtype pair     `w8a8` may give the weights 7 bits and the activations 8, or the other way round: the smaller sum of squared errors
scale dtype    f16, unless a scale that matters lies outside of what f16 holds well: then f32
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .rounding import BLOCK_ELEMENTS, dequantize, round_matrix
from .schemes import ACT_GROUPS, Format, Scheme

Array = np.ndarray
MAX_F16_SCALE = 60000.0
MIN_F16_SCALE = 2.0**-19  # 32 units of the smallest f16: scales below have a relative error of more than 1.6 %
NEGLIGIBLE = 1e-5  # of the largest value of the matrix: groups so small may lose precision
MAX_SAMPLED_ROWS = 256  # on which errors are compared
NORMAL_PEAK = 3.0  # max|x| / rms of a group of activations, where nothing was observed


@dataclass(frozen=True, slots=True)
class ActivationErrors:
    """Relative squared error of rounding a layer's input to 8 and to 7 bits, as measured on tokens; of a normal input where not."""

    i8: float = (NORMAL_PEAK / 127) ** 2 / 12
    i7: float = (NORMAL_PEAK / 63) ** 2 / 12

    def of(self, act_dtype: str) -> float:
        return {"i8": self.i8, "i7": self.i7}.get(act_dtype, 0.0)


def activation_errors(inputs: Array) -> ActivationErrors:
    """Measured on inputs [T, K] f32, in the groups that weights with one scale per row use."""
    num_columns = inputs.shape[-1]
    group = next((size for size in ACT_GROUPS if num_columns % size == 0), num_columns)
    groups = inputs.reshape(-1, group)
    peak = np.abs(groups).max(axis=1, keepdims=True)
    size = float(np.square(groups, dtype=np.float64).sum())
    if size == 0:
        return ActivationErrors()
    found = []
    for largest in (127, 63):
        scale = np.where(peak > 0, peak / np.float32(largest), np.float32(1))
        found.append(float(np.square(np.rint(groups / scale) * scale - groups, dtype=np.float64).sum()) / size)
    return ActivationErrors(*found)


def choose_format(matrix: Array, scheme: Scheme, activations: ActivationErrors | None = None) -> Format:
    """`matrix` [N, K], or [E, N, K] whose experts share the format. Finite values; `scheme` fits it."""
    formats = scheme.formats(*matrix.shape[-2:])
    fmt = formats[0] if len(formats) == 1 else _best(matrix, formats, activations or ActivationErrors())
    if fmt.scale_dtype == "f16" and not _fits_f16(matrix, fmt):
        return replace(fmt, scale_dtype="f32")
    return fmt


def _best(matrix: Array, formats: tuple[Format, ...], activations: ActivationErrors) -> Format:
    """Errors of weights and activations are independent: their relative squares add up in the output."""
    rows = matrix.reshape(-1, matrix.shape[-1])
    sample = np.ascontiguousarray(rows[np.linspace(0, len(rows) - 1, min(len(rows), MAX_SAMPLED_ROWS)).astype(int)])
    size = float(np.square(sample, dtype=np.float64).sum()) or 1.0
    errors = []
    for fmt in formats:
        difference = dequantize(round_matrix(sample, replace(fmt, scale_dtype="f32")), fmt) - sample
        errors.append(float(np.square(difference, dtype=np.float64).sum()) / size + activations.of(fmt.act_dtype))
    return formats[int(np.argmin(errors))]


def _fits_f16(matrix: Array, fmt: Format) -> bool:
    """Whether f16 holds every scale that matters."""
    rows = matrix.reshape(-1, matrix.shape[-1])
    peaks = []
    for start in range(0, len(rows), step := max(1, BLOCK_ELEMENTS // rows.shape[1])):
        peaks.append(np.abs(rows[start : start + step]).reshape(-1, fmt.group).max(axis=1))
    peak = np.concatenate(peaks)
    largest_code = {4: 7.0, 8: 127.0}[fmt.bits] if fmt.dtype != "i7" else 63.0
    scales = peak / largest_code
    matters = peak > NEGLIGIBLE * peak.max(initial=0.0)
    return bool(scales.max(initial=0.0) <= MAX_F16_SCALE and (scales[matters] >= MIN_F16_SCALE).all())
