"""ew.program against numpy: every function, every type, broadcasts, and accuracy over the whole range of the hard functions."""

import math

import numpy as np
import pytest

from .tiny_plan import TinyPlan, View

ISAS = ["scalar", "avx2"]
erf = np.vectorize(math.erf)
UNARY = {
    "neg": np.negative,
    "abs": np.abs,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "square": np.square,
    "exp": np.exp,
    "log": np.log,
    "log1p": np.log1p,
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "erf": erf,
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: 0.5 * x * (1 + erf(x * 0.5**0.5)),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))),
    "softplus": lambda x: np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))),
    "floor": np.floor,
}
BINARY = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "pow": np.power,
    "floor_div": np.floor_divide,
    "remainder": np.remainder,
    "minimum": np.minimum,
    "maximum": np.maximum,
}
COMPARE = {"eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal}


def program(plan: TinyPlan, inputs: list[View], code: list, dims: tuple[int, ...], dtype: str = "f32", num_outputs: int = 1) -> list[View]:
    outputs = [plan.buffer(["num_tokens", *dims], dtype) for _ in range(num_outputs)]
    plan.call("ew.program", inputs, outputs, {"code": code})
    return outputs


def random(seed: int, *dims: int) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(dims) * 3).astype(np.float32)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("fn", UNARY)
def test_unary_functions_agree_with_numpy(fn: str, isa: str) -> None:
    x = random(0, 5, 301)
    x = np.abs(x) + 0.01 if fn in ("sqrt", "rsqrt", "log", "log1p") else x
    plan = TinyPlan()
    (y,) = program(plan, [plan.per_token(x)], [[fn, ["in", 0]]], (301,))
    np.testing.assert_allclose(plan.run(y, 5, isa=isa, num_threads=2), UNARY[fn](x.astype(np.float64)), rtol=1e-6, atol=5e-7)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("fn", [*BINARY, *COMPARE])
