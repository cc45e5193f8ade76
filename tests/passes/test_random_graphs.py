"""Random graphs in the form that torch code has (batch dim 1, the token dim wandering) keep their numbers through every pass."""

import os
from collections.abc import Callable

import numpy as np
import pytest

from friendli_compile.ir.builder import GraphBuilder
from friendli_compile.ir.graph import Dim, Graph, Value
from friendli_compile.ir.text import parse_graph, print_graph
from friendli_compile.passes import run_pipeline

from .running import logits_of, random_params, relative_error

TOKENS = "num_tokens"
WIDTH = 12
UNARY = ["neg", "abs", "square", "tanh", "sigmoid", "relu", "silu", "gelu", "gelu_tanh", "sin", "cos"]


class _RandomGraph:
    """Grows a graph by random steps; every step keeps one row per token."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.num_heads = int(self.rng.choice([1, 3]))  # a single head is a dim of size 1 that is not the batch
        self.head_dim = WIDTH // self.num_heads
        self.b = GraphBuilder()
        self.num_params = 0
        self.kv_layer = 0

    def build(self, num_steps: int) -> Graph:
        ids = self.b.input("input_ids", (1, TOKENS), "i32")
        positions = self.b.input("position_ids", (1, TOKENS), "i32")
        x = self.b.add("nn.embedding", [self.b.param("embed.weight", (20, WIDTH)), ids])
        scaled = self.b.add("ew.mul", [self.b.add("tensor.reshape", [positions], {"dims": (1, TOKENS, 1)}), 0.1])
        x = self.b.add("ew.add", [x, scaled])
        steps: list[Callable[[Value], Value]] = [
            *(self.unary, self.scalar, self.with_itself, self.with_param, self.norm, self.residual_linear, self.through_heads),
            *(self.attention, self.softmax, self.topk, self.rotate, self.gate, self.reduce),
        ]
        for _ in range(num_steps):
            x = steps[self.rng.integers(len(steps))](x)
        return self.b.finish([self.b.add("nn.linear", [x, self.param(7, WIDTH)])])

    def param(self, *dims: int) -> Value:
        self.num_params += 1
        return self.b.param(f"layer.{self.num_params}.weight", dims)

    # --- steps: [1, T, WIDTH] → the same

    def unary(self, x: Value) -> Value:
        return self.b.add(f"ew.{self.rng.choice(UNARY)}", [x])

    def scalar(self, x: Value) -> Value:
        op = self.rng.choice(["add", "sub", "mul", "div", "minimum", "maximum"])
        number = float(self.rng.choice([0.0, 1.0, 2.0, -0.5])) if op != "div" else 2.0
        return self.b.add(f"ew.{op}", [x, number] if op == "div" or self.rng.integers(2) else [number, x])

    def with_itself(self, x: Value) -> Value:
        return self.b.add(f"ew.{self.rng.choice(['add', 'mul', 'maximum'])}", [x, x])

    def with_param(self, x: Value) -> Value:
        dims = [(WIDTH,), (1, WIDTH), (1, 1, WIDTH), (1, 1, 1)][self.rng.integers(4)]
        weight = self.b.add("ew.add", [self.param(*dims), 1.0])
        return self.b.add("ew.mul", [x, weight])

    def norm(self, x: Value) -> Value:
        """Written out, or as the op; rms or layer norm."""
        if self.rng.integers(3) == 0:
            return self.b.add("nn.layer_norm", [x, self.param(WIDTH), self.param(WIDTH)], {"eps": 1e-5})
        if self.rng.integers(2):
            x = self.b.add("ew.sub", [x, self.b.add("reduce.mean", [x], {"dim": -1, "keepdim": True})])
        mean = self.b.add("reduce.mean", [self.b.add("ew.pow", [x, 2.0])], {"dim": -1, "keepdim": True})
        scale = self.b.add("ew.rsqrt", [self.b.add("ew.add", [mean, 1e-5])])
        return self.b.add("ew.mul", [self.param(WIDTH), self.b.add("ew.mul", [x, scale])])

    def residual_linear(self, x: Value) -> Value:
        parts = [self.b.add("nn.linear", [x, self.param(WIDTH, WIDTH), *([self.param(WIDTH)] * self.rng.integers(2))]) for _ in range(2)]
        return self.b.add("ew.add", [x, self.b.add("ew.mul", parts)])

    def heads(self, x: Value) -> Value:
        return self.b.add("tensor.permute", [self.reshape(x, 1, TOKENS, self.num_heads, self.head_dim)], {"perm": (0, 2, 1, 3)})

    def reshape(self, x: Value, *dims: Dim) -> Value:
        return self.b.add("tensor.reshape", [x], {"dims": dims})

    def merged(self, heads: Value) -> Value:
        return self.reshape(self.b.add("tensor.permute", [heads], {"perm": (0, 2, 1, 3)}), 1, TOKENS, WIDTH)

    def through_heads(self, x: Value) -> Value:
        """Per-head weights in the order [heads, 1, dim], and a per-head projection."""
        y = self.b.add("ew.mul", [self.heads(x), self.param(self.num_heads, 1, self.head_dim)])
        y = self.b.add("tensor.matmul", [y, self.param(self.num_heads, self.head_dim, self.head_dim)])
        return self.merged(y)

    def attention(self, x: Value) -> Value:
        q, k, v = (self.heads(self.b.add("nn.linear", [x, self.param(WIDTH, WIDTH)])) for _ in range(3))
        if self.rng.integers(2):  # one KV head
            k, v = (self.b.add("tensor.slice", [y], {"dim": 1, "start": 0, "stop": 1}) for y in (k, v))
        y = self.b.add("attn.paged", [q, k, v], {"scale": 0.5, "kv_layer": self.kv_layer, "window": int(self.rng.integers(2)) * 4})
        self.kv_layer += 1
        return self.b.add("ew.add", [x, self.reshape(y, 1, TOKENS, WIDTH)])

    def softmax(self, x: Value) -> Value:
        return self.merged(self.b.add("nn.softmax", [self.heads(x)], {"dim": int(self.rng.choice([-1, 1]))}))

    def topk(self, x: Value) -> Value:
        """A router: the best of the heads per dim, spread out again."""
        heads = self.heads(x)
        values, indices = self.b.add("tensor.topk", [heads], {"k": min(2, self.num_heads), "dim": 1})
        zeros = self.b.add("tensor.full", [], {"dims": (1, self.num_heads, TOKENS, self.head_dim), "value": 0.0, "dtype": "f32"})
        return self.merged(self.b.add("tensor.scatter", [zeros, indices, values], {"dim": 1}))

    def rotate(self, x: Value) -> Value:
        """A rotary embedding with the cos and sin of the values themselves, in one of three spellings."""
        heads, half = self.heads(x), self.head_dim // 2
        angle = self.b.add("tensor.slice", [x], {"dim": 2, "start": 0, "stop": half})
        first, second = (self.b.add("tensor.slice", [heads], {"dim": 3, "start": s, "stop": s + half}) for s in (0, half))
        if self.rng.integers(2):
            table = self.reshape(angle, 1, 1, TOKENS, half)
            cos, sin = self.b.add("ew.cos", [table]), self.b.add("ew.sin", [table])
            a = self.b.add("ew.sub", [self.b.add("ew.mul", [first, cos]), self.b.add("ew.mul", [second, sin])])
            b = self.b.add("ew.add", [self.b.add("ew.mul", [second, cos]), self.b.add("ew.mul", [first, sin])])
            return self.merged(self.b.add("tensor.concat", [a, b], {"dim": -1}))
        other = angle if self.rng.integers(2) else self.b.add("tensor.slice", [x], {"dim": 2, "start": 1, "stop": 1 + half})
        table = self.reshape(self.b.add("tensor.concat", [angle, other], {"dim": -1}), 1, 1, TOKENS, self.head_dim)
        rotated = self.b.add("tensor.concat", [self.b.add("ew.neg", [second]), first], {"dim": -1})
        cos, sin = self.b.add("ew.cos", [table]), self.b.add("ew.sin", [table])
        return self.merged(self.b.add("ew.add", [self.b.add("ew.mul", [heads, cos]), self.b.add("ew.mul", [rotated, sin])]))

    def gate(self, x: Value) -> Value:
        both = self.b.add("nn.linear", [x, self.param(2 * WIDTH, WIDTH)])
        gate, up = (self.b.add("tensor.slice", [both], {"dim": 2, "start": s, "stop": s + WIDTH}) for s in (0, WIDTH))
        gate = self.b.add("ew.mul", [gate, self.b.add("ew.sigmoid", [gate])])
        return self.b.add("ew.mul", [gate, up])

    def reduce(self, x: Value) -> Value:
        op = self.rng.choice(["sum", "max", "min", "mean"])
        reduced = self.b.add(f"reduce.{op}", [self.heads(x)], {"dim": 1, "keepdim": True})
        widened = self.b.add("tensor.expand", [reduced], {"dims": (1, self.num_heads, TOKENS, self.head_dim)})
        return self.b.add("ew.add", [x, self.merged(widened)])


def sensitivity(graph: Graph, params: dict[str, np.ndarray], reference: np.ndarray) -> float:
    """How far weights that are off by 1e-6 move the result: a random graph may be ill-conditioned."""
    rng = np.random.default_rng(0)
    nearby = {name: (array * (1 + 1e-6 * rng.standard_normal(array.shape))).astype(np.float32) for name, array in params.items()}
    return relative_error(logits_of(graph, nearby), reference)


@pytest.mark.parametrize("seed", range(int(os.environ.get("FMO_FUZZ_SEEDS", "30"))))
def test_every_pass_keeps_the_numbers_of_a_random_graph(seed: int) -> None:
    graph = _RandomGraph(seed).build(num_steps=10)
    params = random_params(graph)
    reference = logits_of(graph, params)
    assert np.all(np.isfinite(reference))
    errors: dict[str, float] = {}
    compiled = run_pipeline(graph, lambda name, g: errors.update({name: relative_error(logits_of(g, params), reference)}))
    assert max(errors.values()) <= 1e-5 + 3 * sensitivity(graph, params, reference), errors
    assert print_graph(parse_graph(print_graph(compiled, sources=True)), sources=True) == print_graph(compiled, sources=True)
