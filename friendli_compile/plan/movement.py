"""Weight expressions that only place elements, run backwards: from the values of a packed weight to those of its parameters.

    expression   concat(q, k, permute(v))          root ─▶ {q: …, k: …, v: …}

Quantization rounds the packed matrix, so the parameters that it stands for are found backwards. Elements that the expression does not read
(a slice leaves some out) come back as NaN. Only an expression that places each element at most once can be run backwards: `is_invertible`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from ..ir.graph import Node, Value
from ..ir.ops import lookup
from .expression import Expression

Array = np.ndarray
UNSET = np.nan


def is_invertible(expression: Expression) -> bool:
    """Whether every element of the parameters is placed at most once, by ops that can be run backwards."""
    nodes = expression.graph.nodes
    if expression.graph.constants or any(node.op not in _BACKWARDS for node in nodes):
        return False
    uses = Counter(value for node in nodes for value in node.operands)
    if all(count == 1 for count in uses.values()):
        return True
    root = np.arange(np.prod(expression.root.dims), dtype=np.float64).reshape(expression.root.dims)  # type: ignore[arg-type]
    return bool(np.array_equal(_forwards(expression, params_of(expression, root)), root))


def params_of(expression: Expression, root: Array) -> dict[str, Array]:
    """The parameters by name, from the value of the root (any float dtype); NaN where the root says nothing."""
    arrays: dict[Value, Array] = {expression.root: root}
    for node in reversed(expression.graph.nodes):
        if node.output not in arrays:
            continue
        results = _BACKWARDS[node.op](node, arrays.pop(node.output))
        for value, array in zip(node.operands, results, strict=True):
            arrays[value] = np.where(np.isnan(array), arrays[value], array) if value in arrays else array
    return {param.name: arrays[param] for param in expression.params}


def _forwards(expression: Expression, params: dict[str, Array]) -> Array:
    arrays: dict[Value, Array] = {param: params[param.name] for param in expression.params}
    for node in expression.graph.nodes:
        reference = lookup(node.op).reference
        assert reference is not None
        arrays[node.output] = np.asarray(reference([arrays[value] for value in node.operands], dict(node.attrs)))
    return arrays[expression.root]


def _dims(node: Node) -> tuple[int, ...]:
    return tuple(int(dim) for dim in next(node.operands).dims)


def _reshape(node: Node, y: Array) -> Sequence[Array]:
    return [y.reshape(_dims(node))]


def _permute(node: Node, y: Array) -> Sequence[Array]:
    return [np.transpose(y, np.argsort(node.attrs["perm"]))]  # type: ignore[arg-type]


def _slice(node: Node, y: Array) -> Sequence[Array]:
    x = np.full(_dims(node), UNSET, y.dtype)
    attrs = node.attrs
    x[(slice(None),) * int(attrs["dim"]) + (slice(attrs["start"], attrs["stop"], attrs["step"]),)] = y  # type: ignore[arg-type]
    return [x]


def _concat(node: Node, y: Array) -> Sequence[Array]:
    dim = int(node.attrs["dim"])  # type: ignore[arg-type]
    ends = np.cumsum([int(value.dims[dim]) for value in node.operands])
    return np.split(y, ends[:-1], axis=dim)


_BACKWARDS: dict[str, Callable[[Node, Array], Sequence[Array]]] = {
    "tensor.reshape": _reshape,
    "tensor.permute": _permute,
    "tensor.slice": _slice,
    "tensor.concat": _concat,
}