def test_binary_functions_agree_with_numpy(fn: str, isa: str) -> None:
    a, b = random(0, 5, 33), random(1, 5, 33)
    a = np.abs(a) + 0.1 if fn == "pow" else np.round(a) if fn in COMPARE else a
    b = np.round(b) if fn in COMPARE else b
    plan = TinyPlan()
    (y,) = program(plan, [plan.per_token(a), plan.per_token(b)], [[fn, ["in", 0], ["in", 1]]], (33,))
    expected = {**BINARY, **COMPARE}[fn](a.astype(np.float64), b.astype(np.float64)).astype(np.float64)
    np.testing.assert_allclose(plan.run(y, 5, isa=isa), expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("fn", ["add", "sub", "mul", "floor_div", "remainder", "minimum", "maximum", "lt", "eq"])
def test_integers_stay_integers(fn: str, isa: str) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(-20, 20, (4, 9)), rng.integers(1, 7, (4, 9)) * rng.choice([-1, 1], (4, 9))
    plan = TinyPlan()
    dtype = "bool" if fn in COMPARE else "i32"
    (y,) = program(plan, [plan.per_token(a, "i32"), plan.per_token(b, "i32")], [[fn, ["in", 0], ["in", 1]]], (9,), dtype)
    assert np.array_equal(plan.run(y, 4, isa=isa), {**BINARY, **COMPARE}[fn](a, b).astype(np.float32))


def test_a_chain_with_constants_where_and_logic_is_one_program() -> None:
    x, y = random(0, 6, 40), random(1, 6, 40)
    code = [
        ["mul", ["in", 0], ["const", 2.5]],
        ["gt", ["reg", 0], ["in", 1]],
        ["le", ["in", 1], ["const", 1.0]],
        ["and", ["reg", 1], ["reg", 2]],
        ["not", ["reg", 3]],
        ["where", ["reg", 4], ["reg", 0], ["const", -1.0]],
        ["add", ["reg", 5], ["in", 1]],
    ]
    plan = TinyPlan()
    first, second = program(plan, [plan.per_token(x), plan.per_token(y)], code, (40,), num_outputs=2)
    scaled = x * np.float32(2.5)
    chosen = np.where(~((scaled > y) & (y <= 1)), scaled, np.float32(-1))
    assert np.array_equal(plan.run(second, 6, num_threads=2), chosen + y)
    plan.calls = plan.calls[: [c["op"] for c in plan.calls].index("ew.program") + 1]
    assert np.array_equal(plan.run(first, 6), chosen)


def test_inputs_broadcast_by_stride_zero() -> None:
    x, row = random(0, 7, 5, 3), random(1, 5)
    plan = TinyPlan()
    w = {**plan.weight(row), "dims": ["num_tokens", 5, 3], "strides": [0, 1, 0], "offset": 0}
    (y,) = program(plan, [plan.per_token(x), w], [["mul", ["in", 0], ["in", 1]]], (5, 3))
    assert np.array_equal(plan.run(y, 7), x * row[:, None])


def test_i32_and_f32_meet_as_f32() -> None:
    plan = TinyPlan(vocab_size=50)
    positions = {**plan.input("position_ids"), "dims": ["num_tokens", 4], "strides": [1, 0]}
    frequencies = np.array([1.0, 0.1, 0.01, 0.001], np.float32)
    w = {**plan.weight(frequencies), "dims": ["num_tokens", 4], "strides": [0, 1], "offset": 0}
    (y,) = program(plan, [positions, w], [["mul", ["in", 0], ["in", 1]], ["cos", ["reg", 0]]], (4,))
    angles = np.arange(50, dtype=np.float32)[:, None] * frequencies
    np.testing.assert_allclose(plan.run(y, 50), np.cos(angles.astype(np.float64)), atol=1e-7)


HARD = np.concatenate([np.linspace(-120, 120, 4001), np.linspace(-1, 1, 2001), 10.0 ** np.linspace(-30, -1, 500)]).astype(np.float32)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("fn", ["exp", "tanh", "erf", "sigmoid"])
def test_the_hard_functions_are_right_to_two_ulp_everywhere(fn: str, isa: str) -> None:
    with np.errstate(over="ignore"):
        expected = UNARY[fn](HARD.astype(np.float64))
        as_f32 = expected.astype(np.float32)
    plan = TinyPlan()
    (y,) = program(plan, [plan.per_token(HARD[None])], [[fn, ["in", 0]]], (len(HARD),))
    out = plan.run(y, 1, isa=isa)[0]
    finite = np.isfinite(as_f32)
    assert np.array_equal(out[~finite], as_f32[~finite])
    ulp = np.maximum(np.spacing(np.abs(as_f32[finite])).astype(np.float64), 2e-38)  # subnormal results may be flushed
    assert np.max(np.abs(out[finite] - expected[finite]) / ulp) <= 2.5


@pytest.mark.parametrize("fn", ["sin", "cos"])
def test_sine_and_cosine_are_right_for_large_positions(fn: str) -> None:
    x = np.concatenate([np.linspace(-1e6, 1e6, 3001), np.linspace(0, 10, 1000), [1e7, 1e10, 3e30]]).astype(np.float32)
    plan = TinyPlan()
    (y,) = program(plan, [plan.per_token(x[None])], [[fn, ["in", 0]]], (len(x),))
    expected = UNARY[fn](x.astype(np.float64))
    keep = np.abs(x) < 1e9  # beyond, numpy's own float64 argument reduction is checked on the exact float32 value all the same
    ulp = np.spacing(np.abs(expected[keep]).astype(np.float32)).astype(np.float64)
    assert np.max(np.abs(plan.run(y, 1)[0][keep] - expected[keep]) / np.maximum(ulp, 1e-9)) <= 2


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("fn", [*UNARY])
def test_not_a_number_stays_one(fn: str, isa: str) -> None:
    plan = TinyPlan()
    nan = np.full((1, 11), np.nan, np.float32)
    (y,) = program(plan, [plan.per_token(nan)], [[fn, ["in", 0]]], (11,))
    assert np.isnan(plan.run(y, 1, isa=isa)).all()


@pytest.mark.parametrize("isa", ISAS)
def test_an_element_does_not_depend_on_its_place(isa: str) -> None:
    values = random(5, 1, 1)[0, 0]
    plan = TinyPlan()
    x = np.full((3, 29), values, np.float32)
    (y,) = program(plan, [plan.per_token(x)], [["exp", ["in", 0]], ["tanh", ["reg", 0]], ["gelu", ["reg", 1]]], (29,))
    assert len(np.unique(plan.run(y, 3, isa=isa))) == 1
