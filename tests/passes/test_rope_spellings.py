"""Every way in which models write rotary embeddings, for whole and partial heads, one head or several: one `nn.rope`, the same numbers."""

import itertools

import pytest

from friendli_compile.ir.builder import GraphBuilder
from friendli_compile.ir.graph import Graph, Value
from friendli_compile.passes import run_pipeline

from .running import logits_of, random_params, relative_error

TOKENS = "num_tokens"
ROTARY_DIM = 4
SPELLINGS = {  # name → the style of the op
    "rotate_half": "half",
    "rotate_half backwards": "half",
    "two halves": "half",
    "rotate_every_two": "interleaved",
    "two parts stacked": "interleaved",
    "two parts of a split dim": "interleaved",
    "pairs moved, then rotate_half": "interleaved_to_half",
    "pairs to two halves": "interleaved_to_half",
}
WITH_ROTATE_HALF = ("rotate_half", "rotate_half backwards", "pairs moved, then rotate_half")
PLACES = {"whole": (0, 0), "prefix": (0, 4), "suffix": (4, 0), "middle": (2, 4)}  # dims in front of and behind the rotated ones


class _Rope:
    """The graph, as torch would trace it: x [1, heads, T, dim]."""

    def __init__(self, spelling: str, num_heads: int, before: int, after: int) -> None:
        self.b = GraphBuilder()
        self.spelling, self.num_heads, self.before, self.after = spelling, num_heads, before, after

    def build(self) -> Graph:
        b, head_dim = self.b, self.before + ROTARY_DIM + self.after
        ids, positions = b.input("input_ids", (1, TOKENS), "i32"), b.input("position_ids", (1, TOKENS), "i32")
        x = b.add("nn.embedding", [b.param("embed.weight", (20, self.num_heads * head_dim)), ids])
        heads = b.add("tensor.reshape", [x], {"dims": (1, TOKENS, self.num_heads, head_dim)})
        heads = b.add("tensor.permute", [heads], {"perm": (0, 2, 1, 3)})
        angles = b.add(
            "ew.mul", [b.add("tensor.reshape", [positions], {"dims": (1, TOKENS, 1)}), b.param("freq.weight", (ROTARY_DIM // 2,))]
        )
        rotated = self.rotated(self.slice(heads, self.before, self.before + ROTARY_DIM), angles)
        rest = [self.slice(heads, 0, self.before), self.slice(heads, self.before + ROTARY_DIM, head_dim)]
        parts = [part for part in (rest[0], rotated, rest[1]) if part.dims[-1] != 0]
        y = b.add("tensor.concat", parts, {"dim": -1}) if len(parts) > 1 else rotated
        y = b.add("tensor.permute", [y], {"perm": (0, 2, 1, 3)})
        return b.finish([b.add("tensor.reshape", [y], {"dims": (1, TOKENS, self.num_heads * head_dim)})])

    def slice(self, x: Value, start: int, stop: int, step: int = 1) -> Value:
        return self.b.add("tensor.slice", [x], {"dim": len(x.dims) - 1, "start": start, "stop": stop, "step": step})

    def table(self, angles: Value, op: str) -> Value:
        """cos or sin, as wide as the spelling wants, with a dim for the heads."""
        b, half = self.b, ROTARY_DIM // 2
        width = half
        if self.spelling in WITH_ROTATE_HALF:
            angles, width = b.add("tensor.concat", [angles, angles], {"dim": -1}), ROTARY_DIM
        elif self.spelling == "rotate_every_two":
            column = b.add("tensor.reshape", [angles], {"dims": (1, TOKENS, half, 1)})
            repeated = b.add("tensor.expand", [column], {"dims": (1, TOKENS, half, 2)})
            angles, width = b.add("tensor.reshape", [repeated], {"dims": (1, TOKENS, ROTARY_DIM)}), ROTARY_DIM
        scaled = b.add("ew.mul", [b.add(op, [angles]), 1.25])  # as scaled rotary embeddings do
        return b.add("tensor.reshape", [scaled], {"dims": (1, 1, TOKENS, width)})

    def rotated(self, x: Value, angles: Value) -> Value:
        b, half = self.b, ROTARY_DIM // 2
        cos, sin = self.table(angles, "ew.cos"), self.table(angles, "ew.sin")
        if self.spelling == "pairs moved, then rotate_half":
            pairs = b.add("tensor.reshape", [x], {"dims": (*x.dims[:-1], half, 2)})
            x = b.add("tensor.reshape", [b.add("tensor.permute", [pairs], {"perm": (0, 1, 2, 4, 3)})], {"dims": x.dims})
        if self.spelling in WITH_ROTATE_HALF:
            first, second = self.slice(x, 0, half), self.slice(x, half, ROTARY_DIM)
            is_backwards = self.spelling == "rotate_half backwards"
            parts = [second, b.add("ew.neg", [first])] if is_backwards else [b.add("ew.neg", [second]), first]
            turned = b.add("tensor.concat", parts, {"dim": -1})
            return b.add("ew.add", [b.add("ew.mul", [x, cos]), b.add("ew.mul", [turned, sin])])
        if self.spelling == "rotate_every_two":
            odd = b.add("ew.neg", [self.slice(x, 1, ROTARY_DIM, 2)])
            turned = self.stacked(odd, self.slice(x, 0, ROTARY_DIM, 2))
            return b.add("ew.add", [b.add("ew.mul", [turned, sin]), b.add("ew.mul", [cos, x])])
        first, second = self.parts(x)
        minus = b.add("ew.sub", [b.add("ew.mul", [first, cos]), b.add("ew.mul", [sin, second])])
        plus = b.add("ew.add", [b.add("ew.mul", [first, sin]), b.add("ew.mul", [second, cos])])
        is_stacked = self.spelling in ("two parts stacked", "two parts of a split dim")
        return self.stacked(minus, plus) if is_stacked else b.add("tensor.concat", [minus, plus], {"dim": -1})

    def parts(self, x: Value) -> tuple[Value, Value]:
        half = ROTARY_DIM // 2
        if self.spelling == "two halves":
            return self.slice(x, 0, half), self.slice(x, half, ROTARY_DIM)
        if self.spelling == "two parts of a split dim":
            pairs = self.b.add("tensor.reshape", [x], {"dims": (*x.dims[:-1], half, 2)})
            first, second = (self.b.add("tensor.reshape", [self.slice(pairs, i, i + 1)], {"dims": (*x.dims[:-1], half)}) for i in (0, 1))
            return first, second
        return self.slice(x, 0, ROTARY_DIM, 2), self.slice(x, 1, ROTARY_DIM, 2)

    def stacked(self, a: Value, b: Value) -> Value:
        columns = [self.b.add("tensor.reshape", [v], {"dims": (*v.dims, 1)}) for v in (a, b)]
        stack = self.b.add("tensor.concat", columns, {"dim": -1})
        return self.b.add("tensor.reshape", [stack], {"dims": (*a.dims[:-1], ROTARY_DIM)})


@pytest.mark.parametrize(("spelling", "place", "num_heads"), list(itertools.product(SPELLINGS, PLACES, [1, 3])))
def test_a_spelling_becomes_one_rope_with_the_same_numbers(spelling: str, place: str, num_heads: int) -> None:
    before, after = PLACES[place]
    graph = _Rope(spelling, num_heads, before, after).build()
    params = random_params(graph)
    reference = logits_of(graph, params)
    compiled = run_pipeline(graph)
    assert relative_error(logits_of(compiled, params), reference) <= 1e-5
    ops = [node.op for node in compiled.nodes]
    (rope,) = [node for node in compiled.nodes if node.op == "nn.rope"]
    assert dict(rope.attrs) == {"style": SPELLINGS[spelling], "rotary_dim": ROTARY_DIM, "offset": before}
    assert "tensor.concat" not in ops
