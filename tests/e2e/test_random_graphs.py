"""Random token-major graphs: the planner's calls on the C++ kernels compute what the interpreter says the graph means.

Every op that has a kernel occurs, on strided views as the planner makes them; scalar and AVX2 kernels, one and two threads.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from friendli_runtime import _core
from friendli_runtime.weight_files import locate_weights
from plan.graphs import VOCAB, random_params

from friendli_compile.artifact import writer
from friendli_compile.ir.attention import BatchDescription
from friendli_compile.ir.builder import GraphBuilder
from friendli_compile.ir.graph import Graph, Value
from friendli_compile.ir.interpreter import interpret
from friendli_compile.plan.planner import make_plan

NUM_GRAPHS = 60
NUM_STEPS = 12
LENGTHS = [7, 1, 12]
UNARY = ("neg", "abs", "square", "tanh", "sigmoid", "relu", "silu", "gelu", "gelu_tanh", "softplus", "sin", "cos", "exp")
BINARY = ("add", "sub", "mul", "minimum", "maximum")


class RandomGraph:
    """Grows a pool of [num_tokens, …] float values, each from a random op on earlier ones."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.b = GraphBuilder()
        ids, positions = self.b.input("input_ids", ("num_tokens",), "i32"), self.b.input("position_ids", ("num_tokens",), "i32")
        table = self.b.param("table", (VOCAB, 24))
        self.pool: list[Value] = [self.add("tensor.reshape", [self.add("nn.embedding", [table, ids])], dims=("num_tokens", 4, 6))]
        column = self.add("tensor.reshape", [self.add("tensor.cast", [positions], dtype="f32")], dims=("num_tokens", 1))
        self.pool.append(self.add("ew.mul", [column, self.b.param("frequencies", (8,))]))
        self.num_params = 0

    def build(self) -> Graph:
        makers = [self.pointwise, self.compare, self.views, self.linear, self.norm, self.select, self.reduce, self.attention, self.rope]
        for _ in range(NUM_STEPS):
            self.pool.append(makers[self.pick(len(makers))]())
        rows = self.b.input("logit_rows", ("num_logits",), "i32")
        kept = [self.add("tensor.gather_rows", [self.flat(x), rows]) for x in self.pool[-4:]]
        return self.b.finish([self.add("tensor.concat", kept, dim=1)])

    def add(self, op: str, inputs: list[Any], **attrs: Any) -> Any:
        return self.b.add(op, inputs, attrs)

    def pick(self, n: int) -> int:
        return int(self.rng.integers(n))

    def param(self, *dims: int) -> Value:
        self.num_params += 1
        return self.b.param(f"param{self.num_params}", dims)

    def any(self, min_rank: int = 2, max_size: int = 128) -> Value:
        """A value of the pool that is not too large, with at least `min_rank` dims."""
        fitting = [x for x in self.pool if len(x.dims) >= min_rank and self.size(x) <= max_size]
        return fitting[self.pick(len(fitting))]

    def size(self, x: Value) -> int:
        return int(np.prod([int(dim) for dim in x.dims[1:]]))

    def flat(self, x: Value) -> Value:
        return self.add("tensor.reshape", [x], dims=("num_tokens", self.size(x)))

    def bounded(self, x: Value) -> Value:
        """Keeps magnitudes near one, so that a chain of ops neither overflows nor amplifies rounding."""
        return self.add("ew.tanh", [x])

    def pointwise(self) -> Value:
        x = self.bounded(self.any())
        if self.pick(2):
            return self.add(f"ew.{UNARY[self.pick(len(UNARY))]}", [x])
        other = [self.param(int(x.dims[-1])), 0.7, self.add("ew.cos", [x])][self.pick(3)]
        return self.add(f"ew.{BINARY[self.pick(len(BINARY))]}", [x, other])

    def compare(self) -> Value:
        x = self.any()
        mask = self.add(
            "ew.and", [self.add("ew.gt", [x, -0.3]), self.add("ew.not", [self.add("ew.le", [self.param(int(x.dims[-1])), -1.0])])]
        )
        if self.pick(2):
            return self.add("ew.where", [mask, x, 0.25])
        return self.add("tensor.cast", [mask], dtype="f32")

    def views(self) -> Value:
        x = self.any()
        tail = [int(dim) for dim in x.dims[1:]]
        kind = self.pick(4)
        if kind == 0:
            return self.add("tensor.permute", [x], perm=(0, *(1 + self.rng.permutation(len(tail))).tolist()))
        if kind == 1:
            dim = 1 + self.pick(len(tail))
            start = self.pick(tail[dim - 1])
            return self.add(
                "tensor.slice", [x], dim=dim, start=start, stop=start + 1 + self.pick(tail[dim - 1] - start), step=1 + self.pick(2)
            )
        if kind == 2:
            return self.add("tensor.concat", [x, self.add("ew.neg", [x])], dim=1 + self.pick(len(tail)))
        size = self.size(x)
        rows = [n for n in range(1, size + 1) if size % n == 0]
        heads = rows[self.pick(len(rows))]
        return self.add("tensor.reshape", [x], dims=("num_tokens", heads, size // heads))

    def linear(self) -> Value:
        x = self.any()
        n, k = 1 + self.pick(40), int(x.dims[-1])
        bias = self.param(n) if self.pick(2) else None
        return self.add("nn.linear", [self.bounded(x), self.param(n, k), bias])

    def norm(self) -> Value:
        x = self.any()
        weight = self.param(int(x.dims[-1])) if self.pick(2) else None
        kind = self.pick(4)
        if kind == 0:
            return self.add("nn.rms_norm", [x, weight], eps=1e-2)
        if kind == 1:
            return self.add("nn.layer_norm", [x, weight], eps=1e-2)
        if kind == 2:
            return self.add("nn.softmax", [x], dim=len(x.dims) - 1)
        op = ("nn.add_rms_norm", "nn.add_layer_norm")[self.pick(2)]
        return self.add(op, [self.bounded(x), self.add("ew.sin", [x]), weight], eps=1e-2)[self.pick(2)]

    def select(self) -> Value:
        """Ranks, gathers and scatters along the last dim."""
        x = self.any()
        last = len(x.dims) - 1
        values, indices = self.add("tensor.topk", [x], k=1 + self.pick(int(x.dims[-1])), dim=last)
        kind = self.pick(4)
        if kind == 0:
            return values
        if kind == 1:
            return self.add("tensor.gather", [self.add("ew.neg", [x]), indices], dim=last)
        if kind == 2:
            return self.add("tensor.scatter", [self.bounded(x), indices, self.add("ew.abs", [values])], dim=last)
        return self.add("nn.act_mul", [self.bounded(x), self.add("ew.cos", [x])], act="silu")

    def reduce(self) -> Value:
        x = self.bounded(self.any())
        last = len(x.dims) - 1
        if self.pick(4) == 0:
            return self.add("tensor.cumsum", [x], dim=last)
        op = ("reduce.sum", "reduce.mean", "reduce.max", "reduce.min")[self.pick(4)]
        return self.add(op, [x], dim=1 + self.pick(last), keepdim=True)

    def heads(self, x: Value, num_heads: int, head_dim: int) -> Value:
        projected = self.add("nn.linear", [self.bounded(self.flat(x)), self.param(num_heads * head_dim, self.size(x))])
        return self.add("tensor.reshape", [projected], dims=("num_tokens", num_heads, head_dim))

    def attention(self) -> Value:
        x = self.any()
        num_kv_heads, group, k_dim, v_dim = 1 + self.pick(2), 1 + self.pick(3), 8, 4 + self.pick(6)
        q, k = self.heads(x, num_kv_heads * group, k_dim), self.heads(x, num_kv_heads, k_dim)
        v = self.heads(x, num_kv_heads, v_dim)
        layer = sum(node.op == "attn.paged" for node in self.b.nodes)
        window = (0, 3)[self.pick(2)]
        return self.add("attn.paged", [q, k, v], scale=0.1, kv_layer=layer, window=window, softcap=(0.0, 5.0)[self.pick(2)])

    def rope(self) -> Value:
        x, source = self.heads(self.any(), 3, 10), self.any()
        angles = self.add("nn.linear", [self.bounded(self.flat(source)), self.param(3, self.size(source))])
        cos, sin = self.add("ew.cos", [angles]), self.add("ew.sin", [angles])
        style = ("half", "interleaved", "interleaved_to_half")[self.pick(3)]
        return self.add("nn.rope", [x, cos, sin], style=style, rotary_dim=6, offset=self.pick(5))


def make_executor(graph: Graph, params: dict[str, np.ndarray], folder: Path, isa: str, num_threads: int) -> Any:
    plan = make_plan(graph, storage_dtype="f32", max_context_len=64)
    folder.mkdir()
    writer.write_weights(folder, plan, params.__getitem__)
    located = locate_weights(sorted(folder.glob("*.safetensors")))
    weights = {name: (str(place.path), place.offset, place.num_bytes) for name, place in located.items()}
    options = {"num_threads": num_threads, "max_num_tokens": 32, "max_num_logits": 8, "num_blocks": len(LENGTHS), "isa": isa}
    return _core.Executor(plan.to_json(), weights, **options)


@pytest.mark.parametrize("seed", range(NUM_GRAPHS))
def test_a_random_graph_computes_the_same_on_kernels_and_in_the_interpreter(seed: int, tmp_path: Path) -> None:
    graph = RandomGraph(seed).build()
    params = {name: array * 0.5 for name, array in random_params(graph, seed).items()}
    num_logits = int(graph.outputs[0].dims[1])  # the executor takes token ids below it
    cu_seqlens = np.concatenate([[0], np.cumsum(LENGTHS)]).astype(np.int32)
    inputs = {
        "input_ids": np.random.default_rng(seed).integers(0, min(VOCAB, num_logits), cu_seqlens[-1]).astype(np.int32),
        "position_ids": np.concatenate([np.arange(n) for n in LENGTHS]).astype(np.int32),
        "logit_rows": np.array([0, 6, 7, 8, 19], np.int32),
    }
    (expected,) = interpret(graph, inputs, params, BatchDescription.of_lengths(LENGTHS))
    tables = np.arange(len(LENGTHS), dtype=np.int32)[::-1].reshape(-1, 1).copy()
    for isa, num_threads in (("scalar", 1), ("auto", 2)):
        executor = make_executor(graph, params, tmp_path / isa, isa, num_threads)
        zeros = np.zeros(len(LENGTHS), np.int32)
        actual = executor.forward(inputs["input_ids"], inputs["position_ids"], cu_seqlens, zeros, tables, inputs["logit_rows"])
        np.testing.assert_allclose(actual, expected, rtol=2e-4, atol=2e-4, err_msg=f"seed {seed}, {isa}")


def test_the_random_graphs_reach_every_kind_of_op() -> None:
    ops = Counter(node.op for seed in range(NUM_GRAPHS) for node in RandomGraph(seed).build().nodes)
    expected = {"attn.paged", "nn.rope", "nn.linear", "nn.softmax", "nn.act_mul", "nn.add_rms_norm", "nn.add_layer_norm", "nn.rms_norm"}
    expected |= {"nn.layer_norm", "tensor.topk", "tensor.gather", "tensor.scatter", "tensor.cumsum", "tensor.permute", "tensor.concat"}
    expected |= {"reduce.sum", "reduce.mean", "reduce.max", "reduce.min", "ew.where", "ew.and", "tensor.cast", "tensor.slice"}
    assert expected <= set(ops)
