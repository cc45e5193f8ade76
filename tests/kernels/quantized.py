"""Quantized matrices for the kernel tests, and docs/quantized-weights.md in numpy.

    w = random_matrix(rng, "i4", dims=(N, K), group=32, scale_dtype="f16")
    y = emulate(x, w, act_dtype="i8", act_group=32)               # bit for bit what the integer kernels give
    view = add_quant_weight(plan, w)                               # in the layout block8

`emulate` uses long double for a fused multiply-add: the product of two f32 is exact in it, and the sum rounds once more only where
64 bits do not suffice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .tiny_plan import TinyPlan, View

E2M1_VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
NUM_CODES = {"i4": 16, "u4": 16, "e2m1": 16, "i7": 128, "i8": 256, "e4m3": 256}
ZEROS = {"i4": 8, "i7": 64, "i8": 128}
QMAX = {"i8": 127, "i7": 63}
NIBBLES = ("i4", "u4", "e2m1")
TINY = 2.0**-119


@dataclass
class QuantMatrix:
    """codes [..., N, K] u8, scales [..., N, K/group] f16, f32 or (e8m0) u8, zeros as scales, u4 only."""

    dtype: str
    scale_dtype: str
    group: int
    codes: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray | None = None
    lane_sum: int | None = None  # see docs/quantized-weights.md

    @property
    def is_per_channel(self) -> bool:
        return self.group == self.codes.shape[-1]

    def numbers(self) -> np.ndarray:
        """code − zero of every weight: f32 [..., N, K]."""
        if self.dtype == "e2m1":
            return E2M1_VALUES[self.codes]
        if self.dtype == "e4m3":
            return e4m3_values()[self.codes]
        zeros = ZEROS[self.dtype] if self.zeros is None else np.repeat(self.zeros.astype(np.float32), self.group, -1)
        return self.codes.astype(np.float32) - zeros

    def scale_values(self) -> np.ndarray:
        if self.scale_dtype == "e8m0":
            return np.ldexp(np.float32(1), self.scales.astype(np.int32) - 127).astype(np.float32)
        return self.scales.astype(np.float32)

    def weights(self) -> np.ndarray:
        return self.numbers() * np.repeat(self.scale_values(), self.group, -1)

    def expert(self, index: int) -> QuantMatrix:
        zeros = None if self.zeros is None else self.zeros[index]
        return QuantMatrix(self.dtype, self.scale_dtype, self.group, self.codes[index], self.scales[index], zeros)


def e4m3_values() -> np.ndarray:
    codes = np.arange(256)
    sign, exponent, mantissa = np.where(codes & 128, -1.0, 1.0), (codes >> 3) & 15, codes & 7
    values = np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10.0))
    return np.where((codes & 127) == 127, np.nan, sign * values).astype(np.float32)


def random_matrix(rng: np.random.Generator, dtype: str, dims: tuple[int, ...], group: int, scale_dtype: str = "f16") -> QuantMatrix:
    codes = rng.integers(0, NUM_CODES[dtype], dims).astype(np.uint8)
    if dtype == "e4m3":
        codes[(codes & 127) == 127] = 0
    scale_dims = (*dims[:-1], dims[-1] // group)
    if scale_dtype == "e8m0":
        scales = rng.integers(118, 126, scale_dims).astype(np.uint8)
    else:
        scales = (rng.random(scale_dims) * 0.1 + 0.001).astype(np.float16 if scale_dtype == "f16" else np.float32)
    zeros = rng.integers(0, 16, scale_dims).astype(np.uint8) if dtype == "u4" else None
    return QuantMatrix(dtype, scale_dtype, group, codes, scales, zeros)


def _in_blocks(array: np.ndarray, fill: int) -> np.ndarray:
    """[..., N, C] to [..., N/8, C, 8]."""
    *lead, num_rows, num_columns = array.shape
    padded = np.full((*lead, -(-num_rows // 8) * 8, num_columns), fill, array.dtype)
    padded[..., :num_rows, :] = array
    return np.ascontiguousarray(padded.reshape(*lead, -1, 8, num_columns).swapaxes(-1, -2))


def pack_block8(w: QuantMatrix) -> np.ndarray:
    """The codes in the layout block8."""
    blocks = _in_blocks(w.codes, NUM_CODES[w.dtype] - 1)  # what the padding holds must not matter
    *lead, num_columns, _ = blocks.shape
    if w.dtype not in NIBBLES:
        return np.ascontiguousarray(blocks.reshape(*lead, num_columns // 4, 4, 8).swapaxes(-1, -2))
    eights = blocks.reshape(*lead, num_columns // 8, 2, 4, 8)
    return np.ascontiguousarray((eights[..., 0, :, :] | eights[..., 1, :, :] << 4).swapaxes(-1, -2))


def add_quant_weight(plan: TinyPlan, w: QuantMatrix) -> View:
    name, dims = f"w{len(plan.weights)}", list(w.codes.shape)
    plan.weights[name] = {"dtype": w.dtype, "layout": "block8", "dims": dims, "group": w.group, "scale_dtype": w.scale_dtype}
    if w.lane_sum is not None:
        plan.weights[name]["lane_sum"] = w.lane_sum
    plan.arrays[name] = pack_block8(w)
    plan.arrays[name + ".scales"] = _in_blocks(w.scales, 0)
    if w.zeros is not None:
        plan.arrays[name + ".zeros"] = _in_blocks(w.zeros, 0)
    return {"space": "weight", "id": name, "dtype": w.dtype, "dims": dims}


def quantize_rows(x: np.ndarray, act_dtype: str, act_group: int) -> tuple[np.ndarray, np.ndarray]:
    """Integers [M, K/act_group, act_group] as int64 and scales [M, K/act_group] f32."""
    groups, qmax = x.reshape(len(x), -1, act_group), np.float32(QMAX[act_dtype])
    with np.errstate(all="ignore"):
        top = np.abs(groups).max(-1)
        is_bad, is_zero = ~np.isfinite(top), top < TINY
        inverse = np.where(is_bad | is_zero, np.float32(0), qmax / np.where(is_zero, np.float32(1), top))
        integers = np.where((is_bad | is_zero)[..., None], np.float32(0), np.rint(groups * inverse[..., None]))
        scales = np.where(is_bad, np.float32(np.nan), np.where(is_zero, np.float32(0), top / qmax))
    return integers.astype(np.int64), scales.astype(np.float32)


def _multiply_add(a: np.ndarray, b: np.ndarray, c: np.ndarray, fused: bool) -> np.ndarray:
    if not fused:
        return a * b + c
    return (a.astype(np.longdouble) * b.astype(np.longdouble) + c.astype(np.longdouble)).astype(np.float32)


def emulate(
    x: np.ndarray, w: QuantMatrix, act_dtype: str, act_group: int, bias: np.ndarray | None = None, fused: bool = True
) -> np.ndarray:
    """y [M, N] f32, in the order of sums of the contract. fused: as AVX2 rounds; else as the scalar reference."""
    integers, x_scales = quantize_rows(x, act_dtype, act_group)
    twice = np.rint(w.numbers() * 2).astype(np.int64).reshape(len(w.codes), -1, act_group)  # e2m1 has halves
    w_scales, y = w.scale_values(), np.zeros((len(x), len(w.codes)), np.float32)
    for g in range(integers.shape[1]):
        total = ((integers[:, g] @ twice[:, g].T) / 2).astype(np.float32)
        scale = x_scales[:, g, None] if w.is_per_channel else w_scales[None, :, g] * x_scales[:, g, None]
        y = _multiply_add(total, np.broadcast_to(scale, y.shape), y, fused)
    if w.is_per_channel:
        y = y * w_scales[None, :, 0]
    return y if bias is None else y + bias
