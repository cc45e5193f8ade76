"""Weight layouts: what is packed can be unpacked, lies where the kernels look, and is rounded as bf16 must be."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from friendli_compile.artifact.layouts import from_bf16, pack, round_to_bf16, to_bf16, unpack
from friendli_compile.ir.builder import GraphBuilder
from friendli_compile.plan.expression import expression_of
from friendli_compile.plan.model import WeightSpec


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
