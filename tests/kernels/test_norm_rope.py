"""Norms, rope, gated activations, softmax and embedding against numpy in float64."""

import math

import numpy as np
import pytest

from .tiny_plan import TinyPlan, round_bf16

ISAS = ["scalar", "avx2"]
erf = np.vectorize(math.erf)
ACTS = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: 0.5 * x * (1 + erf(x / 2**0.5)),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))),
    "relu": lambda x: np.maximum(x, 0),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
}


def random(seed: int, *dims: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(dims).astype(np.float32)


def normed(x: np.ndarray, w: np.ndarray | None, b: np.ndarray | None, is_rms: bool, eps: float) -> np.ndarray:
    x = x.astype(np.float64)
    x = x if is_rms else x - x.mean(-1, keepdims=True)
    y = x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)
    return (y if w is None else y * w) + (0 if b is None else b)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("op", ["nn.rms_norm", "nn.layer_norm", "nn.add_rms_norm", "nn.add_layer_norm"])
@pytest.mark.parametrize("dims", [(1,), (7,), (64,), (3, 40), (2, 2, 133)], ids=str)
@pytest.mark.parametrize("has_weight", [True, False])
def test_norms_scale_every_last_dim(dims: tuple[int, ...], op: str, has_weight: bool, isa: str) -> None:
    is_rms, is_add = "rms" in op, "add" in op
    x, residual = random(0, 9, *dims) * 3 + 1, random(1, 9, *dims)
    w, b = (random(2, dims[-1]), random(3, dims[-1])) if has_weight else (None, None)
    plan = TinyPlan()
    params = [None if p is None else plan.weight(p) for p in ([w] if is_rms else [w, b])]
    outputs = [plan.buffer(["num_tokens", *dims]) for _ in range(2 if is_add else 1)]
    data = [plan.per_token(x), *([plan.per_token(residual)] if is_add else [])]
    plan.call(op, [*data, *params], outputs, {"eps": 1e-5})
    source = (x + residual) if is_add else x
    expected = normed(source, w, None if is_rms else b, is_rms, 1e-5)
    np.testing.assert_allclose(plan.run(outputs[-1], 9, isa=isa, num_threads=2), expected, atol=4e-6 * max(1, np.abs(expected).max()))


def test_add_norm_also_gives_the_sum_even_in_place() -> None:
    x, residual = random(0, 5, 24), random(1, 5, 24)
    plan = TinyPlan()
    both = plan.per_token(residual)
    plan.call("nn.add_rms_norm", [plan.per_token(x), both, None], [both, plan.buffer(["num_tokens", 24])], {"eps": 1e-6})
    assert np.array_equal(plan.run(both, 5), x + residual)


def rope_reference(x: np.ndarray, cos: np.ndarray, sin: np.ndarray, style: str, rotary_dim: int, offset: int) -> np.ndarray:
    y, part, half = x.astype(np.float64).copy(), x[..., offset : offset + rotary_dim].astype(np.float64), rotary_dim // 2
    c, s = cos[:, None], sin[:, None]
    first, second = (part[..., :half], part[..., half:]) if style == "half" else (part[..., 0::2], part[..., 1::2])
    a, b = first * c - second * s, second * c + first * s
    y[..., offset : offset + rotary_dim] = (
        np.stack([a, b], -1).reshape(part.shape) if style == "interleaved" else np.concatenate([a, b], -1)
    )
    return y


@pytest.mark.parametrize("style", ["half", "interleaved", "interleaved_to_half"])
@pytest.mark.parametrize(("head_dim", "rotary_dim", "offset"), [(8, 8, 0), (64, 32, 0), (24, 16, 8), (10, 2, 3)])
def test_rope_rotates_its_part_and_copies_the_rest(head_dim: int, rotary_dim: int, offset: int, style: str) -> None:
    x, angle = random(0, 7, 3, head_dim), random(1, 7, rotary_dim // 2) * 5
    plan = TinyPlan()
    y = plan.buffer(["num_tokens", 3, head_dim])
    tables = [plan.per_token(np.cos(angle)), plan.per_token(np.sin(angle))]
    plan.call("nn.rope", [plan.per_token(x), *tables], [y], {"style": style, "rotary_dim": rotary_dim, "offset": offset})
    expected = rope_reference(x, np.cos(angle), np.sin(angle), style, rotary_dim, offset)
    np.testing.assert_allclose(plan.run(y, 7, num_threads=2), expected, atol=2e-6)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("act", ACTS)
def test_act_mul_multiplies_the_activated_gate(act: str, isa: str) -> None:
    both = random(0, 6, 2 * 515) * 4  # gate and up as halves of one row, as a merged linear gives them
    plan = TinyPlan()
    merged = plan.per_token(both)
    gate, up = ({**merged, "dims": ["num_tokens", 515], "offset": o} for o in (0, 515))
    y = plan.buffer(["num_tokens", 515])
    plan.call("nn.act_mul", [gate, up], [y], {"act": act})
    expected = ACTS[act](both[:, :515].astype(np.float64)) * both[:, 515:]
    np.testing.assert_allclose(plan.run(y, 6, isa=isa, num_threads=2), expected, rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dim", [1, 2])
def test_softmax_sums_to_one_along_its_dim(dim: int, isa: str) -> None:
    x = random(0, 5, 6, 13) * 10
    plan = TinyPlan()
    y = plan.buffer(["num_tokens", 6, 13])
    plan.call("nn.softmax", [plan.per_token(x)], [y], {"dim": dim})
    e = np.exp(x.astype(np.float64) - x.max(dim, keepdims=True))
    np.testing.assert_allclose(plan.run(y, 5, isa=isa), e / e.sum(dim, keepdims=True), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("dtype", "layout"), [("f32", "row_major"), ("bf16", "row_major"), ("f16", "row_major"), ("f32", "panel16"), ("bf16", "panel16")]
)
def test_embedding_reads_rows_of_every_storage(dtype: str, layout: str) -> None:
    table = random(0, 37, 19)
    plan = TinyPlan(vocab_size=37)
    y = plan.buffer(["num_tokens", 19])
    plan.call("nn.embedding", [plan.weight(table, dtype, layout), plan.input("input_ids")], [y])
    expected = {"f32": table, "bf16": round_bf16(table), "f16": table.astype(np.float16).astype(np.float32)}[dtype]
    assert np.array_equal(plan.run(y, 37), expected)


def test_a_norm_weight_stored_as_bf16_is_widened_once() -> None:
    x, w = random(0, 4, 16), random(1, 16)
    plan = TinyPlan()
    y = plan.buffer(["num_tokens", 16])
    plan.call("nn.rms_norm", [plan.per_token(x), plan.weight(w, "bf16")], [y], {"eps": 1e-6})
    executor = plan.bind(plan.finish(y))
    assert executor.memory()["widened_bytes"] == 64
    np.testing.assert_allclose(plan.run(y, 4), normed(x, round_bf16(w), None, True, 1e-6), atol=2e-6)
