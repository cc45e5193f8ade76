"""nn.linear with quantized weights and float activations, embeddings of quantized tables: the bits of docs/quantized-weights.md."""

import numpy as np
import pytest

from .quantized import TINY, QuantMatrix, add_quant_weight, e4m3_values, random_matrix
from .tiny_plan import TinyPlan, View, forward

ISAS = ["scalar", "avx2"]
DTYPES = ["i4", "u4", "e2m1", "i7", "i8", "e4m3"]
SCALES = ["f16", "f32", "e8m0"]


def random_rows(num_rows: int, K: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((num_rows, K)).astype(np.float32)


def float_plan(x: np.ndarray, w: QuantMatrix, bias: np.ndarray | None = None, act_dtype: str = "f32") -> tuple[TinyPlan, View]:
    plan = TinyPlan(max_num_tokens=max(64, len(x)))
    y = plan.buffer(["num_tokens", len(w.codes)])
    attrs = {"act_dtype": act_dtype} | ({"act_group": x.shape[1]} if act_dtype == "e4m3" else {})
    plan.call("nn.linear", [plan.per_token(x), add_quant_weight(plan, w), None if bias is None else plan.weight(bias)], [y], attrs)
    return plan, y


def chain(x: np.ndarray, w: np.ndarray, bias: np.ndarray | None, fused: bool) -> np.ndarray:
    """One chain of multiply-adds over k ascending, then the bias: f32 [M, N]."""
    y = np.zeros((len(x), len(w)), np.float32)
    for k in range(x.shape[1]):
        a, b = x[:, k, None], w[None, :, k]
        y = (a.astype(np.longdouble) * b.astype(np.longdouble) + y).astype(np.float32) if fused else a * b + y
    return y if bias is None else y + bias


def nearest_e4m3(x: np.ndarray) -> np.ndarray:
    """One scale per row; ties to even, which is the even code."""
    top = np.abs(x).max(-1, keepdims=True)
    values = e4m3_values()[:127].astype(np.float64)  # ascending; code i is at i
    q = np.where(top < TINY, 0, x * (np.float32(448) / np.where(top < TINY, np.float32(1), top)).astype(np.float32)).astype(np.float64)
    above = np.clip(np.searchsorted(values, np.abs(q)), 1, 126)
    below = above - 1
    to_above, to_below = values[above] - np.abs(q), np.abs(q) - values[below]
    code = np.where((to_above < to_below) | ((to_above == to_below) & (above % 2 == 0)), above, below)
    scale = np.where(top < TINY, 0, top / np.float32(448)).astype(np.float32)
    return (np.copysign(values[code], q)).astype(np.float32) * scale


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("num_rows", "N", "K", "group", "scale_dtype"),
    [
        (1, 5, 32, 32, "f16"),  # a panel of one block
        (1, 150, 96, 32, "f32"),
        (2, 70, 64, 16, "e8m0"),
        (3, 24, 192, 96, "f16"),
        (4, 41, 96, 96, "f32"),  # per channel
        (5, 131, 64, 64, "f16"),
        (13, 33, 320, 40, "e8m0"),  # groups across blocks of columns
        (100, 20, 64, 32, "f16"),  # more than one block of rows
        (3, 20, 24, 6, "f16"),  # a vector of codes spans groups
        (9, 20, 24, 3, "f32"),
    ],
)
def test_linear_of_floats_has_the_bits_of_the_contract(
    num_rows: int, N: int, K: int, group: int, scale_dtype: str, dtype: str, isa: str
) -> None:
    rng = np.random.default_rng(N)
    x, w = random_rows(num_rows, K), random_matrix(rng, dtype, (N, K), group, scale_dtype)
    bias = rng.standard_normal(N).astype(np.float32)
    plan, y = float_plan(x, w, bias)
    out = plan.run(y, num_rows, isa=isa, num_threads=2, max_num_tokens=max(num_rows, 8))
    is_fused = isa == "avx2" and group % (8 if dtype in ("i4", "u4", "e2m1") else 4) == 0
    np.testing.assert_array_equal(out, chain(x, w.weights(), bias, is_fused))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale_dtype", SCALES)
def test_weights_are_exact_at_the_ends_of_the_scales(scale_dtype: str, dtype: str) -> None:
    K = 8
    w = random_matrix(np.random.default_rng(1), dtype, (16, K), 8, scale_dtype)
    ends = {"f16": [2.0**-24, 2.0**-14, 65504.0], "f32": [2.0**-126, 1e-30, 1e30], "e8m0": [0, 1, 127, 240]}[scale_dtype]
    w.scales[: len(ends), 0] = ends
    for isa in ISAS:
        plan, y = float_plan(np.eye(K, dtype=np.float32), w)
        np.testing.assert_array_equal(plan.run(y, K, isa=isa), w.weights().T)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("act_dtype", ["f32", "e4m3"])
