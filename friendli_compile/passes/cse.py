"""Common subexpressions are computed once: nodes with the same op, operands and attributes, and constants with the same data.

before:
    input %x: f32[num_tokens, 3]
    %a = ew.exp(%x)
    %b = ew.exp(%x)
    %y = ew.add(%a, %b)
    return %y
after:
    input %x: f32[num_tokens, 3]
    %a = ew.exp(%x)
    %y = ew.add(%a, %a)
    return %y
"""

from __future__ import annotations

import hashlib

from ..ir.graph import Graph, Node, Value
from ..ir.rewrite import Inputs, Replacement, Rewriter, rewrite_with

COMMUTATIVE = frozenset(f"ew.{name}" for name in ("add", "mul", "minimum", "maximum", "eq", "ne", "and", "or"))


def run(graph: Graph) -> Graph:
    rw = Rewriter(graph)
    _share_constants(rw)
    known: dict[tuple, tuple[Value, ...]] = {}

    def rule(rw: Rewriter, node: Node, inputs: Inputs) -> Replacement:
        if node.op == "attn.paged":  # writes the KV cache
            return None
        operands = tuple(id(value) for value in inputs)
        key = (node.op, tuple(sorted(operands)) if node.op in COMMUTATIVE else operands, tuple(node.attrs.items()))
        if key in known:
            return known[key] if len(known[key]) > 1 else known[key][0]
        known[key] = node.outputs
        return None

    return rewrite_with(rw, rule)


def _share_constants(rw: Rewriter) -> None:
    by_data: dict[tuple, Value] = {}
    for value, data in rw.graph.constants.items():
        key = (value.dtype, value.dims, hashlib.sha256(data.tobytes()).digest())
        rw.mapping[value] = by_data.setdefault(key, value)
