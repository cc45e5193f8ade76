"""Token-major graphs for the planner's tests: a small decoder with every common op, and random graphs of shape and pointwise ops."""

from __future__ import annotations

import numpy as np

from friendli_compile.ir.builder import GraphBuilder
from friendli_compile.ir.graph import Graph, Source, Value

VOCAB, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INTER = 40, 24, 4, 2, 8, 20


def decoder(num_layers: int = 2, tied: bool = True) -> Graph:
    """A llama-like decoder after all passes: merged QKV and gate-up, fused add+norm, `1 + w` norms, tied embeddings."""
    b = GraphBuilder()
    ids, positions = b.input("input_ids", ("num_tokens",), "i32"), b.input("position_ids", ("num_tokens",), "i32")
    logit_rows = b.input("logit_rows", ("num_logits",), "i32")
    table = b.param("embed.weight", (VOCAB, HIDDEN))
    cos, sin = _rotary(b, positions)
    residual: Value | None = None
    x = b.add("nn.embedding", [table, ids])
    for layer in range(num_layers):
        x, residual = _layer(b, layer, x, residual, cos, sin)
    x, residual = (b.add("tensor.gather_rows", [v, logit_rows]) for v in (x, residual))
    _, x = b.add("nn.add_rms_norm", [x, residual, b.param("norm.weight", (HIDDEN,))], {"eps": 1e-6})
    head = table if tied else b.param("lm_head.weight", (VOCAB, HIDDEN))
    return b.finish([b.add("nn.linear", [x, head], source=Source("lm_head"))])


def _rotary(b: GraphBuilder, positions: Value) -> tuple[Value, Value]:
    inv_freq = b.constant(np.array([[1.0, 0.3, 0.1, 0.01]], np.float32), name="inv_freq")
    column = b.add("tensor.reshape", [b.add("tensor.cast", [positions], {"dtype": "f32"})], {"dims": ("num_tokens", 1)})
    angles = b.add("ew.mul", [column, inv_freq])
    return b.add("ew.cos", [angles]), b.add("ew.sin", [angles])