def test_an_output_has_the_same_bits_for_any_number_of_rows_and_threads(act_dtype: str, dtype: str) -> None:
    x, w = random_rows(40, 512), random_matrix(np.random.default_rng(2), dtype, (300, 512), 64)
    plan, y = float_plan(x, w, None, act_dtype)
    finished = plan.finish(y)
    whole = forward(plan.bind(finished), [40])[:, :300]
    for num_threads in (1, 2, 3):
        executor = plan.bind(finished, num_threads=num_threads)
        for num_rows in (1, 2, 3, 4, 5, 7, 16, 40):
            part = forward(executor, [num_rows], tokens=np.arange(40 - num_rows, 40))[:, :300]
            np.testing.assert_array_equal(part, whole[40 - num_rows :], err_msg=f"{num_threads} threads, {num_rows} rows")


@pytest.mark.parametrize("dtype", ["i4", "i8"])
def test_blocks_of_rows_and_of_columns_meet_without_a_seam(dtype: str) -> None:
    x, w = random_rows(230, 1024), random_matrix(np.random.default_rng(3), dtype, (40, 1024), 128)
    plan, y = float_plan(x, w)
    out = plan.run(y, 230, num_threads=2, max_num_tokens=230, max_num_logits=230)
    np.testing.assert_array_equal(out, chain(x, w.weights(), None, fused=True))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("num_rows", [1, 3, 9])
def test_rows_are_rounded_to_the_nearest_fp8_of_their_scale(num_rows: int, isa: str) -> None:
    K = 24 if isa == "scalar" else 64
    x = random_rows(num_rows, K) * np.exp(3 * random_rows(num_rows, K, 1))
    x[0, :9] = np.float32(448) * np.array([1, 1.0625 / 256, 1.1875 / 256, 0, -0.0, 2**-18, -(2**-18), 1.5 * 2**-18, 3e-9], np.float32)
    x[0, 9:] = np.clip(x[0, 9:], -400, 400)  # the scale of this row is 1: ties and subnormals are as written
    plan, y = float_plan(x, identity(K), None, "e4m3")
    np.testing.assert_array_equal(plan.run(y, num_rows, isa=isa), nearest_e4m3(x))


def identity(K: int) -> QuantMatrix:
    codes = np.full((K, K), 128, np.uint8)
    np.fill_diagonal(codes, 129)
    return QuantMatrix("i8", "f32", K, codes, np.ones((K, 1), np.float32))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("act_dtype", ["f32", "e4m3"])
def test_a_row_with_a_nan_or_an_infinity_is_not_hidden_and_the_others_are_untouched(act_dtype: str, isa: str) -> None:
    x, w = random_rows(7, 64), random_matrix(np.random.default_rng(5), "i8", (24, 64), 32)
    plan, y = float_plan(x, w, None, act_dtype)
    clean = plan.run(y, 7, isa=isa)
    for value in (np.nan, np.inf, -np.inf):
        x[3, 60] = value
        plan, y = float_plan(x, w, None, act_dtype)
        out = plan.run(y, 7, isa=isa)
        assert not np.isfinite(out[3]).any()
        np.testing.assert_array_equal(np.delete(out, 3, 0), np.delete(clean, 3, 0))


def test_rows_of_zeros_and_of_tiny_values_are_zero_in_fp8() -> None:
    x, w = random_rows(3, 64), random_matrix(np.random.default_rng(6), "e4m3", (9, 64), 64)
    x[0], x[1] = 0.0, 1e-36
    for isa in ISAS:
        plan, y = float_plan(x, w, None, "e4m3")
        out = plan.run(y, 3, isa=isa)
        assert (out[:2] == 0).all() and (out[2] != 0).any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale_dtype", SCALES)
def test_an_embedding_is_a_row_of_the_table_dequantized(scale_dtype: str, dtype: str) -> None:
    w = random_matrix(np.random.default_rng(7), dtype, (37, 64), 32, scale_dtype)
    plan = TinyPlan(vocab_size=37)
    y = plan.call("nn.embedding", [add_quant_weight(plan, w), plan.input("input_ids")], [plan.buffer(["num_tokens", 64])])
    np.testing.assert_array_equal(plan.run(y, 37, num_threads=2), w.weights())
