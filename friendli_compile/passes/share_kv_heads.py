"""Keys and values that a model repeats for every query head are cached once per KV head: attention groups the query heads itself.

before:
    input %q: f32[num_tokens, 4, 8]
    input %k: f32[num_tokens, 2, 8]
    input %v: f32[num_tokens, 2, 8]
    %k1 = tensor.reshape(%k) {dims=["num_tokens", 2, 1, 8]}
    %k2 = tensor.expand(%k1) {dims=["num_tokens", 2, 2, 8]}
    %k3 = tensor.reshape(%k2) {dims=["num_tokens", 4, 8]}
    %v1 = tensor.reshape(%v) {dims=["num_tokens", 2, 1, 8]}
    %v2 = tensor.expand(%v1) {dims=["num_tokens", 2, 2, 8]}
    %v3 = tensor.reshape(%v2) {dims=["num_tokens", 4, 8]}
    %y = attn.paged(%q, %k3, %v3, _, _) {scale=1.0, kv_layer=0}
    return %y
after:
    input %q: f32[num_tokens, 4, 8]
    input %k: f32[num_tokens, 2, 8]
    input %v: f32[num_tokens, 2, 8]
    %y = attn.paged(%q, %k, %v, _, _) {scale=1.0, kv_layer=0}
    return %y
"""

from __future__ import annotations

from ..ir.graph import Dims, Graph, Node, Value
from ..ir.rewrite import Inputs, Replacement, Rewriter, rewrite


def run(graph: Graph) -> Graph:
    return rewrite(graph, _rule)


def _rule(rw: Rewriter, node: Node, inputs: Inputs) -> Replacement:
    if node.op != "attn.paged":
        return None
    q, k, v = inputs[:3]
    unrepeated_k, unrepeated_v = _unrepeated(rw, k), _unrepeated(rw, v)
    if unrepeated_k is None or unrepeated_v is None or unrepeated_k.dims[1] != unrepeated_v.dims[1]:
        return None
    return rw.add(node.op, [q, unrepeated_k, unrepeated_v, *inputs[3:]], dict(node.attrs))


def _unrepeated(rw: Rewriter, value: Value | None) -> Value | None:
    """[T, Hkv, D] x where the value [T, Hkv·n, D] has n copies of each head of x behind each other; also below a rope."""
    if value is None:
        return None
    rope = rw.producer(value, "nn.rope")
    if rope is not None:
        x = _unrepeated(rw, rope.inputs[0])
        return None if x is None else rw.add("nn.rope", [x, *rope.inputs[1:]], dict(rope.attrs))
    expand = rw.producer(rw.through(value, "tensor.reshape"), "tensor.expand")
    x = expand.inputs[0] if expand else None
    if expand is None or x is None:
        return None
    rows, _, head_dim = value.dims
    if expand.output.dims == value.dims and x.dims == (rows, 1, head_dim):
        return x
    dims = expand.output.dims
    if len(dims) == 4 and x.dims == (rows, dims[1], 1, head_dim) and dims == (rows, dims[1], dims[2], head_dim):
        return _reshaped(rw, x, (rows, dims[1], head_dim))
    return None


def _reshaped(rw: Rewriter, value: Value, dims: Dims) -> Value:
    source = rw.through(value, "tensor.reshape")
    if source is not None and source.dims == dims:
        return source
    result: Value = rw.add("tensor.reshape", [value], {"dims": dims})
    return result
