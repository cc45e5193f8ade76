"""tensor.* and reduce.* against numpy, over types, axes and strides."""

import numpy as np
import pytest

from .tiny_plan import TinyPlan, View, dense


def random(seed: int, *dims: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(dims).astype(np.float32)


def integers(seed: int, high: int, *dims: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, high, dims)


def permuted(view: View, perm: tuple[int, ...]) -> View:
    return {**view, "dims": [view["dims"][i] for i in perm], "strides": [view["strides"][i] for i in perm]}


@pytest.mark.parametrize("perm", [(0, 1, 2), (0, 2, 1)])
@pytest.mark.parametrize("dtype", ["f32", "i32", "bool"])
def test_copy_reorders_any_strides(dtype: str, perm: tuple[int, ...]) -> None:
    x = integers(0, 2 if dtype == "bool" else 100, 6, 4, 5)
    plan = TinyPlan()
    source = permuted(plan.per_token(x, dtype), perm)
    y = plan.call("tensor.copy", [source], [plan.buffer(source["dims"], dtype)])
    assert np.array_equal(plan.run(y, 6, num_threads=2), x.transpose(perm))


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ("f32", "i32", [-2, 0, 0, 3]),
        ("f32", "bool", [1, 1, 0, 1]),
        ("i32", "f32", [-2, 0, 0, 3]),
        ("i32", "bool", [1, 0, 0, 1]),
        ("bool", "f32", [1, 1, 0, 1]),
    ],
)
def test_copy_casts_between_types(source: str, target: str, expected: list[int]) -> None:
    values = np.array([[-2.5, 0.5, 0.0, 3.9]], np.float32)
    plan = TinyPlan()
    x = plan.per_token(values, source)
    y = plan.call("tensor.copy", [x], [plan.buffer(["num_tokens", 4], target)])
    assert plan.run(y, 1)[0].tolist() == expected


@pytest.mark.parametrize("dim", [1, 2, -1])
def test_gather_picks_along_its_dim(dim: int) -> None:
    x = random(0, 5, 6, 7)
    index = integers(1, 6, 5, *((3, 7) if dim == 1 else (6, 3)))
    plan = TinyPlan()
    y = plan.buffer(["num_tokens", *index.shape[1:]])
    plan.call("tensor.gather", [plan.per_token(x), plan.per_token(index, "i32")], [y], {"dim": dim})
    assert np.array_equal(plan.run(y, 5, num_threads=2), np.take_along_axis(x, index, axis=dim))


def test_scatter_writes_a_scalar_or_a_source() -> None:
    x, src = random(0, 5, 8), random(1, 5, 3)
    index = np.stack([np.random.default_rng(i).permutation(8)[:3] for i in range(5)])
    for source in (src, None):
        plan = TinyPlan()
        y = plan.buffer(["num_tokens", 8])
        values = plan.weight(np.array(-1.0, np.float32)) if source is None else plan.per_token(source)
        plan.call("tensor.scatter", [plan.per_token(x), plan.per_token(index, "i32"), values], [y], {"dim": 1})
        expected = x.copy()
        np.put_along_axis(expected, index, -1.0 if source is None else source, axis=1)
        assert np.array_equal(plan.run(y, 5), expected)


def test_gather_rows_takes_rows_in_any_order() -> None:
    x, rows = random(0, 5, 3, 4), integers(1, 5, 5)
    plan = TinyPlan()
    y = plan.buffer(["num_tokens", 3, 4])
    index = plan.per_token(rows[:, None], "i32")
    plan.call("tensor.gather_rows", [plan.per_token(x), {**index, "dims": ["num_tokens"], "strides": index["strides"][:1]}], [y])
    assert np.array_equal(plan.run(y, 5), x[rows])


