"""A matrix product with a weight is `nn.linear`, whatever the model wrote: matmul with [K, N] weights, an added bias.

before:
    input %x: f32[num_tokens, 8]
    param %w: f32[8, 4]
    param %b: f32[4]
    %m = tensor.matmul(%x, %w)
    %y = ew.add(%m, %b)
    return %y
after:
    input %x: f32[num_tokens, 8]
    param %w: f32[8, 4]
    param %b: f32[4]
    %t = tensor.permute(%w) {perm=[1, 0]}
    %y = nn.linear(%x, %t, %b)
    return %y
"""

from __future__ import annotations

from ..ir.graph import Graph, Node
from ..ir.rewrite import Inputs, Replacement, Rewriter, rewrite, use_lists


def run(graph: Graph) -> Graph:
    uses = use_lists(graph)

    def rule(rw: Rewriter, node: Node, inputs: Inputs) -> Replacement:
        if node.op == "tensor.matmul":
            return _matmul(rw, inputs)
        if node.op == "ew.add":
            single_use = [value is not None and len(uses[value]) == 1 for value in node.inputs]
            return _bias(rw, node, inputs, single_use[0]) or _bias(rw, node, inputs[::-1], single_use[1])
        return None

    return rewrite(graph, rule)


def _matmul(rw: Rewriter, inputs: Inputs) -> Replacement:
    x, w = inputs
    assert x is not None and w is not None
    if rw.is_fixed(x) or not rw.is_fixed(w) or len(w.dims) != 2:
        return None
    inner = rw.producer(w, "tensor.permute")
    if inner is not None:
        return rw.add("nn.linear", [x, inner.inputs[0], None])
    return rw.add("nn.linear", [x, rw.add("tensor.permute", [w], {"perm": [1, 0]}), None])


def _bias(rw: Rewriter, node: Node, inputs: Inputs, is_single_use: bool) -> Replacement:
    """linear without bias + a weight vector: the bias."""
    y, bias = inputs
    linear = rw.producer(y, "nn.linear")
    if linear is None or linear.inputs[2] is not None or not is_single_use or bias is None or not rw.is_fixed(bias):
        return None
    if bias.dims != node.output.dims[-1:]:
        return None
    return rw.add("nn.linear", [linear.inputs[0], linear.inputs[1], bias])
