"""An activation that the model wrote out becomes the one op that names it: silu, gelu, gelu_tanh, softplus, sigmoid …

A candidate is a small pointwise expression of one value and of numbers. It is recognised by what it computes, not by how it is spelled:
it must agree with the named function on probe points over the whole range that matters, so the many spellings of gelu need no list.

before:
    input %x: f32[num_tokens, 8]
    %s = ew.sigmoid(%x)
    %y = ew.mul(%x, %s)
    return %y
after:
    input %x: f32[num_tokens, 8]
    %y = ew.silu(%x)
    return %y

before:
    input %x: f32[num_tokens, 8]
    %h = ew.mul(%x, 0.5)
    %a = ew.pow(%x, 3.0)
    %b = ew.mul(%a, 0.044715)
    %c = ew.add(%x, %b)
    %d = ew.mul(%c, 0.7978845608028654)
    %e = ew.tanh(%d)
    %f = ew.add(%e, 1.0)
    %y = ew.mul(%h, %f)
    return %y
after:
    input %x: f32[num_tokens, 8]
    %y = ew.gelu_tanh(%x)
    return %y
"""

from __future__ import annotations

import numpy as np

from ..ir.graph import Graph, Node, Value
from ..ir.ops import POINTWISE
from ..ir.reference import UNARY, pointwise
from ..ir.rewrite import Inputs, Replacement, Rewriter, rewrite

MAX_NODES = 12  # the longest spelling of gelu_tanh has 9
_ROOTS = frozenset(f"ew.{name}" for name in ("mul", "div", "add", "log", "log1p", "where"))
_PROBES = np.concatenate([np.linspace(-8.03, 8.01, 41), [1e-3, -1e-3, 20.5, -20.5, 60.0, -60.0, 1e3, -1e3, 1e5, -1e5]])
_TOLERANCE = 2e-6  # of 1 + |value|; gelu and gelu_tanh differ by 4.7e-4
_NAMED = {name: UNARY[name](_PROBES) for name in ("silu", "gelu", "gelu_tanh", "softplus", "sigmoid", "relu")}


def run(graph: Graph) -> Graph:
    return rewrite(graph, _rule)


def _rule(rw: Rewriter, node: Node, inputs: Inputs) -> Replacement:
    if node.op not in _ROOTS or node.output.dtype != "f32" or all(rw.is_fixed(value) for value in inputs):
        return None
    expression = _expression(rw, node, inputs)
    for leaf in _leaves(rw, expression, inputs):
        if leaf.dims != node.output.dims or leaf.dtype != "f32":
            continue
        values = _evaluate(rw, node, inputs, leaf)
        if values is None:
            continue
        for name, expected in _NAMED.items():
            if np.all(np.abs(values - expected) <= _TOLERANCE * (1 + np.abs(expected))):
                return rw.add(f"ew.{name}", [leaf])
    return None


def _expression(rw: Rewriter, node: Node, inputs: Inputs) -> list[Node]:
    """The pointwise nodes above the root, nearest first, at most MAX_NODES."""
    found: dict[Node, None] = {}
    queue = list(inputs)
    while queue and len(found) < MAX_NODES:
        producer = rw.producer(queue.pop(0), *POINTWISE)
        if producer is not None and producer not in found:
            found[producer] = None
            queue.extend(producer.inputs)
    return list(found)


def _leaves(rw: Rewriter, expression: list[Node], inputs: Inputs) -> list[Value]:
    """Values that the expression may be a function of, nearest first."""
    operands = [value for values in (inputs, *(node.inputs for node in expression)) for value in values]
    return [value for value in dict.fromkeys(operands) if value is not None and not rw.is_fixed(value)]


def _evaluate(rw: Rewriter, root: Node, inputs: Inputs, leaf: Value) -> np.ndarray | None:
    """The root at the probe points, as a function of `leaf` alone; None if it reads anything else."""
    known: dict[Value, np.ndarray | float] = {leaf: _PROBES}
    budget = [MAX_NODES]

    def value_of(value: Value | None) -> np.ndarray | float | None:
        assert value is not None
        if value in known:
            return known[value]
        number = rw.scalar(value)
        if number is not None:
            return number
        node = rw.producer(value, *POINTWISE)
        budget[0] -= 1
        if node is None or budget[0] < 0:
            return None
        result = apply(node.op, node.inputs)
        if result is not None:
            known[value] = result
        return result

    def apply(op: str, operands: Inputs) -> np.ndarray | None:
        values = []
        for operand in operands:
            value = value_of(operand)
            if value is None:
                return None
            values.append(value)
        return pointwise(op.removeprefix("ew."))(values, {})

    return apply(root.op, inputs)
