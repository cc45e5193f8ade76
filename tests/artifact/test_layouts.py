"""Weight layouts: what is packed can be unpacked, lies where the kernels look, and is rounded as bf16 must be."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from friendli_compile.artifact.layouts import (
    from_bf16,
    from_bytes,
    pack,
    pack_quantized,
    round_to_bf16,
    to_bf16,
    unpack,
    unpack_quantized,
)
from friendli_compile.ir.builder import GraphBuilder
from friendli_compile.plan.expression import expression_of
from friendli_compile.plan.model import WeightSpec
from friendli_compile.quantize.round_weight import Rounding
from friendli_compile.quantize.rounding import Rounded, dequantize
from friendli_compile.quantize.schemes import parse_scheme


def spec_of(dims: tuple[int, ...], dtype: str, layout: str) -> WeightSpec:
    value = GraphBuilder().param("w", dims)
    return WeightSpec("w", dtype, layout, dims, expression_of(value, {}, {}))


@pytest.mark.parametrize("dims", [(16, 4), (5, 3), (33, 7), (3, 20, 5)])
@pytest.mark.parametrize("layout", ["panel16", "row_major"])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_unpack_is_the_inverse_of_pack(dims: tuple[int, ...], layout: str, dtype: str) -> None:
    array = round_to_bf16(np.random.default_rng(0).standard_normal(dims).astype(np.float32))
    spec = spec_of(dims, dtype, layout)
    packed = pack(array, spec)
    assert packed.shape == spec.packed_dims and packed.nbytes == spec.num_bytes
    np.testing.assert_array_equal(unpack(packed, spec), array)


def test_a_float32_panel_holds_sixteen_rows_side_by_side() -> None:
    array = np.arange(20 * 3, dtype=np.float32).reshape(20, 3)
    packed = pack(array, spec_of((20, 3), "f32", "panel16"))
    assert packed[1, 2, 3] == array[16 + 3, 2] and packed[1, 2, 4] == 0


def test_a_bf16_lane_holds_row_i_in_its_low_half_and_row_i_plus_8_in_its_high_half() -> None:
    array = round_to_bf16(np.random.default_rng(1).standard_normal((32, 5)).astype(np.float32))
    lanes = pack(array, spec_of((32, 5), "bf16", "panel16")).reshape(2, 5, 16).view(np.uint32)
    low, high = (lanes << 16).view(np.float32), (lanes & 0xFFFF0000).view(np.float32)
    assert (low[1, 3, 2], high[1, 3, 2]) == (array[16 + 2, 3], array[16 + 8 + 2, 3])


def test_bf16_is_rounded_to_nearest_with_ties_to_even() -> None:
    bits = np.random.default_rng(2).integers(0, 2**32, 20_000, dtype=np.uint64).astype(np.uint32)
    ties = (np.arange(2000, dtype=np.uint32) << 16) + 0x3F800000 + 0x8000
    values = np.concatenate([bits, ties]).view(np.float32)
    values = values[np.isfinite(values)]
    expected = torch.from_numpy(values).to(torch.bfloat16).view(torch.uint16).numpy()
    np.testing.assert_array_equal(to_bf16(values), expected)


def test_nan_and_infinity_survive_rounding() -> None:
    special = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0], np.float32)
    np.testing.assert_array_equal(from_bf16(to_bf16(special)), special)


QUANTIZED = ["w4a8:g32", "w4a16:g16z", "w7a8:g64", "w8a16:channel", "fp8:channel", "mxfp4"]


def quantized_spec(dims: tuple[int, ...], text: str) -> WeightSpec:
    scheme = parse_scheme(text)
    assert scheme is not None
    (fmt,) = scheme.formats(*dims[-2:])
    value = GraphBuilder().param("w", dims)
    return WeightSpec("w", fmt.dtype, "block8", dims, expression_of(value, {}, {}), fmt)


@pytest.mark.parametrize("dims", [(16, 64), (5, 64), (33, 192), (3, 20, 64)])
@pytest.mark.parametrize("text", QUANTIZED)
def test_what_is_packed_into_blocks_can_be_unpacked(dims: tuple[int, ...], text: str) -> None:
    spec = quantized_spec(dims, text)
    assert spec.format is not None
    array = np.random.default_rng(0).standard_normal(dims).astype(np.float32)
    rounded = Rounding().round("w", array, spec.format)
    packed = pack_quantized(rounded, spec)
    assert [part.shape for part in packed] == [tensor.dims for tensor in spec.tensors]
    assert sum(part.nbytes for part in packed) == spec.num_bytes
    tensors = {t.name: from_bytes(part.reshape(-1).view(np.uint8), t.dtype) for t, part in zip(spec.tensors, packed, strict=True)}
    np.testing.assert_array_equal(unpack_quantized(tensors, spec), dequantize(rounded, spec.format).reshape(dims))


def test_a_lane_of_8_bits_holds_4_neighbouring_columns_of_a_row() -> None:
    spec = quantized_spec((2, 20, 64), "w8a16:channel")
    codes = np.arange(2 * 20 * 64, dtype=np.uint8).reshape(40, 64)
    stored, scales = pack_quantized(Rounded(codes, np.arange(40, dtype=np.float32)[:, None]), spec)
    assert stored[1, 2, 5, 3, 1] == codes[20 + 8 * 2 + 3, 4 * 5 + 1]
    assert scales[1, 1, 0, 6] == 20 + 8 + 6 and scales[1, 2, 0, 4] == 0, "rows that pad a block have a scale of 0"


def test_a_lane_of_4_bits_holds_8_columns_the_first_four_in_its_low_nibbles() -> None:
    spec = quantized_spec((16, 64), "w4a16:g16z")
    codes = np.random.default_rng(0).integers(0, 16, (16, 64)).astype(np.uint8)
    groups = np.arange(64, dtype=np.float32).reshape(16, 4)
    stored, scales, zeros = pack_quantized(Rounded(codes, groups, (groups % 16).astype(np.uint8)), spec)
    lane = stored[1, 3, 2]  # row 10, columns 24 … 31
    np.testing.assert_array_equal(lane & 15, codes[10, 24:28])
    np.testing.assert_array_equal(lane >> 4, codes[10, 28:32])
    assert (scales[1, 3, 2], zeros[1, 3, 2]) == (groups[10, 3], groups[10, 3] % 16)
