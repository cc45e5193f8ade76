"""nn.linear and moe.experts with quantized weights and integer activations: the bits of docs/quantized-weights.md."""

import numpy as np
import pytest

from .quantized import QuantMatrix, add_quant_weight, emulate, random_matrix
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


@pytest.mark.parametrize(("dtype", "act_dtype"), PAIRS)
@pytest.mark.parametrize(("num_rows", "K"), [(300, 256), (13, 4608), (37, 2304)])
def test_blocks_of_rows_and_of_columns_meet_without_a_seam(num_rows: int, K: int, dtype: str, act_dtype: str) -> None:
    rng = np.random.default_rng(3)
    x, w = random_rows(rng, num_rows, K), random_matrix(rng, dtype, (21, K), 64, "f16")
    plan, y = qlinear_plan(x, w, act_dtype, 64)
    out = plan.run(y, num_rows, max_num_tokens=num_rows, max_num_logits=num_rows)
    np.testing.assert_array_equal(out, emulate(x, w, act_dtype, 64))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("dtype", "act_dtype"), PAIRS)
@pytest.mark.parametrize("num_rows", [1, 2, 4, 6, 31])
def test_no_sum_of_extreme_codes_and_activations_overflows(num_rows: int, dtype: str, act_dtype: str, isa: str) -> None:
    K, group = 256, 128
    top = {"i4": 15, "u4": 15, "e2m1": 7, "i7": 127, "i8": 255}[dtype]
    low = {"e2m1": 15}.get(dtype, 0)
    signs = np.array([[1.0] * K, [-1.0] * K, [1.0, -1.0] * (K // 2), [1.0, 1.0, -1.0, -1.0] * (K // 4)], np.float32)
    codes = np.concatenate([np.where(signs > 0, top, low), np.full((2, K), top), np.full((2, K), low)]).astype(np.uint8)
    zeros = np.repeat(np.array([[0], [15]] * (len(codes) // 2)), K // group, 1).astype(np.uint8) if dtype == "u4" else None
    scale_dtype = "f32"
    w = QuantMatrix(dtype, scale_dtype, group, codes, np.ones((len(codes), K // group), np.float32), zeros)
    x = np.resize(np.concatenate([signs, signs[:2] * 3]), (num_rows, signs.shape[1]))
    for rows in (x, -x):  # all activations at the extremes of their range
        plan, y = qlinear_plan(rows, w, act_dtype, group)
        expected = rows.astype(np.float64) @ w.numbers().T.astype(np.float64)
        np.testing.assert_allclose(plan.run(y, num_rows, isa=isa), expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("num_rows", [1, 2, 4, 6, 31])
def test_no_lane_at_its_bound_overflows(num_rows: int, isa: str) -> None:
    K, group, lane_sum = 256, 128, 32767 // 63
    magnitudes = np.resize([64] * 8 + [1] * 8, 16)  # of one lane, 520 in all; the other lane in another order
    columns = np.stack([magnitudes.reshape(8, 2), magnitudes[::-1].reshape(8, 2)], axis=1).reshape(32)
    signs = np.array([[-1] * 32, [-1, 1] * 16, [-1, -1, 1, 1] * 8, [1] * 16 + [-1] * 16], np.int64)
    numbers = np.clip(np.tile(columns * signs, (1, K // 32)), -64, 63)
    w = QuantMatrix("i7", "f32", group, (numbers + 64).astype(np.uint8), np.ones((4, K // group), np.float32), lane_sum=lane_sum)
    x = np.resize(np.tile(signs, (1, K // 32)).astype(np.float32), (num_rows, K))
    for rows in (x, -x, np.ones_like(x)):
        plan, y = qlinear_plan(rows, w, "i7", group)
        expected = rows.astype(np.float64) @ numbers.T.astype(np.float64)
        np.testing.assert_allclose(plan.run(y, num_rows, isa=isa), expected, rtol=1e-5, atol=1e-3)


def test_bounded_lanes_change_no_bit() -> None:
    rng = np.random.default_rng(11)
    for num_rows, N, K, group, act_group in ((1, 5, 32, 32, 32), (3, 24, 192, 96, 96), (9, 40, 256, 256, 32), (70, 100, 512, 128, 128)):
        x, w = random_rows(rng, num_rows, K), random_matrix(rng, "i7", (N, K), group)
        w.codes = (64 + (w.codes.astype(np.int64) - 64) // 2).astype(np.uint8)  # 16 times 32: below the bound
        w.lane_sum = 32767 // 63
        plan, y = qlinear_plan(x, w, "i7", act_group)
        np.testing.assert_array_equal(plan.run(y, num_rows), emulate(x, w, "i7", act_group))


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


def experts_plan(
    num_tokens: int, dtype: str, act_dtype: str, groups: tuple[int, int], num_experts: int = 5, top_k: int = 2
) -> tuple[TinyPlan, View, dict[str, np.ndarray], list[QuantMatrix]]:
    rng = np.random.default_rng(num_tokens)
    hidden_size, intermediate_size = 64, 96
    arrays = {
        "x": random_rows(rng, num_tokens, hidden_size),
        "ids": np.stack([rng.permutation(num_experts)[:top_k] for _ in range(num_tokens)]),
        "weights": rng.random((num_tokens, top_k)).astype(np.float32),
    }
    matrices = [
        random_matrix(rng, dtype, (num_experts, 2 * intermediate_size, hidden_size), groups[0], SCALES[dtype]),
        random_matrix(rng, dtype, (num_experts, hidden_size, intermediate_size), groups[1], SCALES[dtype]),
    ]
    plan = TinyPlan(max_num_tokens=max(num_tokens, 64))
    y = plan.buffer(["num_tokens", hidden_size])
    inputs = [plan.per_token(arrays["x"]), plan.per_token(arrays["ids"], "i32"), plan.per_token(arrays["weights"])]
    inputs += [add_quant_weight(plan, w) for w in matrices]
    plan.call("moe.experts", inputs, [y], {"act": "silu", "has_gate": True, "act_dtype": act_dtype, "act_group": list(groups)})
    return plan, y, arrays, matrices


def emulated_experts(arrays: dict[str, np.ndarray], matrices: list[QuantMatrix], act_dtype: str, groups: tuple[int, int]) -> np.ndarray:
    y = np.zeros_like(arrays["x"])
    for t, row in enumerate(arrays["x"]):
        for slot, e in enumerate(arrays["ids"][t]):
            gate, up = np.split(emulate(row[None], matrices[0].expert(e), act_dtype, groups[0]), 2, -1)
            with np.errstate(over="ignore"):
                hidden = (gate / (1 + np.exp(-gate)) * up).astype(np.float32)
            y[t] += arrays["weights"][t, slot] * emulate(hidden, matrices[1].expert(e), act_dtype, groups[1])[0]
    return y


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("dtype", "act_dtype", "groups"), [("i4", "i8", (32, 32)), ("u4", "i8", (64, 96)), ("i7", "i8", (32, 96))])
@pytest.mark.parametrize("num_tokens", [1, 7, 150])
def test_experts_with_quantized_weights_give_the_weighted_sum(
    num_tokens: int, dtype: str, act_dtype: str, groups: tuple[int, int], isa: str
) -> None:
    plan, y, arrays, matrices = experts_plan(num_tokens, dtype, act_dtype, groups)
    out = plan.run(y, num_tokens, isa=isa, num_threads=2, max_num_tokens=num_tokens, max_num_logits=num_tokens)
    expected = emulated_experts(arrays, matrices, act_dtype, groups)
    # The activation between the two matrices is a library function here: an integer of its rounding may differ by one.
    np.testing.assert_allclose(out, expected, rtol=0.05, atol=0.02 * np.abs(expected).max())
    assert np.mean(np.abs(out - expected)) < 1e-3 * np.abs(expected).max()


def test_quantized_experts_give_a_token_the_same_bits_alone_and_in_a_batch() -> None:
    plan, y, _, _ = experts_plan(150, "i4", "i8", (32, 32))
    finished = plan.finish(y)
    whole = forward(plan.bind(finished, max_num_tokens=150, max_num_logits=150), [150])
    executor = plan.bind(finished, max_num_tokens=150, max_num_logits=150, num_threads=3)
    for start, stop in ((0, 1), (5, 7), (40, 73), (149, 150)):
        assert np.array_equal(forward(executor, [stop - start], tokens=np.arange(start, stop)), whole[start:stop])


def test_experts_that_no_token_chose_are_not_read() -> None:
    plan, y, arrays, _ = experts_plan(1, "i4", "i8", (32, 32))
    unused = [e for e in range(5) if e not in arrays["ids"]]
    names = [name for name, spec in plan.weights.items() if spec["layout"] == "block8"]
    for name in names:
        scales = plan.arrays[name + ".scales"]
        scales.reshape(5, -1)[unused] = np.float16("nan")  # whoever reads them gives NaN, zeros times NaN too
    assert np.isfinite(plan.run(y, 1, num_threads=2)).all()


def quantized_plan(dtype: str = "i4", act_dtype: str = "i8") -> tuple[TinyPlan, dict]:
    rng = np.random.default_rng(0)
    w = random_matrix(rng, dtype, (24, 64), 32, SCALES[dtype])
    plan, y = qlinear_plan(random_rows(rng, 4, 64), w, act_dtype, 32)
    return plan, plan.finish(y)


# Which place of the plan, what is written there, and what the message must say. w1 is the quantized weight, call 1 its linear.
MALFORMED = {
    "a group that does not divide": (["weights", "w1", "group"], 48, "group 48"),
    "a group of nothing": (["weights", "w1", "group"], 0, "group 0"),
    "another group of activations": (["calls", 1, "attrs", "act_group"], 64, "differs from the group 32"),
    "activations in groups of 16": (["calls", 1, "attrs", "act_group"], 16, "multiple of 32"),
    "no group of activations": (["calls", 1, "attrs"], {"act_dtype": "i8"}, "act_group 0"),
    "no dtype of activations": (["calls", 1, "attrs"], {"act_group": 32}, "act_dtype"),
    "an unknown dtype of activations": (["calls", 1, "attrs", "act_dtype"], "i9", "'i9' is none of f32, i8, i7, e4m3"),
    "a pair that could overflow": (["calls", 1, "attrs", "act_dtype"], "i7", "could overflow"),
    "scales of integers": (["weights", "w1", "scale_dtype"], "i32", "scales are i32"),
    "scales of another size": (["weights", "w1", "scale_dtype"], "f32", "bytes"),
    "a bound of lanes of nibbles": (["weights", "w1", "lane_sum"], 520, "lane_sum 520 of a weight that is i4"),
    "zeros that are not there": (["weights", "w1", "dtype"], "u4", "w1.zeros"),
    "codes in another layout": (["weights", "w1", "layout"], "panel16", "block8"),
    "codes of a dtype of scales": (["weights", "w1", "dtype"], "e8m0", "dtype of scales"),
    "more columns than codes": (["weights", "w1", "dims"], [24, 128], "bytes"),
    "columns that do not fill a vector": (["weights", "w1", "dims"], [24, 60], "multiple of 8"),
    "dims that overflow": (["weights", "w1", "dims"], [1 << 40, 1 << 40], ""),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_a_malformed_quantized_weight_is_refused_in_three_parts(what: str) -> None:
    place, value, says = MALFORMED[what]
    plan, finished = quantized_plan()
    target = finished
    for key in place[:-1]:
        target = target[key]
    target[place[-1]] = value
    if place[-1] in ("dtype", "dims") and place[0] == "weights":  # the view says the same
        finished["calls"][1]["inputs"][1][place[-1]] = value
    with pytest.raises(RuntimeError) as raised:
        plan.bind(finished)
    text = str(raised.value)
    assert says in text and "\nwhere: " in text and "\ntry: " in text, text


def test_an_op_that_takes_no_quantized_weight_says_so() -> None:
    plan, finished = quantized_plan()
    finished["calls"][1] |= {"op": "nn.embedding", "attrs": {}}
    finished["calls"][1]["inputs"] = [finished["calls"][1]["inputs"][1], plan.input("input_ids")]
    finished["calls"][1]["outputs"][0]["dims"] = ["num_tokens", 64]
    with pytest.raises(RuntimeError, match=r"where: .*\n.*try: "):
        plan.bind(finished)


def test_the_kernel_of_a_call_names_both_dtypes_and_is_in_the_list() -> None:
    plan, finished = quantized_plan()
    for isa in ISAS:
        executor = plan.bind(finished, isa=isa)
        names = {call["op"]: call["kernel"] for call in executor.calls()}
        assert names["nn.linear"] == f"linear.cpu.{isa}.i4xi8"
        assert set(names.values()) <= set(executor.kernel_names())
    assert plan.bind(finished, quantize_activations=False).calls()[1]["kernel"] == "linear.cpu.avx2.i4xf32"
