"""Norms of all the heads of one value, each with a weight of its own, become one norm of the value and a product with the stacked weights.

before:
    input %x: f32[num_tokens, 2, 8]
    param %w0: f32[8]
    param %w1: f32[8]
    %s0 = tensor.slice(%x) {dim=1, start=0, stop=1}
    %s1 = tensor.slice(%x) {dim=1, start=1, stop=2}
    %h0 = tensor.reshape(%s0) {dims=["num_tokens", 8]}
    %h1 = tensor.reshape(%s1) {dims=["num_tokens", 8]}
    %n0 = nn.layer_norm(%h0, %w0, _) {eps=1e-05}
    %n1 = nn.layer_norm(%h1, %w1, _) {eps=1e-05}
    %m0 = tensor.reshape(%n0) {dims=["num_tokens", 1, 8]}
    %m1 = tensor.reshape(%n1) {dims=["num_tokens", 1, 8]}
    %y = tensor.concat(%m0, %m1) {dim=1}
    return %y
after:
    input %x: f32[num_tokens, 2, 8]
    param %w0: f32[8]
    param %w1: f32[8]
    %n = nn.layer_norm(%x, _, _) {eps=1e-05}
    %r0 = tensor.reshape(%w0) {dims=[1, 8]}
    %r1 = tensor.reshape(%w1) {dims=[1, 8]}
    %w = tensor.concat(%r0, %r1) {dim=0}
    %y = ew.mul(%n, %w)
    return %y
"""

from __future__ import annotations

from ..ir.graph import Graph, Node, Value
from ..ir.rewrite import Inputs, Replacement, Rewriter, rewrite


def run(graph: Graph) -> Graph:
    return rewrite(graph, _rule)


def _rule(rw: Rewriter, node: Node, inputs: Inputs) -> Replacement:
    dims = node.outputs[0].dims
    if node.op != "tensor.concat" or len(dims) != 3 or node.attrs["dim"] != 1 or len(inputs) != dims[1]:
        return None
    norms = [rw.producer(rw.through(value, "tensor.reshape"), "nn.layer_norm", "nn.rms_norm") for value in inputs]
    found = [norm for norm in norms if norm is not None]
    if len(found) != len(norms) or len({(norm.op, norm.attrs["eps"], norm.output.dims[-1]) for norm in found}) != 1:
        return None
    x = _value_of_heads(rw, found, node.output)
    operands = list(zip(*(norm.inputs[1:] for norm in found), strict=True))  # the weights, the biases
    if x is None or any(None in column and any(value is not None for value in column) for column in operands):
        return None
    result = rw.add(found[0].op, [x], dict(found[0].attrs))
    for op, column in zip(("ew.mul", "ew.add"), operands, strict=False):
        vectors = [value for value in column if value is not None]
        if vectors:
            rows = [rw.add("tensor.reshape", [vector], {"dims": (1, dims[2])}) for vector in vectors]
            result = rw.add(op, [result, rw.add("tensor.concat", rows, {"dim": 0})])
    return result  # type: ignore[no-any-return]


def _value_of_heads(rw: Rewriter, norms: list[Node], joined: Value) -> Value | None:
    """The value of which the norms read head 0, head 1 … in order."""
    heads = [rw.producer(rw.through(norm.inputs[0], "tensor.reshape"), "tensor.slice") for norm in norms]
    first = heads[0]
    x = first.inputs[0] if first is not None else None
    if x is None or x.dims != joined.dims:
        return None
    for i, head in enumerate(heads):
        if head is None or head.inputs[0] is not x or (head.attrs["dim"], head.attrs["start"], head.attrs["stop"]) != (1, i, i + 1):
            return None
    return x
