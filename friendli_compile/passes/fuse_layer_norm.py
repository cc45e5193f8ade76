"""An rms_norm of x − mean(x) is `nn.layer_norm` of x; a weight vector added to it is its bias. For models that write the norm out.

before:
    input %x: f32[num_tokens, 8]
    param %w: f32[8]
    %m = reduce.mean(%x) {dim=1}
    %b = tensor.reshape(%m) {dims=["num_tokens", 1]}
    %d = ew.sub(%x, %b)
    %y = nn.rms_norm(%d, %w) {eps=1e-05}
    return %y
after:
    input %x: f32[num_tokens, 8]
    param %w: f32[8]
    %y = nn.layer_norm(%x, %w, _) {eps=1e-05}
    return %y
"""

from __future__ import annotations

from ..ir.graph import Graph, Node, Value
from ..ir.rewrite import Inputs, Replacement, Rewriter, rewrite


def run(graph: Graph) -> Graph:
    return rewrite(graph, _rule)


def _rule(rw: Rewriter, node: Node, inputs: Inputs) -> Replacement:
    if node.op == "nn.rms_norm":
        return _centred(rw, node, inputs)
    if node.op == "ew.add":
        return _biased(rw, *inputs) or _biased(rw, *inputs[::-1])
    if node.op == "ew.mul":
        return _weighted(rw, *inputs) or _weighted(rw, *inputs[::-1])
    return None


def _centred(rw: Rewriter, node: Node, inputs: Inputs) -> Replacement:
    centred = rw.producer(inputs[0], "ew.sub")
    if centred is None:
        return None
    x, mean = centred.inputs
    assert x is not None and mean is not None
    reduce = rw.producer(rw.through(mean, "tensor.reshape"), "reduce.mean")
    if reduce is None or reduce.inputs[0] is not x or reduce.attrs["dim"] != len(x.dims) - 1 or mean.dims != (*x.dims[:-1], 1):
        return None
    return rw.add("nn.layer_norm", [x, inputs[1], None], dict(node.attrs))


def _unbiased_norm(rw: Rewriter, normed: Value | None, vector: Value | None) -> Node | None:
    """The layer_norm behind `normed`, if it has no bias yet and `vector` is a weight that fits."""
    norm = rw.producer(normed, "nn.layer_norm")
    if norm is None or norm.inputs[2] is not None or vector is None or normed is None:
        return None
    return norm if rw.is_fixed(vector) and vector.dims == normed.dims[-1:] else None


def _biased(rw: Rewriter, normed: Value | None, bias: Value | None) -> Replacement:
    norm = _unbiased_norm(rw, normed, bias)
    return rw.add("nn.layer_norm", [*norm.inputs[:2], bias], dict(norm.attrs)) if norm else None


def _weighted(rw: Rewriter, normed: Value | None, w: Value | None) -> Replacement:
    norm = _unbiased_norm(rw, normed, w)
    if norm is None or norm.inputs[1] is not None:
        return None
    return rw.add("nn.layer_norm", [norm.inputs[0], w, None], dict(norm.attrs))
