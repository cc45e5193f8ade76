"""The numpy references mean what torch means."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from friendli_compile.ir.builder import GraphBuilder
from friendli_compile.ir.interpreter import interpret
from friendli_compile.ir.ops import OPS, POINTWISE

RNG = np.random.default_rng(7)


def run_op(op: str, operands: list[np.ndarray | None], attrs: dict[str, Any]) -> list[np.ndarray]:
    """The op on arrays, through a graph of one node."""
    b = GraphBuilder()
    values = [None if x is None else b.constant(x) for x in operands]
    result = b.add(op, values, attrs)
    return interpret(b.finish(list(result) if isinstance(result, tuple) else [result]), {}, {})


def normal(*dims: int) -> np.ndarray:
    return RNG.standard_normal(dims).astype(np.float32)


X = normal(5, 6)
WIDE = normal(2, 1, 3, 4)
POSITIVE = np.abs(X) + 0.1
INDEX = RNG.integers(0, 6, (5, 3)).astype(np.int32)
UNIQUE_INDEX = np.argsort(normal(5, 6), axis=1)[:, :3].astype(np.int32)
T = torch.from_numpy
CASES: list[tuple[str, list[np.ndarray | None], dict[str, Any], Callable[[], torch.Tensor]]] = [
    ("tensor.gather", [X, INDEX], {"dim": 1}, lambda: torch.gather(T(X), 1, T(INDEX).long())),
    ("tensor.scatter", [X, UNIQUE_INDEX, X[:, :3]], {"dim": 1}, lambda: T(X).scatter(1, T(UNIQUE_INDEX).long(), T(X[:, :3].copy()))),
    ("tensor.scatter", [X, UNIQUE_INDEX, np.float32(2)], {"dim": -1}, lambda: T(X).scatter(1, T(UNIQUE_INDEX).long(), 2.0)),
    ("tensor.gather_rows", [X, INDEX[:, 0] % 5], {}, lambda: T(X)[T(INDEX[:, 0] % 5).long()]),
    ("tensor.cumsum", [X], {"dim": 1}, lambda: T(X).cumsum(1)),
    ("tensor.slice", [X], {"dim": 1, "start": 1, "stop": 6, "step": 2}, lambda: T(X)[:, 1:6:2]),
    ("tensor.iota", [], {"dims": (2, 3), "dim": 1, "dtype": "i32"}, lambda: torch.arange(3).expand(2, 3)),
    ("tensor.full", [], {"dims": (2, 3), "value": 1.5, "dtype": "f32"}, lambda: torch.full((2, 3), 1.5)),
    ("tensor.matmul", [WIDE, X[:4]], {}, lambda: T(WIDE) @ T(X[:4])),
    ("reduce.argmax", [X], {"dim": 1}, lambda: T(X).argmax(1)),
    ("reduce.mean", [X], {"dim": 0, "keepdim": True}, lambda: T(X).mean(0, keepdim=True)),
    ("nn.softmax", [X * 30], {"dim": -1}, lambda: T(X * 30).softmax(-1)),
    ("nn.linear", [X, X[:4], X[0, :4]], {}, lambda: F.linear(T(X), T(X[:4]), T(X[0, :4]))),
    ("nn.embedding", [X, INDEX % 5], {}, lambda: F.embedding(T(INDEX % 5).long(), T(X))),
    ("nn.rms_norm", [X, X[0]], {"eps": 1e-5}, lambda: F.rms_norm(T(X), (6,), T(X[0]), 1e-5)),
    ("nn.rms_norm", [X, None], {"eps": 1e-5}, lambda: F.rms_norm(T(X), (6,), None, 1e-5)),
    ("nn.layer_norm", [X, X[0], X[1]], {"eps": 1e-5}, lambda: F.layer_norm(T(X), (6,), T(X[0]), T(X[1]), 1e-5)),
    ("nn.layer_norm", [X, None, None], {"eps": 1e-5}, lambda: F.layer_norm(T(X), (6,), eps=1e-5)),
    ("nn.act_mul", [X, X * 2], {"act": "silu"}, lambda: F.silu(T(X)) * T(X * 2)),
    ("ew.floor_div", [X, POSITIVE], {}, lambda: T(X) // T(POSITIVE)),
    ("ew.remainder", [X, POSITIVE], {}, lambda: torch.remainder(T(X), T(POSITIVE))),
    ("ew.where", [X > 0, X, POSITIVE], {}, lambda: torch.where(T(X > 0), T(X), T(POSITIVE))),
]
TORCH_UNARY: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "gelu": F.gelu,
    "softplus": F.softplus,
    "relu": F.relu,
}


@pytest.mark.parametrize(("op", "operands", "attrs", "expected"), CASES, ids=[f"{i}-{case[0]}" for i, case in enumerate(CASES)])
def test_an_op_is_what_torch_computes(op: str, operands: list, attrs: dict, expected: Callable[[], torch.Tensor]) -> None:
    (result,) = run_op(op, operands, attrs)
    np.testing.assert_allclose(result, expected().numpy(), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("op", sorted(name for name in POINTWISE if OPS[name].operands == ("x",) and name != "ew.not"))
def test_a_unary_op_is_what_torch_computes(op: str) -> None:
    name = op.removeprefix("ew.")
    x = POSITIVE if name in ("sqrt", "rsqrt", "log", "log1p") else np.concatenate([X.ravel() * 4, [0.0, 30.0, -30.0]]).astype(np.float32)
    expected = TORCH_UNARY.get(name) or getattr(torch, name)
    np.testing.assert_allclose(run_op(op, [x], {})[0], expected(T(x)).numpy(), rtol=2e-6, atol=2e-6)


def test_topk_breaks_ties_by_the_lowest_index() -> None:
    values, indices = run_op("tensor.topk", [np.array([[1, 3, 3, 2, 3]], np.float32)], {"k": 3, "dim": 1})
    assert values.tolist() == [[3, 3, 3]]
    assert indices.tolist() == [[1, 2, 4]]


@pytest.mark.parametrize("style", ["half", "interleaved", "interleaved_to_half"])
def test_rope_rotates_each_pair_as_a_complex_number(style: str) -> None:
    x, angle = normal(3, 2, 8), normal(3, 2)
    (y,) = run_op("nn.rope", [x, np.cos(angle), np.sin(angle)], {"style": style, "rotary_dim": 4, "offset": 2})
    part = x[..., 2:6]
    pairs = (part[..., :2] + 1j * part[..., 2:]) if style == "half" else part[..., 0::2] + 1j * part[..., 1::2]
    turned = pairs * np.exp(1j * angle)[:, None, :]
    rotated = np.stack([turned.real, turned.imag], -1).reshape(3, 2, 4)
    expected = rotated if style == "interleaved" else np.concatenate([turned.real, turned.imag], -1)
    np.testing.assert_allclose(y[..., 2:6], expected, atol=1e-6)
    np.testing.assert_array_equal(y[..., [0, 1, 6, 7]], x[..., [0, 1, 6, 7]])


def test_experts_are_the_weighted_sum_of_gated_mlps() -> None:
    x, gate_up, down = normal(4, 6), normal(3, 10, 6), normal(3, 6, 5)
    ids, weights = np.array([[0, 1], [2, 0], [1, 1], [2, 1]], np.int32), np.abs(normal(4, 2))
    (y,) = run_op("moe.experts", [x, ids, weights, gate_up, down, None, None], {"act": "silu"})
    for row in range(4):
        expected = torch.zeros(6)
        for slot in range(2):
            gate, up = (T(gate_up[ids[row, slot]]) @ T(x[row])).chunk(2)
            expected += float(weights[row, slot]) * (T(down[ids[row, slot]]) @ (F.silu(gate) * up))
        np.testing.assert_allclose(y[row], expected.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("groups", [1, 2])
def test_conv1d_is_that_of_torch(groups: int) -> None:
    x, w, bias = normal(2, 4, 9), normal(6, 4 // groups, 3), normal(6)
    attrs = {"stride": 2, "padding": 1, "dilation": 2, "groups": groups}
    expected = F.conv1d(T(x), T(w), T(bias), stride=2, padding=1, dilation=2, groups=groups)
    np.testing.assert_allclose(run_op("nn.conv1d", [x, w, bias], attrs)[0], expected.numpy(), rtol=1e-5, atol=1e-5)


def test_a_program_computes_its_steps_in_order() -> None:
    code = [("mul", ("in", 0), ("const", 2.0)), ("gt", ("reg", 0), ("in", 1)), ("where", ("reg", 1), ("reg", 0), ("in", 1))]
    (y,) = run_op("ew.program", [X, POSITIVE[:, :1]], {"code": code})
    np.testing.assert_array_equal(y, np.where(POSITIVE[:, :1] < X * 2, X * 2, POSITIVE[:, :1]))


def test_softplus_and_sigmoid_do_not_overflow() -> None:
    x = np.array([-1e4, 1e4], np.float32)
    np.testing.assert_array_equal(run_op("ew.softplus", [x], {})[0], [0, 1e4])
    np.testing.assert_array_equal(run_op("ew.sigmoid", [x], {})[0], [0, 1])
    assert math.isinf(run_op("ew.exp", [x], {})[0][1])
