"""Logits are computed only for the rows that want them, and so is everything above that is local to a token.

Adds the input `logit_rows [num_logits]`. A value needs all rows if attention reads it; any other value above the logits is computed for
the wanted rows only. At the border between the two stands a `tensor.gather_rows`: after the last attention, so that the last MLP runs on
few rows.

before:
    input %x: f32[num_tokens, 8]
    param %w: f32[4, 8]
    %k = tensor.reshape(%x) {dims=["num_tokens", 1, 8]}
    %a = attn.paged(%k, %k, %k, _, _) {scale=1.0, kv_layer=0}
    %b = tensor.reshape(%a) {dims=["num_tokens", 8]}
    %h = ew.add(%b, %x)
    %y = nn.linear(%h, %w, _)
    return %y
after:
    input %x: f32[num_tokens, 8]
    input %logit_rows: i32[num_logits]
    param %w: f32[4, 8]
    %k = tensor.reshape(%x) {dims=["num_tokens", 1, 8]}
    %a = attn.paged(%k, %k, %k, _, _) {scale=1.0, kv_layer=0}
    %g = tensor.gather_rows(%a, %logit_rows)
    %b = tensor.reshape(%g) {dims=["num_logits", 8]}
    %r = tensor.gather_rows(%x, %logit_rows)
    %h = ew.add(%b, %r)
    %y = nn.linear(%h, %w, _)
    return %y
"""

from __future__ import annotations

from typing import Any

from ..ir.graph import Attr, Graph, GraphError, Node, Value
from ..ir.rewrite import Inputs, Replacement, Rewriter, rewrite_with

TOKENS, LOGITS, ROWS = "num_tokens", "num_logits", "logit_rows"


def run(graph: Graph) -> Graph:
    if any(value.name == ROWS for value in graph.inputs):
        return graph
    need_all = _values_of_which_all_rows_are_needed(graph)
    rw = Rewriter(graph)
    rows = rw.builder.input(ROWS, (LOGITS,), "i32")
    gathered: dict[Value, Value] = {}

    def on_rows(value: Value | None) -> Value | None:
        """The wanted rows of a value of the new graph."""
        if value is None or TOKENS not in value.dims:
            return value
        if value not in gathered:
            gathered[value] = rw.add("tensor.gather_rows", [value, rows])
        return gathered[value]

    def rule(rw: Rewriter, node: Node, inputs: Inputs) -> Replacement:
        if not any(TOKENS in value.dims for value in node.outputs) or any(value in need_all for value in node.outputs):
            return None
        attrs: dict[str, Any] = {name: _on_rows(value) for name, value in node.attrs.items()}
        return rw.add(node.op, [on_rows(value) for value in inputs], attrs)

    rewritten = rewrite_with(rw, rule)
    for value in rewritten.outputs:
        if TOKENS in value.dims:
            raise GraphError(f"the output {value} is what attention reads or makes, not logits above it")
    return rewritten


def _values_of_which_all_rows_are_needed(graph: Graph) -> set[Value]:
    """What attention reads or writes, and everything above it."""
    needed: set[Value] = set()
    for node in reversed(graph.nodes):
        if node.op == "attn.paged":
            needed.update(node.outputs)
        if any(value in needed for value in node.outputs):
            needed.update(node.operands)
    return needed


def _on_rows(value: Attr) -> Attr:
    """An attribute (dims) with the rows renamed."""
    if isinstance(value, tuple):
        return tuple(_on_rows(v) for v in value)
    return LOGITS if value == TOKENS else value
