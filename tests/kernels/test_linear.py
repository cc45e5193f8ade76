"""nn.linear and moe.experts against numpy in float64, and the numerical contract: the same bits whatever the rows, chunks and threads."""

import numpy as np
import pytest

from .tiny_plan import TinyPlan, forward, round_bf16

ISAS = ["scalar", "avx2"]
SHAPES = [
    (1, 7, 5),
    (2, 16, 8),
    (3, 40, 33),
    (4, 17, 64),
    (5, 31, 9),
    (6, 100, 100),
    (7, 48, 257),
    (13, 33, 300),
    (40, 130, 515),
]  # rows, N, K


def linear_plan(x: np.ndarray, w: np.ndarray, bias: np.ndarray | None, dtype: str) -> tuple[TinyPlan, dict]:
    plan = TinyPlan(max_num_tokens=max(64, len(x)))
    y = plan.buffer(["num_tokens", *x.shape[1:-1], len(w)])
    plan.call("nn.linear", [plan.per_token(x), plan.weight(w, dtype, "panel16"), None if bias is None else plan.weight(bias)], [y])
    return plan, y


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize(("rows", "N", "K"), SHAPES)
def test_linear_is_the_product_with_the_rounded_weight(rows: int, N: int, K: int, dtype: str, isa: str) -> None:
    rng = np.random.default_rng(rows * 1000 + N)
    x, w, bias = rng.standard_normal((rows, K)), rng.standard_normal((N, K)), rng.standard_normal(N)
    plan, y = linear_plan(x.astype(np.float32), w.astype(np.float32), bias.astype(np.float32), dtype)
    stored = round_bf16(w.astype(np.float32)) if dtype == "bf16" else w.astype(np.float32)
    expected = x.astype(np.float32).astype(np.float64) @ stored.astype(np.float64).T + bias
    np.testing.assert_allclose(plan.run(y, rows, isa=isa, num_threads=2), expected, atol=2e-6 * K**0.5 * 4, rtol=2e-6)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_an_output_has_the_same_bits_for_any_number_of_rows_and_threads(dtype: str) -> None:
    rng = np.random.default_rng(7)
    x, w = rng.standard_normal((70, 600)).astype(np.float32), rng.standard_normal((200, 600)).astype(np.float32)
    plan, y = linear_plan(x, w, rng.standard_normal(200).astype(np.float32), dtype)
    finished = plan.finish(y)
    whole = forward(plan.bind(finished, num_threads=1, max_num_tokens=70, max_num_logits=70), [70])
    for num_threads in (1, 2, 3):
        executor = plan.bind(finished, num_threads=num_threads, max_num_tokens=70, max_num_logits=70)
        for rows in (1, 2, 3, 4, 5, 6, 7, 8, 12, 31, 70):
            start = 70 - rows
            part = forward(executor, [rows], tokens=np.arange(start, 70))
            assert np.array_equal(part, whole[start:]), (num_threads, rows)


@pytest.mark.parametrize("isa", ISAS)
def test_linear_takes_three_dims_and_gaps_between_rows(isa: str) -> None:
    rng = np.random.default_rng(3)
    x, w = rng.standard_normal((9, 4, 32)).astype(np.float32), rng.standard_normal((20, 16)).astype(np.float32)
    plan = TinyPlan()
    view = plan.per_token(x)
    half = {**view, "dims": ["num_tokens", 4, 16], "offset": 16}  # the second half of every row of 32
    y = plan.buffer(["num_tokens", 4, 20])
    plan.call("nn.linear", [half, plan.weight(w, "f32", "panel16"), None], [y])
    np.testing.assert_allclose(plan.run(y, 9, isa=isa, num_threads=2), x[..., 16:].astype(np.float64) @ w.T.astype(np.float64), atol=1e-5)


def test_a_linear_into_part_of_a_row_leaves_the_rest_alone() -> None:
    rng = np.random.default_rng(4)
    x, w = rng.standard_normal((9, 24)).astype(np.float32), rng.standard_normal((10, 24)).astype(np.float32)
    plan = TinyPlan()
    y = plan.buffer(["num_tokens", 40])
    plan.call("tensor.full", [], [y], {"value": 3.0})
    part = {**y, "dims": ["num_tokens", 10], "offset": 7}
    plan.call("nn.linear", [plan.per_token(x), plan.weight(w, "bf16", "panel16"), None], [part])
    out = plan.run(y, 9)
    assert (out[:, :7] == 3.0).all() and (out[:, 17:] == 3.0).all()
    np.testing.assert_allclose(out[:, 7:17], x @ round_bf16(w).T, atol=1e-5)


