"""Translations of torch ops that make tensors or look elements up by index. A table: op name → function of a Call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..ir.graph import Value
from .aten_call import Call, EmptyValue

Result = Any  # Value, EmptyValue, or a list of Values
Translation = Callable[[Call], Result]


# --- making


def _full(call: Call) -> Value:
    name = call.name.removeprefix("new_").removesuffix("_like")
    given = call.args.get("fill_value", call.args.get("s", call.args.get("value")))
    value = {"zeros": 0, "ones": 1}.get(name, given)
    if isinstance(value, Value):
        data = call.constant_of(value)
        return call.expand(call.cast(call.reshape(value, (1,) * len(call.dims)), call.dtype), call.dims) if data is None else \
            call.filled(call.dims, data.item(), call.dtype)  # fmt: skip
    if not isinstance(value, bool | int | float):
        raise call.unsupported(f"{call.name} fills with {value!r}, which has no translation")
    return call.filled(call.dims, value, call.dtype)


def _empty(call: Call) -> EmptyValue:
    return EmptyValue(call.dims)


def _arange(call: Call) -> Value:
    start, end, step = call.args.get("start", 0), call.args["end"], call.args.get("step", 1)
    if call.dims == ("num_tokens",):
        if start != 0 or step != 1:
            raise call.unsupported("a range as long as the packed batch does not start at 0")
        return call.add("tensor.iota", dims=("num_tokens",), dim=0, dtype=call.dtype)
    if not all(isinstance(bound, int | float) for bound in (start, end, step)):
        raise call.unsupported("a range depends on the number of tokens")
    return call.builder.constant(np.arange(start, end, step).astype(np.float32 if call.dtype == "f32" else np.int32))


# --- looking up


def _embedding(call: Call) -> Value:
    return _lookup(call, call.value("weight"), call.value("indices"))


def _lookup(call: Call, table: Value, ids: Value) -> Value:
    """Rows of a table `[num_rows, …]` by ids of any dims."""
    rows = call.static(table, 0)
    width, rest = 1, table.dims[1:]
    for size in rest:
        assert isinstance(size, int)
        width *= size
    found = call.add("nn.embedding", call.reshape(table, (rows, width)), ids)
    return call.reshape(found, (*ids.dims, *rest))


def _index(call: Call) -> Value:
    """x[:, idx]: one index; a constant one cuts, a computed one looks up rows of a table."""
    x = call.value("self")
    given = [(dim, index) for dim, index in enumerate(call.args["indices"]) if index is not None]
    if len(given) != 1:
        raise call.unsupported(f"indexing with {len(given)} index tensors has no translation")
    dim, index = given[0][0], call.real(given[0][1])
    data = call.constant_of(index)
    if data is not None and data.ndim == 1 and data.dtype != np.bool_:
        return _take(call, x, dim, data)
    if dim != 0 or index.dtype != "i32" or not isinstance(x.dims[0], int):
        raise call.unsupported("indexing by a computed tensor is only possible for rows of a table")
    return _lookup(call, x, index)


def _index_select(call: Call) -> Value:
    x, index = call.value("self"), call.value("index")
    data = call.constant_of(index)
    if data is None:
        if call.dim(x) == 0 and isinstance(x.dims[0], int):
            return _lookup(call, x, index)
        raise call.unsupported("index_select by a computed index is only possible for rows of a table")
    return _take(call, x, call.dim(x), data)


def _take(call: Call, x: Value, dim: int, index: np.ndarray) -> Value:
    """x[..., index, ...] for a constant 1-d index, as runs of slices."""
    size = call.static(x, dim)
    wanted = [int(i) % size for i in index]
    runs: list[list[int]] = []
    for i in wanted:
        if runs and i == runs[-1][1]:
            runs[-1][1] = i + 1
        else:
            runs.append([i, i + 1])
    return call.concat([call.slice(x, dim, start, stop) for start, stop in runs], dim)


def _gather(call: Call) -> Value:
    x = call.value("self")
    return call.add("tensor.gather", x, call.value("index"), dim=call.dim(x))


def _scatter(call: Call) -> Value:
    if call.args.get("reduce") is not None:
        raise call.unsupported("scatter with a reduction has no translation")
    x = call.value("self")
    src = call.args["src"] if "src" in call.args else call.args["value"]
    return call.add("tensor.scatter", x, call.value("index"), call.cast(call.real(src), x.dtype), dim=call.dim(x))


def _topk(call: Call) -> Result:
    x = call.value("self")
    dim = call.dim(x)
    k = call.static(x, dim) if call.name == "sort" else int(call.args["k"])
    largest = bool(call.args.get("descending", False)) if call.name == "sort" else bool(call.args.get("largest", True))
    return list(call.add("tensor.topk", x, k=k, dim=dim, largest=largest))


def _one_hot(call: Call) -> Value:
    index = call.value("self")
    num_classes = call.dims[-1]
    assert isinstance(num_classes, int)
    classes = call.builder.constant(np.arange(num_classes, dtype=np.int32))
    return call.cast(call.add("ew.eq", call.reshape(index, (*index.dims, 1)), classes), call.dtype)


TRANSLATIONS: dict[str, Translation] = {
    **dict.fromkeys(("full", "zeros", "ones", "scalar_tensor", "fill"), _full),
    **dict.fromkeys(("full_like", "zeros_like", "ones_like", "new_full", "new_zeros", "new_ones"), _full),
    **dict.fromkeys(("empty", "empty_like", "new_empty"), _empty),
    "arange": _arange, "embedding": _embedding, "index": _index, "index_select": _index_select, "gather": _gather, "scatter": _scatter,
    "topk": _topk, "sort": _topk, "one_hot": _one_hot,
}  # fmt: skip