@pytest.mark.parametrize("largest", [True, False])
def test_topk_is_sorted_and_takes_the_lowest_index_of_equals(largest: bool) -> None:
    x = integers(0, 4, 20, 9).astype(np.float32)
    order = np.argsort(-x if largest else x, axis=1, kind="stable")[:, :4]
    for which, expected in ((0, np.take_along_axis(x, order, 1)), (1, order)):
        plan = TinyPlan()
        outputs = [plan.buffer(["num_tokens", 4]), plan.buffer(["num_tokens", 4], "i32")]
        plan.call("tensor.topk", [plan.per_token(x)], outputs, {"k": 4, "dim": 1, "largest": largest})
        assert np.array_equal(plan.run(outputs[which], 20), expected)


@pytest.mark.parametrize(
    ("a_dims", "b_dims"), [((3, 4, 5), (3, 5, 2)), ((3, 4, 5), (5, 2)), ((4, 5), (3, 5, 2)), ((4, 5), (5,)), ((3, 1, 5), (1, 5, 6))]
)
def test_matmul_broadcasts_like_numpy(a_dims: tuple[int, ...], b_dims: tuple[int, ...]) -> None:
    a, b = random(0, *a_dims), random(1, *b_dims)
    expected = a.astype(np.float64) @ b.astype(np.float64)
    plan = TinyPlan()
    fixed = plan.buffer(expected.shape)
    plan.call("tensor.matmul", [plan.weight(a), plan.weight(b)], [fixed])
    spread = {**fixed, "dims": ["num_tokens", *expected.shape], "strides": [0, *dense(expected.shape)]}
    y = plan.call("tensor.copy", [spread], [plan.buffer(["num_tokens", *expected.shape])])
    np.testing.assert_allclose(plan.run(y, 2, num_threads=2), np.stack([expected] * 2), atol=1e-5)


def test_matmul_of_rows_is_local_to_a_token() -> None:
    a, b = random(0, 6, 3, 4), random(1, 6, 4, 5)
    plan = TinyPlan()
    y = plan.buffer(["num_tokens", 3, 5])
    plan.call("tensor.matmul", [plan.per_token(a), plan.per_token(b)], [y])
    np.testing.assert_allclose(plan.run(y, 6), a @ b, atol=1e-5)


@pytest.mark.parametrize("dtype", ["f32", "i32"])
def test_cumsum_adds_in_index_order(dtype: str) -> None:
    x = integers(0, 50, 4, 3, 6)
    plan = TinyPlan()
    y = plan.buffer(["num_tokens", 3, 6], dtype)
    plan.call("tensor.cumsum", [plan.per_token(x, dtype)], [y], {"dim": 2})
    assert np.array_equal(plan.run(y, 4), np.cumsum(x, axis=2))


@pytest.mark.parametrize("dtype", ["f32", "i32", "bool"])
def test_full_and_iota_fill_their_dims(dtype: str) -> None:
    plan = TinyPlan(vocab_size=3)
    y = plan.buffer(["num_tokens", 4], dtype)
    plan.call("tensor.full", [], [y], {"value": 1.0})
    assert (plan.run(y, 3) == 1).all()
    if dtype != "bool":
        plan = TinyPlan(vocab_size=3)
        y = plan.buffer(["num_tokens", 4, 2], dtype)
        plan.call("tensor.iota", [], [y], {"dim": 1})
        assert np.array_equal(plan.run(y, 3), np.broadcast_to(np.arange(4)[:, None], (3, 4, 2)))


@pytest.mark.parametrize("keepdim", [True, False])
@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("name", ["sum", "mean", "max", "min", "argmax"])
def test_reductions_lose_or_keep_their_dim(name: str, dim: int, keepdim: bool) -> None:
    x = random(0, 5, 6, 7)
    expected = getattr(np, name)(x.astype(np.float64), axis=dim, keepdims=keepdim)
    plan = TinyPlan()
    y = plan.buffer(["num_tokens", *expected.shape[1:]], "i32" if name == "argmax" else "f32")
    plan.call(f"reduce.{name}", [plan.per_token(x)], [y], {"dim": dim, "keepdim": keepdim})
    np.testing.assert_allclose(plan.run(y, 5, num_threads=2), expected, rtol=1e-6, atol=1e-6)