def experts_reference(x, ids, weights, gate_up, down, gate_up_bias, down_bias, act):  # type: ignore[no-untyped-def]
    x, gate_up, down = (a.astype(np.float64) for a in (x, gate_up, down))
    result = np.zeros_like(x)
    for t in range(len(x)):
        for slot, e in enumerate(ids[t]):
            h = gate_up[e] @ x[t] + (0 if gate_up_bias is None else gate_up_bias[e])
            gate, up = np.split(h, 2)
            if act == "swiglu_clamped":
                gate, up = np.minimum(gate, 1.5), np.clip(up, -1.5, 1.5)
                h = (up + 1) * gate / (1 + np.exp(-1.702 * gate))
            else:
                h = gate / (1 + np.exp(-gate)) * up
            result[t] += weights[t, slot] * (down[e] @ h + (0 if down_bias is None else down_bias[e]))
    return result


def experts_plan(num_tokens: int, dtype: str, act: str, has_bias: bool, hidden_size: int = 40):  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(11)
    num_experts, top_k, intermediate_size = 5, 2, 24
    arrays = {
        "x": rng.standard_normal((num_tokens, hidden_size)),
        "ids": np.stack([rng.permutation(num_experts)[:top_k] for _ in range(num_tokens)]),
        "weights": rng.random((num_tokens, top_k)),
        "gate_up": rng.standard_normal((num_experts, 2 * intermediate_size, hidden_size)),
        "down": rng.standard_normal((num_experts, hidden_size, intermediate_size)),
        "gate_up_bias": rng.standard_normal((num_experts, 2 * intermediate_size)) if has_bias else None,
        "down_bias": rng.standard_normal((num_experts, hidden_size)) if has_bias else None,
    }
    arrays = {k: v if v is None or k == "ids" else v.astype(np.float32) for k, v in arrays.items()}
    for name in ("gate_up", "down"):
        arrays[name] = round_bf16(arrays[name]) if dtype == "bf16" else arrays[name]
    plan = TinyPlan(max_num_tokens=max(num_tokens, 64))
    y = plan.buffer(["num_tokens", hidden_size])
    biases = [None if arrays[b] is None else plan.weight(arrays[b]) for b in ("gate_up_bias", "down_bias")]
    packed = [plan.weight(arrays[w], dtype, "panel16") for w in ("gate_up", "down")]
    inputs = [plan.per_token(arrays["x"]), plan.per_token(arrays["ids"], "i32"), plan.per_token(arrays["weights"]), *packed, *biases]
    plan.call("moe.experts", inputs, [y], {"act": act, "has_gate": True, "alpha": 1.702, "limit": 1.5})
    return plan, y, arrays


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize(
    ("num_tokens", "act", "has_bias"), [(1, "silu", False), (3, "silu", True), (30, "swiglu_clamped", True), (150, "silu", True)]
)
def test_experts_give_each_token_the_weighted_sum_of_its_experts(num_tokens: int, act: str, has_bias: bool, dtype: str, isa: str) -> None:
    plan, y, arrays = experts_plan(num_tokens, dtype, act, has_bias)
    expected = experts_reference(**arrays, act=act)
    np.testing.assert_allclose(plan.run(y, num_tokens, isa=isa, num_threads=2), expected, atol=2e-4, rtol=1e-4)


def test_experts_give_a_token_the_same_bits_alone_and_in_a_batch() -> None:
    plan, y, _ = experts_plan(150, "bf16", "silu", True)
    finished = plan.finish(y)
    whole = forward(plan.bind(finished, max_num_tokens=150, max_num_logits=150), [150])
    executor = plan.bind(finished, max_num_tokens=150, max_num_logits=150, num_threads=2)
    for start, stop in ((0, 1), (5, 7), (40, 73), (149, 150)):
        assert np.array_equal(forward(executor, [stop - start], tokens=np.arange(start, stop)), whole[start:stop])


def test_packing_the_rows_of_one_expert_leaves_those_of_the_next_alone() -> None:
    for num_tokens in range(6, 14):  # so that many experts have three rows, whose packed tile is the narrowest
        plan, y, arrays = experts_plan(num_tokens, "bf16", "silu", False, hidden_size=41)  # one more than whole vectors
        np.testing.assert_allclose(plan.run(y, num_tokens, num_threads=2), experts_reference(**arrays, act="silu"), atol=2e-4, rtol=1e-4)
