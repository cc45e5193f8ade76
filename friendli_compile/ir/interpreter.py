"""Runs any graph on the numpy references: the oracle of passes, planner and kernels. Slow and plain on purpose.

    logits, = interpret(graph, {"input_ids": ids, "position_ids": positions}, params, BatchDescription.of_lengths([5, 17, 11]))

Works on both forms (as traced, token-major). Named dims are bound by the inputs. A value is dropped after its last use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .attention import BatchDescription, paged_attention
from .graph import Graph, GraphError, Node, Value
from .ops import lookup
from .reference import NUMPY_DTYPES

Array = np.ndarray
Params = Mapping[str, Array] | Callable[[str], Array]
Observer = Callable[[Value, Array], None]


def interpret(
    graph: Graph,
    inputs: Mapping[str, Array],
    params: Params,
    batch: BatchDescription | None = None,
    observe: Observer | None = None,
) -> list[Array]:
    """The outputs of the graph. `observe(value, array)` is called for every computed value."""
    bindings: dict[str, int] = {}
    env = {value: _bound(value, inputs, bindings) for value in graph.inputs}
    env.update(graph.constants)
    read = params if callable(params) else params.__getitem__
    last_use = _last_uses(graph)
    by_name = set(graph.params)
    for position, node in enumerate(graph.nodes):
        for value in node.operands:
            if value in by_name and value not in env:
                env[value] = _checked_param(value, read(value.name))
        arrays = run_node(node, [None if v is None else env[v] for v in node.inputs], bindings, batch)
        for value, array in zip(node.outputs, arrays, strict=True):
            env[value] = array
            if observe is not None:
                observe(value, array)
        for value in (*node.operands, *node.outputs):
            if last_use.get(value, position) == position:
                env.pop(value, None)
    return [env[v] if v in env else _checked_param(v, read(v.name)) for v in graph.outputs]


def evaluate(graph: Graph, value: Value, params: Params) -> Array:
    """The array of a value that depends on parameters and constants only."""
    producers = graph.producers()
    needed: list[Node] = []
    seen: set[Value] = set()
    stack = [(value, False)]
    while stack:
        current, is_ready = stack.pop()
        node = producers.get(current)
        if node is None or (current in seen and not is_ready):
            continue
        if is_ready:
            needed.append(node)
            continue
        seen.update(node.outputs)
        stack.append((current, True))
        stack.extend((operand, False) for operand in node.operands)
    part = Graph((), graph.params, graph.constants, tuple(needed), (value,))
    for leaf in (operand for node in needed for operand in node.operands if operand in graph.inputs):
        raise GraphError(f"{value} depends on the input {leaf}, so it has no fixed value")
    return interpret(part, {}, params)[0]


def run_node(node: Node, operands: Sequence[Any], bindings: Mapping[str, int], batch: BatchDescription | None = None) -> tuple[Array, ...]:
    """The outputs of one node, contiguous, in the dtypes of the graph."""
    attrs = {name: _resolved(value, bindings) for name, value in node.attrs.items()}
    reference = lookup(node.op).reference
    if reference is not None:
        results = reference(operands, attrs)
    elif batch is None:
        raise GraphError(f"{node.op} needs a batch description", str(node.source), "pass BatchDescription.of_lengths([...])")
    else:
        results = paged_attention(tuple(operands), attrs, batch)
    arrays = results if isinstance(results, tuple) else (results,)
    return tuple(_checked(value, array, node, bindings) for value, array in zip(node.outputs, arrays, strict=True))


def _resolved(value: Any, bindings: Mapping[str, int]) -> Any:
    if isinstance(value, tuple):
        return tuple(bindings.get(v, v) if isinstance(v, str) else v for v in value)
    return value


def _checked(value: Value, array: Any, node: Node, bindings: Mapping[str, int]) -> Array:
    result: Array = np.asarray(array, dtype=NUMPY_DTYPES[value.dtype])
    expected = _resolved(value.dims, bindings)
    if result.shape != expected:
        raise GraphError(
            f"{node.op} computed {list(result.shape)} for {value}", str(node.source), "the shape rule and the reference disagree"
        )
    return result


def _bound(value: Value, inputs: Mapping[str, Array], bindings: dict[str, int]) -> Array:
    """The input array, after checking it against (and binding) its dims."""
    if value.name not in inputs:
        raise GraphError(f"input '{value.name}' is missing; given are {sorted(inputs)}")
    array: Array = np.asarray(inputs[value.name], dtype=NUMPY_DTYPES[value.dtype])
    if array.ndim != len(value.dims):
        raise GraphError(f"input {value} got an array of shape {list(array.shape)}")
    for dim, size in zip(value.dims, array.shape, strict=True):
        expected = bindings.setdefault(dim, size) if isinstance(dim, str) else dim
        if expected != size:
            raise GraphError(f"input {value} got an array of shape {list(array.shape)}, expected {dim}={expected}")
    return array


def _checked_param(value: Value, array: Array) -> Array:
    if array.shape != value.dims:
        raise GraphError(f"parameter '{value.name}' has shape {list(array.shape)}, expected {list(value.dims)}")
    return np.asarray(array, dtype=NUMPY_DTYPES[value.dtype])


def _last_uses(graph: Graph) -> dict[Value, int]:
    """Index of the last node that reads each value; outputs are kept to the end."""
    uses = {value: position for position, node in enumerate(graph.nodes) for value in (*node.outputs, *node.operands)}
    return uses | {value: len(graph.nodes) for value in (*graph.outputs, *graph.constants)}
