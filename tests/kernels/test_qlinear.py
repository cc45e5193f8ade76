"""nn.linear and moe.experts with quantized weights and integer activations: the bits of docs/quantized-weights.md, for any rows and threads."""

import numpy as np
import pytest
from friendli_runtime import _core

from .quantized import QuantMatrix, add_quant_weight, emulate, random_matrix
from .test_linear import experts_reference
from .tiny_plan import TinyPlan, View, forward

ISAS = ["scalar", "avx2"]
PAIRS = [("i4", "i8"), ("u4", "i8"), ("e2m1", "i8"), ("i7", "i8"), ("i8", "i7"), ("i7", "i7")]
SCALES = {"i4": "f16", "u4": "f16", "e2m1": "e8m0", "i7": "f16", "i8": "f32"}


def random_rows(rng: np.random.Generator, num_rows: int, K: int) -> np.ndarray:
    x = rng.standard_normal((num_rows, K)) * np.exp(rng.standard_normal((num_rows, 1)))
    return x.astype(np.float32)


def qlinear_plan(x: np.ndarray, w: QuantMatrix, act_dtype: str, act_group: int, bias: np.ndarray | None = None) -> tuple[TinyPlan, View]:
    plan = TinyPlan(max_num_tokens=max(64, len(x)))
    y = plan.buffer(["num_tokens", len(w.codes)])
    inputs = [plan.per_token(x), add_quant_weight(plan, w), None if bias is None else plan.weight(bias)]
    plan.call("nn.linear", inputs, [y], {"act_dtype": act_dtype, "act_group": act_group})
    return plan, y


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("dtype", "act_dtype"), PAIRS)
@pytest.mark.parametrize(
    ("num_rows", "N", "K", "group", "act_group"),
    [
        (1, 5, 32, 32, 32),
        (2, 70, 96, 32, 32),
        (3, 24, 192, 96, 96),
        (5, 131, 256, 64, 64),
        (9, 40, 256, 256, 32),  # per channel, finer activations
        (17, 33, 384, 384, 384),  # one scale per row on both sides
        (40, 100, 512, 128, 128),
    ],
)
def test_linear_of_integers_has_the_bits_of_the_contract(
    num_rows: int, N: int, K: int, group: int, act_group: int, dtype: str, act_dtype: str, isa: str
) -> None:
    rng = np.random.default_rng(num_rows)
    x, w = random_rows(rng, num_rows, K), random_matrix(rng, dtype, (N, K), group, SCALES[dtype])
    bias = rng.standard_normal(N).astype(np.float32)
    plan, y = qlinear_plan(x, w, act_dtype, act_group, bias)
    expected = emulate(x, w, act_dtype, act_group, bias, fused=isa == "avx2")
    np.testing.assert_array_equal(plan.run(y, num_rows, isa=isa, num_threads=2), expected)


@pytest.mark.parametrize("dtype", ["i4", "u4", "e2m1", "i7", "i8"])
@pytest.mark.parametrize("scale_dtype", ["f16", "f32", "e8m0"])
@pytest.mark.parametrize("group", [32, 128])
def test_every_dtype_takes_every_dtype_of_scales(group: int, scale_dtype: str, dtype: str) -> None:
    rng = np.random.default_rng(1)
    x, w = random_rows(rng, 8, 128), random_matrix(rng, dtype, (20, 128), group, scale_dtype)
    if scale_dtype == "e8m0":
        w.scales[0, 0] = 0  # 2^-127
    act_dtype = "i7" if dtype == "i8" else "i8"
    plan, y = qlinear_plan(x, w, act_dtype, group)
    for isa in ISAS:
        np.testing.assert_array_equal(plan.run(y, 8, isa=isa), emulate(x, w, act_dtype, group, fused=isa == "avx2"))


@pytest.mark.parametrize(("dtype", "act_dtype"), PAIRS)
@pytest.mark.parametrize("group", [32, 128])
def test_an_output_has_the_same_bits_for_any_number_of_rows_and_threads(group: int, dtype: str, act_dtype: str) -> None:
    rng = np.random.default_rng(2)
    x, w = random_rows(rng, 40, 256), random_matrix(rng, dtype, (300, 256), group, SCALES[dtype])
    plan, y = qlinear_plan(x, w, act_dtype, group)
    expected, finished = emulate(x, w, act_dtype, group), plan.finish(y)
    for num_threads in (1, 2, 3):
        executor = plan.bind(finished, num_threads=num_threads)
        for num_rows in range(1, 41) if num_threads == 2 else (1, 2, 4, 7, 16, 40):
            part = forward(executor, [num_rows], tokens=np.arange(40 - num_rows, 40))[:, :300]
            np.testing.assert_array_equal(part, expected[40 - num_rows :], err_msg=f"{num_threads} threads, {num_rows} rows")


