"""Rounding: codes and scales mean what the format says, searched clipping is never worse, and what cannot be rounded is refused by name."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from friendli_compile.quantize.choose import ActivationErrors, choose_format
from friendli_compile.quantize.codes import FLOATS, INTEGERS, nearest_float, scale_from_storage, scale_to_storage
from friendli_compile.quantize.feedback import DAMPING, round_with_feedback
from friendli_compile.quantize.round_weight import Rounding
from friendli_compile.quantize.rounding import dequantize, round_matrix
from friendli_compile.quantize.schemes import Format, Scheme, parse_scheme

SCHEMES = ["w4a8:g32", "w4a16:g16", "w4a16:g64z", "w7a8:g128", "w7a7:g128", "w8a16:g128", "w8a16:channel", "w8a8:channel", "fp8:channel",
           "fp8:tensor", "fp8:block128", "mxfp4"]  # fmt: skip
HALF_STEPS = {"i4": 7, "u4": 15 / 2, "i7": 63, "i8": 127}  # codes from 0 to the largest value


def scheme_of(text: str) -> Scheme:
    scheme = parse_scheme(text)
    assert scheme is not None
    return scheme


def matrix(num_rows: int = 40, num_columns: int = 256, seed: int = 0) -> np.ndarray:
    """Values with heavy tails, one row and one group of zeros, and rows of very different sizes."""
    rng = np.random.default_rng(seed)
    values = rng.standard_t(5, (num_rows, num_columns)) * np.exp(rng.uniform(-3, 1, (num_rows, 1)))
    values[3] = 0
    values[4, 128:] = 0
    return values.astype(np.float32)


def squared_error(values: np.ndarray, fmt: Format, **options: object) -> float:
    return float(np.square(dequantize(round_matrix(values, fmt, **options), fmt) - values).sum())  # type: ignore[arg-type]


def formats() -> list[Format]:
    return [fmt for text in SCHEMES for fmt in scheme_of(text).formats(40, 256)]


@pytest.mark.parametrize("fmt", formats(), ids=str)
@pytest.mark.parametrize("search", [True, False])
def test_codes_are_in_range_scales_can_be_stored_and_zeros_stay_zero(fmt: Format, search: bool) -> None:
    values = matrix()
    rounded = round_matrix(values, fmt, search=search)
    if fmt.dtype in INTEGERS:
        assert rounded.codes.max() <= INTEGERS[fmt.dtype].max_code
    assert (rounded.zeros is not None) == fmt.has_zeros
    stored = scale_to_storage(rounded.scales, fmt.scale_dtype)
    np.testing.assert_array_equal(scale_from_storage(stored, fmt.scale_dtype), rounded.scales)
    result = dequantize(rounded, fmt)
    assert np.isfinite(result).all() and not result[3].any() and not result[4, 128:].any()


@pytest.mark.parametrize("dtype", ["i4", "u4", "i7", "i8"])
def test_plain_rounding_leaves_at_most_half_a_step(dtype: str) -> None:
    values = matrix()
    fmt = Format(dtype, 32, "f32", "f32", 256)
    error = np.abs(dequantize(round_matrix(values, fmt, search=False), fmt) - values).reshape(40, -1, 32).max(axis=2)
    groups = values.reshape(40, -1, 32)
    reach = np.abs(groups).max(axis=2) if dtype != "u4" else (np.maximum(groups.max(axis=2), 0) - np.minimum(groups.min(axis=2), 0)) / 2
    assert (error <= reach / HALF_STEPS[dtype] * (0.5001 if dtype != "u4" else 1.0)).all(), "u4 rounds its zero point too"


@pytest.mark.parametrize("fmt", formats(), ids=str)
def test_a_searched_scale_is_not_worse_than_the_plain_one(fmt: Format) -> None:
    values = matrix()
    assert squared_error(values, fmt) <= 1.001 * squared_error(values, fmt, search=False)


@pytest.mark.parametrize("scale_dtype", ["f16", "f32"])
@pytest.mark.parametrize("search", [True, False])
def test_codes_of_seven_bits_keep_to_the_sum_of_a_lane(search: bool, scale_dtype: str) -> None:
    rng = np.random.default_rng(5)
    fmt = Format("i7", 128, scale_dtype, "i7", 128)
    usual, flat = rng.standard_normal((256, 1024)), np.where(rng.random((64, 1024)) < 0.5, -1.0, 1.0)
    values = np.concatenate([usual, flat, flat[:2] * 2.0**-19]).astype(np.float32)  # the last rows have the smallest scales of f16
    rounded = round_matrix(values, fmt, search=search)
    numbers = np.abs(rounded.codes.astype(np.int64) - 64).reshape(len(values), -1, 8, 2, 2)
    assert fmt.lane_sum == 520 and numbers.sum(axis=(2, 4)).max() <= fmt.lane_sum
    freely = replace(fmt, act_dtype="i8")
    assert squared_error(usual.astype(np.float32), fmt, search=search) < 1.01 * squared_error(
        usual.astype(np.float32), freely, search=search
    )


def test_four_bits_gain_at_least_a_tenth_from_the_search() -> None:
    for dtype in ("i4", "u4"):
        fmt = Format(dtype, 32, "f16", "f32", 256)
        values = np.random.default_rng(1).standard_normal((64, 256)).astype(np.float32)
        assert squared_error(values, fmt) < (0.75 if dtype == "i4" else 0.97) * squared_error(values, fmt, search=False)


def test_columns_that_matter_more_are_rounded_better() -> None:
    values, fmt = matrix(), Format("i4", 256, "f16", "f32", 256)
    importance = np.ones(256, np.float32)
    importance[::8] = 100
    difference = {h is None: np.square(dequantize(round_matrix(values, fmt, importance=h), fmt) - values) for h in (None, importance)}
    assert difference[False][:, ::8].sum() < 0.8 * difference[True][:, ::8].sum()


def test_rounding_does_not_depend_on_the_rows_beside() -> None:
    values, fmt = matrix(200, 1024, seed=2), Format("i4", 32, "f16", "i8", 32)
    whole, part = round_matrix(values, fmt), round_matrix(values[70:90], fmt)
    np.testing.assert_array_equal(whole.codes[70:90], part.codes)
    np.testing.assert_array_equal(whole.scales[70:90], part.scales)


def test_e4m3_codes_are_those_of_torch() -> None:
    rng = np.random.default_rng(3)
    ties = FLOATS["e4m3"][:126].astype(np.float64)
    middles = ((ties[:-1] + ties[1:]) / 2).astype(np.float32)
    parts = [np.linspace(-448, 448, 30001), rng.standard_normal(30000) * 0.01, middles, -middles]
    values = np.concatenate(parts).astype(np.float32)
    expected = torch.from_numpy(values).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    np.testing.assert_array_equal(nearest_float("e4m3", values), expected)
    np.testing.assert_array_equal(FLOATS["e4m3"], torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy())


def test_e2m1_codes_are_the_nearest_and_ties_go_to_the_even_one() -> None:
    values = np.linspace(-7, 7, 2801).astype(np.float32)
    codes = nearest_float("e2m1", values)
    distance = np.abs(FLOATS["e2m1"][codes] - values)
    np.testing.assert_allclose(distance, np.abs(FLOATS["e2m1"][None, :] - values[:, None]).min(axis=1))
    ties = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0], np.float32)
    assert not (nearest_float("e2m1", ties) & 1).any()


def test_mxfp4_scales_are_those_of_the_specification_without_search() -> None:
    values = matrix()
    rounded = round_matrix(values, Format("e2m1", 32, "e8m0", "i8", 32), search=False)
    peak = np.abs(values.reshape(40, -1, 32)).max(axis=2)
    expected = np.exp2(np.floor(np.log2(np.where(peak > 0, peak, 1))) - 2)
    np.testing.assert_array_equal(rounded.scales[peak > 0], expected[peak > 0])


def test_scales_of_blocks_and_tensors_do_not_reach_over_experts() -> None:
    experts = np.stack([matrix(seed=0), 100 * matrix(seed=1)])
    for fmt in (Format("e4m3", 256, "f32", "e4m3", 256, 40), Format("i4", 32, "f16", "i8", 32)):
        together = Rounding().round("w", experts, fmt)
        for i in range(2):
            np.testing.assert_array_equal(together.codes[i * 40 : (i + 1) * 40], round_matrix(experts[i], fmt).codes)


def correlated_inputs(num_tokens: int = 300, num_columns: int = 256) -> np.ndarray:
    rng = np.random.default_rng(5)
    mixing = rng.standard_normal((num_columns // 4, num_columns)) * np.exp(rng.uniform(-1, 1, num_columns))
    return (rng.standard_normal((num_tokens, num_columns // 4)) @ mixing + rng.standard_normal((num_tokens, num_columns))).astype(
        np.float32
    )


@pytest.mark.parametrize("text", ["w4a8:g32", "w4a16:g64z", "w4a16:channel", "mxfp4"])
def test_feedback_lowers_the_error_of_the_output_on_inputs_that_it_has_not_seen(text: str) -> None:
    (fmt,) = scheme_of(text).formats(40, 256)
    values, inputs = matrix(), correlated_inputs(600)
    seen, unseen = inputs[:300], inputs[300:]
    errors = [np.square((dequantize(rounded, fmt) - values) @ unseen.T).sum()
              for rounded in (round_with_feedback(values, fmt, seen), round_matrix(values, fmt))]  # fmt: skip
    assert errors[0] < 0.75 * errors[1]


def test_feedback_in_blocks_is_that_of_one_column_after_the_other() -> None:
    values, inputs = matrix(num_columns=296).astype(np.float64), correlated_inputs(200, 296).astype(np.float64)
    fmt = Format("i4", 296, "f32", "f32", 296)
    rounded = round_with_feedback(values.astype(np.float32), fmt, inputs.astype(np.float32))
    scales = rounded.scales[:, 0].astype(np.float64)
    h = inputs.T @ inputs
    h += DAMPING * np.diag(h).mean() * np.eye(296)
    factor = np.linalg.cholesky(np.linalg.inv(h)).T
    left, codes = values.copy(), np.zeros(values.shape)
    for j in range(296):
        codes[:, j] = np.clip(np.rint(np.divide(left[:, j], scales, out=np.zeros(40), where=scales != 0)), -8, 7)
        error = (left[:, j] - codes[:, j] * scales) / factor[j, j]
        left[:, j + 1 :] -= np.outer(error, factor[j, j + 1 :])
    assert (rounded.codes - 8.0 == codes).mean() > 0.98, "float32 moves a few ties, and what comes after them"


def test_feedback_works_in_spans_and_chunks_of_rows_and_without_any_input() -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((1100, 1088)).astype(np.float32)
    fmt = Format("i4", 32, "f16", "i8", 32)
    inputs = rng.standard_normal((64, 1088)).astype(np.float32)
    rounded = round_with_feedback(values, fmt, inputs)
    part = round_with_feedback(values[1024:], fmt, inputs)
    assert (rounded.codes[1024:] == part.codes).mean() > 0.999, "sums in another order may move a tie"
    relative = np.square(dequantize(rounded, fmt) - values).mean() / np.square(values).mean()
    assert relative < 0.02
    np.testing.assert_array_equal(round_with_feedback(values, fmt, 0 * inputs).codes, round_matrix(values, fmt).codes)


@pytest.mark.parametrize("group", [32, 96, 1536, 3072])
def test_feedback_keeps_the_scales_of_every_group_whatever_the_span(group: int) -> None:
    rng = np.random.default_rng(0)
    values = (rng.standard_normal((9, 3072)) * np.exp(rng.uniform(-1, 1, (1, 3072 // 96))).repeat(96, axis=1)).astype(np.float32)
    fmt = Format("i4", group, "f16", "f32", 3072)
    rounded = round_with_feedback(values, fmt, rng.standard_normal((64, 3072)).astype(np.float32))
    peak = np.abs(values.reshape(9, -1, group)).max(axis=2)
    assert (np.abs(rounded.scales) < peak / 4).all() and (np.abs(rounded.scales) > peak / 20).all()
    assert np.square(dequantize(rounded, fmt) - values).sum() < 0.06 * np.square(values).sum()


def test_scales_that_f16_cannot_hold_are_stored_as_f32() -> None:
    scheme = scheme_of("w4a8:g32")
    assert choose_format(matrix(), scheme).scale_dtype == "f16"
    assert choose_format(matrix() * np.float32(1e-6), scheme).scale_dtype == "f32"
    assert choose_format(matrix() * np.float32(1e7), scheme).scale_dtype == "f32"
    mixed = matrix()
    mixed[8:] *= np.float32(1e-8)  # negligible beside the others
    assert choose_format(mixed, scheme).scale_dtype == "f16"


def test_w8a8_gives_the_eighth_bit_to_the_side_that_needs_it() -> None:
    scheme = scheme_of("w8a8:channel")
    assert choose_format(matrix(), scheme, ActivationErrors(i8=0.0, i7=0.0)).dtype == "i8"
    assert choose_format(matrix(), scheme, ActivationErrors(i8=0.0, i7=1.0)).dtype == "i7"
    fmt = choose_format(matrix(), scheme)
    assert (fmt.dtype, fmt.act_dtype) in (("i7", "i8"), ("i8", "i7"))
    assert replace(fmt, scale_dtype="f32") == fmt


def test_the_number_of_threads_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    values, fmt = matrix(2100, 64), Format("i4", 32, "f16", "i8", 32)
    inputs = matrix(50, 64, seed=1)
    found = []
    for num_cores in (1, 3):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, n=num_cores: set(range(n)))
        rounding = Rounding(inputs=lambda _: inputs)
        found.append((rounding.round("w", values, fmt), round_matrix(values, fmt)))
    for one, three in zip(*found, strict=True):
        np.testing.assert_array_equal(one.codes, three.codes)
        np.testing.assert_array_equal(one.scales, three.scales)
