"""Linears that read the same value become one, with their weights stacked: q, k, v; gate and up.

The stacked weight is a weight expression, so it costs nothing at run time; the results are slices of the one product, which the planner
makes views.

before:
    input %x: f32[num_tokens, 8]
    param %wq: f32[4, 8]
    param %wk: f32[2, 8]
    param %bk: f32[2]
    %q = nn.linear(%x, %wq, _)
    %k = nn.linear(%x, %wk, %bk)
    %k2 = tensor.concat(%k, %k) {dim=1}
    %y = ew.mul(%q, %k2)
    return %y
after:
    input %x: f32[num_tokens, 8]
    param %wq: f32[4, 8]
    param %wk: f32[2, 8]
    param %bk: f32[2]
    const %c0: f32[4] = [0.0, 0.0, 0.0, 0.0]
    %w = tensor.concat(%wq, %wk) {dim=0}
    %b = tensor.concat(%c0, %bk) {dim=0}
    %qk = nn.linear(%x, %w, %b)
    %q = tensor.slice(%qk) {dim=1, start=0, stop=4}
    %k = tensor.slice(%qk) {dim=1, start=4, stop=6}
    %k2 = tensor.concat(%k, %k) {dim=1}
    %y = ew.mul(%q, %k2)
    return %y
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from ..ir.graph import Graph, Node, Value
from ..ir.rewrite import Inputs, Replacement, Rewriter, rewrite_with, sorted_by_dependence, use_lists
from ..ir.routers import router_linears


def run(graph: Graph) -> Graph:
    graph = sorted_by_dependence(graph)
    groups = _groups(graph)
    rw = Rewriter(graph)

    def rule(rw: Rewriter, node: Node, inputs: Inputs) -> Replacement:
        group = groups.get(node)
        if group is None:
            return None
        _merge(rw, group, inputs[0])
        return rw.mapping[node.output]

    return rewrite_with(rw, rule)


def _groups(graph: Graph) -> dict[Node, list[Node]]:
    """For the first linear of each group: all of them. A weight that is read elsewhere too (tied embeddings) stays alone, and so does a
    router of experts, which keeps its precision when the others are quantized."""
    uses = use_lists(graph)
    routers = router_linears(graph)
    by_input: dict[Value, list[Node]] = defaultdict(list)
    for node in graph.nodes:
        if node.op == "nn.linear" and node not in routers and node.inputs[1] is not None and len(uses[node.inputs[1]]) == 1:
            assert node.inputs[0] is not None
            by_input[node.inputs[0]].append(node)
    return {group[0]: group for group in by_input.values() if len(group) > 1}


def _merge(rw: Rewriter, group: list[Node], x: Value | None) -> None:
    """Emits the merged linear and maps every result of the group to its slice."""
    weights = [rw.mapping[node.inputs[1]] for node in group if node.inputs[1] is not None]
    merged = rw.add("nn.linear", [x, rw.add("tensor.concat", weights, {"dim": 0}), _merged_bias(rw, group)])
    dim, start = len(merged.dims) - 1, 0
    for node in group:
        size = node.output.dims[-1]
        assert isinstance(size, int)
        rw.source = node.source
        rw.mapping[node.output] = rw.add("tensor.slice", [merged], {"dim": dim, "start": start, "stop": start + size})
        start += size


def _merged_bias(rw: Rewriter, group: list[Node]) -> Value | None:
    if all(node.inputs[2] is None for node in group):
        return None
    biases = []
    for node in group:
        bias, size = node.inputs[2], node.output.dims[-1]
        assert isinstance(size, int)
        biases.append(rw.mapping[bias] if bias is not None else rw.builder.constant(np.zeros(size, np.float32)))
    return rw.add("tensor.concat", biases, {"dim": 0})