@pytest.mark.parametrize(("dtype", "act_dtype"), [("i4", "i8"), ("i7", "i8")])
@pytest.mark.parametrize(("num_rows", "K"), [(300, 256), (13, 4608)])
def test_blocks_of_rows_and_of_columns_meet_without_a_seam(num_rows: int, K: int, dtype: str, act_dtype: str) -> None:
    rng = np.random.default_rng(3)
    x, w = random_rows(rng, num_rows, K), random_matrix(rng, dtype, (21, K), 64, "f16")
    plan, y = qlinear_plan(x, w, act_dtype, 64)
    out = plan.run(y, num_rows, max_num_tokens=num_rows, max_num_logits=num_rows)
    np.testing.assert_array_equal(out, emulate(x, w, act_dtype, 64))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("dtype", "act_dtype"), PAIRS)
@pytest.mark.parametrize("num_rows", [1, 2, 4, 6])
def test_no_sum_of_extreme_codes_and_activations_overflows(num_rows: int, dtype: str, act_dtype: str, isa: str) -> None:
    K, group = 256, 128
    top = {"i4": 15, "u4": 15, "e2m1": 7, "i7": 127, "i8": 255}[dtype]
    low = {"e2m1": 15}.get(dtype, 0)
    signs = np.array([[1.0] * K, [-1.0] * K, [1.0, -1.0] * (K // 2), [1.0, 1.0, -1.0, -1.0] * (K // 4)], np.float32)
    codes = np.concatenate([np.where(signs > 0, top, low), np.full((2, K), top), np.full((2, K), low)]).astype(np.uint8)
    zeros = np.repeat(np.array([[0], [15]] * (len(codes) // 2)), K // group, 1).astype(np.uint8) if dtype == "u4" else None
    scale_dtype = "f32"
    w = QuantMatrix(dtype, scale_dtype, group, codes, np.ones((len(codes), K // group), np.float32), zeros)
    x = np.concatenate([signs, signs[:2] * 3])[:num_rows]
    for rows in (x, -x):  # all activations at the extremes of their range
        plan, y = qlinear_plan(rows, w, act_dtype, group)
        expected = rows.astype(np.float64) @ w.numbers().T.astype(np.float64)
        np.testing.assert_allclose(plan.run(y, num_rows, isa=isa), expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("num_rows", [1, 2, 5, 12])
def test_a_row_with_a_nan_or_an_infinity_is_nan_and_the_others_are_not(num_rows: int, isa: str) -> None:
    rng = np.random.default_rng(5)
    x, w = random_rows(rng, num_rows, 128), random_matrix(rng, "i4", (24, 128), 32)
    bad = num_rows // 2
    for value in (np.nan, np.inf, -np.inf):
        x[bad, 77] = value
        plan, y = qlinear_plan(x, w, "i8", 32)
        out = plan.run(y, num_rows, isa=isa)
        assert np.isnan(out[bad]).all()
        np.testing.assert_array_equal(out, emulate(x, w, "i8", 32, fused=isa == "avx2"))


@pytest.mark.parametrize("isa", ISAS)
def test_groups_of_zeros_and_of_tiny_values_add_nothing(isa: str) -> None:
    rng = np.random.default_rng(6)
    x, w = random_rows(rng, 4, 128), random_matrix(rng, "i7", (9, 128), 32)
    x[0], x[1, :64], x[2, 32:96] = 0.0, 1e-36, 0.0
    x[3] *= np.float32(2.0**-118) / np.abs(x[3]).max()
    plan, y = qlinear_plan(x, w, "i8", 32)
    out = plan.run(y, 4, isa=isa)
    assert (out[0] == 0).all()
    np.testing.assert_array_equal(out, emulate(x, w, "i8", 32, fused=isa == "avx2"))


def test_scalar_and_avx2_agree_to_rounding() -> None:
    rng = np.random.default_rng(7)
    x, w = random_rows(rng, 7, 1024), random_matrix(rng, "u4", (50, 1024), 32)
    plan, y = qlinear_plan(x, w, "i8", 32)
    finished = plan.finish(y)
    scalar, avx2 = (forward(plan.bind(finished, isa=isa), [7])[:, :50] for isa in ISAS)
    np.testing.assert_allclose(avx2, scalar, rtol=1e-5, atol=1e-5 * np.abs(scalar).max())


@pytest.mark.parametrize("act_dtype", ["i8", "e4m3"])
def test_activations_may_be_left_as_they_are_at_binding(act_dtype: str) -> None:
    rng = np.random.default_rng(8)
    x, w = random_rows(rng, 7, 64), random_matrix(rng, "i4", (30, 64), 32)
    plan, y = qlinear_plan(x, w, act_dtype, 32 if act_dtype == "i8" else 64)
    exact = x.astype(np.float64) @ w.weights().astype(np.float64).T
    finished = plan.finish(y)
    as_they_are = forward(plan.bind(finished, quantize_activations=False), [7])[:, :30]
    np.testing.assert_allclose(as_they_are, exact, rtol=1e-5, atol=1e-5)
    rounded = forward(plan.bind(finished), [7])[:, :30]
    assert np.abs(rounded - exact).max() > 1e-3
