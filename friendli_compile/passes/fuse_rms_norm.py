"""x · rsqrt(mean(x²) + eps) · w over the last dim is `nn.rms_norm`. The weight may be any weight expression (1 + w), or absent.

before:
    input %x: f32[num_tokens, 8]
    param %w: f32[8]
    %s = ew.square(%x)
    %m = reduce.mean(%s) {dim=1}
    %e = ew.add(%m, 1e-06)
    %r = ew.rsqrt(%e)
    %b = tensor.reshape(%r) {dims=["num_tokens", 1]}
    %n = ew.mul(%x, %b)
    %o = ew.add(%w, 1.0)
    %y = ew.mul(%n, %o)
    return %y
after:
    input %x: f32[num_tokens, 8]
    param %w: f32[8]
    %o = ew.add(%w, 1.0)
    %y = nn.rms_norm(%x, %o) {eps=1e-06}
    return %y
"""

from __future__ import annotations

from ..ir.graph import Graph, Node, Value
from ..ir.rewrite import Inputs, Replacement, Rewriter, rewrite


def run(graph: Graph) -> Graph:
    return rewrite(graph, _rule)


def _rule(rw: Rewriter, node: Node, inputs: Inputs) -> Replacement:
    if node.op == "ew.mul":
        a, b = inputs
        return _weighted(rw, a, b) or _weighted(rw, b, a) or _core(rw, a, b, "ew.rsqrt") or _core(rw, b, a, "ew.rsqrt")
    if node.op == "ew.div":
        return _core(rw, inputs[0], inputs[1], "ew.sqrt")
    return None


def _core(rw: Rewriter, x: Value | None, scale: Value | None, root: str) -> Replacement:
    """x times (or divided by) the root of its mean square plus eps."""
    if x is None or scale is None or not x.dims or scale.dims != (*x.dims[:-1], 1):
        return None
    node = rw.producer(rw.through(scale, "tensor.reshape"), root)
    if node is None:
        return None
    mean, eps = rw.through(node.inputs[0], "tensor.reshape"), 0.0
    plus = rw.producer(mean, "ew.add")
    if plus is not None:
        number = rw.scalar(plus.inputs[1])
        if number is None:
            return None
        mean, eps = rw.through(plus.inputs[0], "tensor.reshape"), number
    return rw.add("nn.rms_norm", [x, None], {"eps": eps}) if is_mean_square(rw, mean, x) else None


def is_mean_square(rw: Rewriter, mean: Value | None, x: Value) -> bool:
    """Whether `mean` is that of x² over the last dim of x."""
    node = rw.producer(mean, "reduce.mean")
    square = rw.producer(node.inputs[0], "ew.square") if node else None
    return node is not None and square is not None and square.inputs[0] is x and node.attrs["dim"] == len(x.dims) - 1


def _weighted(rw: Rewriter, normed: Value | None, w: Value | None) -> Replacement:
    norm = rw.producer(normed, "nn.rms_norm")
    if norm is None or norm.inputs[1] is not None or w is None or not rw.is_fixed(w) or normed is None or w.dims != normed.dims[-1:]:
        return None
    return rw.add("nn.rms_norm", [norm.inputs[0], w], dict(norm.attrs))
