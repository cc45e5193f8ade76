"""A residual sum and the norm that reads it are one op with two results.

before:
    input %x: f32[num_tokens, 8]
    input %r: f32[num_tokens, 8]
    param %w: f32[8]
    %s = ew.add(%r, %x)
    %n = nn.rms_norm(%s, %w) {eps=1e-05}
    %y = ew.mul(%s, %n)
    return %y
after:
    input %x: f32[num_tokens, 8]
    input %r: f32[num_tokens, 8]
    param %w: f32[8]
    %s, %n = nn.add_rms_norm(%r, %x, %w) {eps=1e-05}
    %y = ew.mul(%s, %n)
    return %y
"""

from __future__ import annotations

from ..ir.graph import Graph, Node
from ..ir.rewrite import Inputs, Replacement, Rewriter, rewrite, sorted_by_dependence, use_lists

_WITH_ADD = {"nn.rms_norm": "nn.add_rms_norm", "nn.layer_norm": "nn.add_layer_norm"}


def run(graph: Graph) -> Graph:
    graph = sorted_by_dependence(graph)  # so that the norm's weight is there when the sum is reached
    uses = use_lists(graph)

    def rule(rw: Rewriter, node: Node, inputs: Inputs) -> Replacement:
        if node.op != "ew.add" or any(value.dims != node.output.dims or rw.is_fixed(value) for value in inputs if value):
            return None
        norm = next((user for user in uses[node.output] if _can_join(rw, user, node)), None)
        if norm is None:
            return None
        params = [None if value is None else rw.mapping[value] for value in norm.inputs[1:]]
        rw.source = norm.source
        total, normed = rw.add(_WITH_ADD[norm.op], [*inputs, *params], dict(norm.attrs))
        rw.mapping[norm.output] = normed
        return total

    return rewrite(graph, rule)


def _can_join(rw: Rewriter, user: Node, add: Node) -> bool:
    if user.op not in _WITH_ADD or user.inputs[0] is not add.output:
        return False
    return all(value is None or value in rw.mapping for value in user.inputs[1:])
