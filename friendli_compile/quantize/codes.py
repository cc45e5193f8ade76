"""Codes and values of quantized weights: what a stored code means, and which code is nearest to a value (docs/quantized-weights.md).

    integers   value = code − zero        i4: 0…15 − 8   u4: 0…15 − zero point   i7: 0…127 − 64   i8: 0…255 − 128
    floats     value = table[code]        e4m3: 256 codes, two of them NaN, never written   e2m1: 16 codes

Rounding is to nearest; ties go to even for integers, and to the even code for floats. Values beyond the range saturate. Sources: OCP 8-bit
floating point specification 1.0 (e4m3), OCP microscaling formats specification 1.0 (e2m1, e8m0).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Array = np.ndarray
E8M0_BIAS = 127
MAX_E4M3, MAX_E2M1 = 448.0, 6.0


@dataclass(frozen=True, slots=True)
class IntegerCodes:
    """Codes 0…`max_code`; `zero` is the code of 0 (of u4: where no zero points are given)."""

    max_code: int
    zero: int

    @property
    def largest(self) -> float:
        """The largest magnitude that values have on both sides."""
        return float(self.max_code - self.zero)

    @property
    def smallest(self) -> float:
        """The most negative value."""
        return float(-self.zero)


INTEGERS = {"i4": IntegerCodes(15, 8), "u4": IntegerCodes(15, 8), "i7": IntegerCodes(127, 64), "i8": IntegerCodes(255, 128)}


def e4m3_values() -> Array:
    """[256] f32: the value of every code; NaN for 0x7f and 0xff."""
    codes = np.arange(256)
    exponent, mantissa = codes >> 3 & 15, codes & 7
    magnitude = np.where(exponent == 0, mantissa / 512.0, (1 + mantissa / 8.0) * np.exp2(exponent - 7.0))
    values = np.where(codes >= 128, -magnitude, magnitude)
    values[codes & 127 == 127] = np.nan
    return values.astype(np.float32)


def e2m1_values() -> Array:
    """[16] f32: the value of every code."""
    positive = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
    return np.concatenate([positive, -positive])


FLOATS = {"e4m3": e4m3_values(), "e2m1": e2m1_values()}


def nearest_e4m3(values: Array) -> Array:
    """f32 → codes (u8). Saturates at ±448, keeps the sign of zero; the caller has excluded NaN."""
    magnitude = np.minimum(np.abs(values), np.float32(MAX_E4M3))
    bits = magnitude.view(np.uint32)
    # normal: the 3 upper mantissa bits, rounded to nearest even by adding half of the last kept unit (and the kept bit)
    normal = (bits + 0x7FFFF + (bits >> 20 & 1) >> 20) - ((127 - 7) << 3)
    subnormal = np.rint(magnitude * np.float32(512)).astype(np.uint32)  # multiples of 2^-9; 8 of them are the first normal
    codes = np.where(magnitude < np.float32(2**-6), subnormal, normal).astype(np.uint8)
    return codes | (np.signbit(values).astype(np.uint8) << 7)


E2M1_BOUNDS = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0], np.float32)  # between neighbours; the tie belongs to the even code


def nearest_e2m1(values: Array) -> Array:
    """f32 → codes (u8), saturating at ±6."""
    magnitude = np.abs(values)
    codes = np.zeros(values.shape, np.uint8)
    for number, bound in enumerate(E2M1_BOUNDS):  # code `number` is below the bound; ties go up where the next code is even
        codes += magnitude >= bound if number % 2 else magnitude > bound
    return codes | (np.signbit(values).astype(np.uint8) << 3)


def nearest_float(dtype: str, values: Array) -> Array:
    """Codes (u8) of f32 values in a float format."""
    return nearest_e4m3(values) if dtype == "e4m3" else nearest_e2m1(values)


def scale_from_storage(stored: Array, scale_dtype: str) -> Array:
    """Scales as the weight files have them → f32. e8m0 is a byte e: 2^(e − 127)."""
    if scale_dtype == "e8m0":
        return np.ldexp(np.float32(1), stored.astype(np.int32) - E8M0_BIAS).astype(np.float32)
    return stored.astype(np.float32)


def scale_to_storage(scales: Array, scale_dtype: str) -> Array:
    """f32 scales that `storable_scales` has made representable → as the weight files have them."""
    if scale_dtype == "e8m0":
        return (np.frexp(scales)[1] - 1 + E8M0_BIAS).astype(np.uint8)
    return scales.astype(np.float16 if scale_dtype == "f16" else np.float32)


def storable_scales(scales: Array, scale_dtype: str) -> Array:
    """The nearest f32 scales that `scale_dtype` can hold; of e8m0 the next smaller power of two, at least 2^-127."""
    if scale_dtype == "e8m0":
        exponent = np.where(scales > 0, np.frexp(scales)[1] - 1, -E8M0_BIAS)
        return np.ldexp(np.float32(1), np.clip(exponent, -E8M0_BIAS, 127)).astype(np.float32)
    if scale_dtype == "f16":
        return scales.astype(np.float16).astype(np.float32)
    return scales.astype(np.float32)