def _layer(b: GraphBuilder, layer: int, x: Value, residual: Value | None, cos: Value, sin: Value) -> tuple[Value, Value]:
    def param(name: str, *dims: int) -> Value:
        return b.param(f"layers.{layer}.{name}", dims)

    def norm_weight(name: str) -> Value:
        return b.add("ew.add", [param(name, HIDDEN), 1.0])

    attention, mlp = Source(f"layers.{layer}.attn"), Source(f"layers.{layer}.mlp")
    if residual is None:
        residual, normed = x, b.add("nn.rms_norm", [x, norm_weight("norm1.weight")], {"eps": 1e-6}, attention)
    else:
        residual, normed = b.add("nn.add_rms_norm", [x, residual, norm_weight("norm1.weight")], {"eps": 1e-6}, attention)
    kv_size = KV_HEADS * HEAD_DIM
    shapes = {"q": HEADS * HEAD_DIM, "k": kv_size, "v": kv_size}
    weight = b.add("tensor.concat", [param(f"attn.{n}_proj.weight", rows, HIDDEN) for n, rows in shapes.items()], {"dim": 0})
    qkv = b.add("nn.linear", [normed, weight, param("attn.bias", sum(shapes.values()))], source=attention)
    heads, start = [], 0
    for rows in shapes.values():
        part = b.add("tensor.slice", [qkv], {"dim": 1, "start": start, "stop": start + rows})
        heads.append(b.add("tensor.reshape", [part], {"dims": ("num_tokens", rows // HEAD_DIM, HEAD_DIM)}))
        start += rows
    q, k = (b.add("nn.rope", [h, cos, sin], {"style": "half", "rotary_dim": HEAD_DIM}, attention) for h in heads[:2])
    mixed = b.add("attn.paged", [q, k, heads[2]], {"scale": 0.3, "kv_layer": layer * 2}, attention)
    flat = b.add("tensor.reshape", [mixed], {"dims": ("num_tokens", HEADS * HEAD_DIM)})
    out = b.add("nn.linear", [flat, param("attn.o_proj.weight", HIDDEN, HEADS * HEAD_DIM)], source=attention)
    residual, normed = b.add("nn.add_rms_norm", [out, residual, norm_weight("norm2.weight")], {"eps": 1e-6}, mlp)
    gate_up_weight = b.add("tensor.concat", [param("mlp.gate.weight", INTER, HIDDEN), param("mlp.up.weight", INTER, HIDDEN)], {"dim": 0})
    gate_up = b.add("nn.linear", [normed, gate_up_weight], source=mlp)
    gate, up = (b.add("tensor.slice", [gate_up], {"dim": 1, "start": s, "stop": s + INTER}) for s in (0, INTER))
    hidden = b.add("nn.act_mul", [gate, up], {"act": "silu"}, mlp)
    return b.add("nn.linear", [hidden, param("mlp.down.weight", HIDDEN, INTER)], source=mlp), residual


def random_params(graph: Graph, seed: int = 0) -> dict[str, np.ndarray]:
    """Standard normal float32 for every parameter."""
    rng = np.random.default_rng(seed)
    return {value.name: rng.standard_normal(value.dims).astype(np.float32) for value in graph.params}


def random_shape_graph(seed: int) -> Graph:
    """A chain of random shape, pointwise, reduce and concat ops on [num_tokens, 4, 6] values, ending in [num_tokens, n]."""
    rng = np.random.default_rng(seed)
    b = GraphBuilder()
    ids = b.input("input_ids", ("num_tokens",), "i32")
    first = b.add("nn.embedding", [b.param("table", (VOCAB, 24)), ids])
    pool = [b.add("tensor.reshape", [first], {"dims": ("num_tokens", 4, 6)})]
    for step in range(14):
        x = pool[rng.integers(len(pool))]
        pool.append(_random_op(b, rng, x, pool, step))
    logits = b.add("tensor.concat", [_flat(b, x) for x in pool[-3:]], {"dim": 1})
    return b.finish([logits])


def _flat(b: GraphBuilder, x: Value) -> Value:
    size = int(np.prod([int(dim) for dim in x.dims[1:]]))
    return b.add("tensor.reshape", [x], {"dims": ("num_tokens", size)})


def _random_op(b: GraphBuilder, rng: np.random.Generator, x: Value, pool: list[Value], step: int) -> Value:
    rank, tail = len(x.dims), [int(dim) for dim in x.dims[1:]]
    kind = rng.integers(8)
    if kind == 0:
        return b.add("tensor.permute", [x], {"perm": (0, *(1 + rng.permutation(rank - 1)).tolist())})
    if kind == 1:
        dim = int(rng.integers(1, rank))
        start = int(rng.integers(0, tail[dim - 1]))
        stop = int(rng.integers(start + 1, tail[dim - 1] + 1))
        return b.add("tensor.slice", [x], {"dim": dim, "start": start, "stop": stop, "step": int(rng.integers(1, 3))})
    if kind == 2:
        size = int(np.prod(tail))
        divisors = [d for d in range(1, size + 1) if size % d == 0]
        rows = int(rng.choice(divisors))
        return b.add("tensor.reshape", [x], {"dims": ("num_tokens", rows, size // rows)})
    if kind == 3:
        return b.add(
            "tensor.expand", [b.add("tensor.reshape", [x], {"dims": ("num_tokens", 1, *tail)})], {"dims": ("num_tokens", 2, *tail)}
        )
    if kind == 4:
        return b.add("tensor.concat", [x, x], {"dim": int(rng.integers(1, rank))})
    if kind == 5:
        return b.add("reduce.max", [x], {"dim": rank - 1, "keepdim": True})
    same = [y for y in pool if y.dims == x.dims]
    if kind == 6:
        return b.add("ew.add", [x, same[rng.integers(len(same))]])
    scale = b.param(f"scale{step}", (tail[-1],))
    return b.add("ew.mul", [x, b.add("ew.square", [scale])])
