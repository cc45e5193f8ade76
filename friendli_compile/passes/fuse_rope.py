"""Rotary embeddings become `nn.rope`, in any of the ways in which models write them.

    x·cos + rotate(x)·sin          rotate: (−second half, first half), or (−odd, even) interleaved; cos, sin as wide as x
                                   (or the negative of that, which turns backwards)
    (x1·cos − x2·sin, x2·cos + x1·sin)     joined as halves or interleaved; cos, sin half as wide
    concat(rope(x[:R]), x[R:])     partial, the rest in front or behind
    rope(x with its pairs moved to halves first)

A full-width cos must consist of two equal halves (or equal pairs), which is proven from how it is computed; the op then takes one half.

before:
    input %x: f32[num_tokens, 2, 4]
    input %f: f32[num_tokens, 2]
    %ff = tensor.concat(%f, %f) {dim=1}
    %c = ew.cos(%ff)
    %s = ew.sin(%ff)
    %c1 = tensor.reshape(%c) {dims=["num_tokens", 1, 4]}
    %s1 = tensor.reshape(%s) {dims=["num_tokens", 1, 4]}
    %a = ew.mul(%x, %c1)
    %x1 = tensor.slice(%x) {dim=2, start=0, stop=2}
    %x2 = tensor.slice(%x) {dim=2, start=2, stop=4}
    %n = ew.neg(%x2)
    %r = tensor.concat(%n, %x1) {dim=2}
    %b = ew.mul(%r, %s1)
    %y = ew.add(%a, %b)
    return %y
after:
    input %x: f32[num_tokens, 2, 4]
    input %f: f32[num_tokens, 2]
    %c = ew.cos(%f)
    %s = ew.sin(%f)
    %y = nn.rope(%x, %c, %s) {style="half", rotary_dim=4}
    return %y
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..ir.graph import Dims, Graph, Node, Value
from ..ir.ops import POINTWISE
from ..ir.rewrite import Inputs, Replacement, Rewriter, rewrite

_STYLES = {("halves", "halves"): "half", ("pairs", "pairs"): "interleaved", ("pairs", "halves"): "interleaved_to_half"}
_PAIRINGS = {"half": "halves", "interleaved": "pairs"}


def run(graph: Graph) -> Graph:
    halves: dict[tuple[Value, str], Value | None] = {}  # cos and sin are shared by all layers
    reshapes: dict[tuple[Value, Dims], Value] = {}

    def rule(rw: Rewriter, node: Node, inputs: Inputs) -> Replacement:
        matcher = _Matcher(rw, halves, reshapes)
        if node.op == "ew.add":
            return matcher.rotation_by_sum(inputs)
        if node.op == "tensor.concat" and node.attrs["dim"] == len(node.output.dims) - 1:
            return matcher.partial(inputs) or matcher.rotation_by_parts(inputs) or matcher.rotation_interleaved(node, inputs)
        return None

    return rewrite(graph, rule)


@dataclass(frozen=True, slots=True)
class _Span:
    """Elements start, start+step … of the last dim of `base`."""

    base: Value
    start: int
    size: int
    step: int = 1


@dataclass
class _Matcher:
    """The questions about one place of the graph; `halves` and `reshapes` remember what `half_of` found and `reshaped` made."""

    rw: Rewriter
    halves: dict[tuple[Value, str], Value | None]
    reshapes: dict[tuple[Value, Dims], Value]

    # --- the three roots

    def rotation_by_sum(self, inputs: Inputs) -> Replacement:
        """x·cos + rotate(x)·sin."""
        for left, right in (inputs, inputs[::-1]):
            for x, cos in self.factors(left):
                for rotated, sin in self.factors(right):
                    found = self.rotation_style(rotated, x)
                    if found is not None and (rope := self.rope(x, cos, sin, found[0], True, is_backwards=found[1])) is not None:
                        return rope
        return None

    def rotation_by_parts(self, inputs: Inputs) -> Replacement:
        """concat(x1·cos − x2·sin, x2·cos + x1·sin), the halves from halves or from pairs."""
        if len(inputs) != 2 or inputs[0] is None or inputs[1] is None:
            return None
        return self.from_parts(inputs[0], inputs[1], out_pairing="halves")

    def rotation_interleaved(self, node: Node, inputs: Inputs) -> Replacement:
        """The same two parts behind each other in a last dim of 2: back in their places."""
        dims = node.output.dims
        if len(inputs) != 2 or len(dims) < 3 or dims[-1] != 2:
            return None
        parts = [self.without_last_one(value) for value in inputs]
        rope = self.from_parts(parts[0], parts[1], out_pairing="pairs")
        return None if rope is None else self.reshaped(rope, dims)

    def partial(self, inputs: Inputs) -> Replacement:
        """concat of one rope and of neighbouring slices of the value that was rotated: a rope of a part of it."""
        ropes = [(i, node) for i, value in enumerate(inputs) if (node := self.full_rope(value)) is not None]
        if len(ropes) != 1:
            return None
        position, rope = ropes[0]
        spans = [self.span(value if i != position else self.rotated_value(value, rope)) for i, value in enumerate(inputs)]
        for before, after in itertools.pairwise(spans):
            if before.base is not after.base or before.step != 1 or after.step != 1 or before.start + before.size != after.start:
                return None
        size = sum(span.size for span in spans)
        whole = self.slice_of(_Span(spans[0].base, spans[0].start, size))
        offset = spans[position].start - spans[0].start
        return self.emit(whole, rope.inputs[1], rope.inputs[2], str(rope.attrs["style"]), spans[position].size, offset)

    # --- parts of a pattern

    def factors(self, value: Value | None) -> Iterator[tuple[Value, Value]]:
        """Both orders of a product of two."""
        node = self.rw.producer(value, "ew.mul")
        if node is not None:
            a, b = node.inputs
            assert a is not None and b is not None
            yield a, b
            yield b, a

    def rotation_style(self, rotated: Value, x: Value) -> tuple[str, bool] | None:
        """The style, and whether it turns backwards: `rotated` is (−x2, x1) or backwards (x2, −x1), of halves or interleaved."""
        if x.dims != rotated.dims or not x.dims:
            return None
        reshape = self.rw.producer(rotated, "tensor.reshape")
        for style, joined in (("half", rotated), ("interleaved", reshape.inputs[0] if reshape else None)):
            concat = self.rw.producer(joined, "tensor.concat")
            if concat is None or len(concat.inputs) != 2 or concat.attrs["dim"] != len(concat.output.dims) - 1:
                continue
            if style == "interleaved" and concat.output.dims[-1] != 2:
                continue
            first, second = (self.without_last_one(value) for value in concat.inputs)
            parts = _parts(self.span(x), _PAIRINGS[style])
            for x1, x2, is_backwards in ((second, self.negated(first), False), (self.negated(second), first, True)):
                if x1 is not None and x2 is not None and (self.span(x1), self.span(x2)) == parts:
                    return style, is_backwards
        return None

    def from_parts(self, first: Value, second: Value, out_pairing: str) -> Value | None:
        """(x1·cos − x2·sin, x2·cos + x1·sin)."""
        minus, plus = self.rw.producer(first, "ew.sub"), self.rw.producer(second, "ew.add")
        if minus is None or plus is None:
            return None
        for x1, cos in self.factors(minus.inputs[0]):
            for x2, sin in self.factors(minus.inputs[1]):
                products = [set(self.factors(value)) for value in plus.inputs]
                if not any((x2, cos) in p and (x1, sin) in q for p, q in (products, products[::-1])):
                    continue
                for pairing in ("halves", "pairs"):
                    x = self.whole_of(x1, x2, pairing)
                    style = _STYLES.get((pairing, out_pairing))
                    if x is not None and style is not None and (rope := self.rope(x, cos, sin, style, is_full_width=False)) is not None:
                        return rope
        return None

    def whole_of(self, x1: Value, x2: Value, pairing: str) -> Value | None:
        """The value whose two parts x1 and x2 are."""
        a, b = self.span(self.without_last_one(x1)), self.span(self.without_last_one(x2))
        whole = _Span(a.base, a.start, 2 * a.size)
        return self.slice_of(whole) if (a, b) == _parts(whole, pairing) else None

    def rope(self, x: Value, cos: Value, sin: Value, style: str, is_full_width: bool, is_backwards: bool = False) -> Value | None:
        """The op, if x is [T, heads, R] or [T, R] and the tables are one row per token. Backwards is a turn by −sin."""
        size = x.dims[-1]
        width = size if is_full_width else _half(size)
        if len(x.dims) not in (2, 3) or not isinstance(size, int) or size % 2:
            return None
        row: Dims = (x.dims[0], *(1,) * (len(x.dims) - 2), width)
        if cos.dims != row or sin.dims != row:
            return None
        tables: list[Value] = []
        for table in (cos, sin):
            flat = self.reshaped(table, (x.dims[0], width))
            half = self.half_of(flat, _PAIRINGS[style]) if is_full_width else self.narrowed(flat)
            if half is None:
                return None
            tables.append(half)
        if is_backwards:
            tables[1] = self.rw.add("ew.neg", [tables[1]])
        if style == "half" and (paired := self.with_pairs_moved(x)) is not None:
            x, style = paired, "interleaved_to_half"
        return self.emit(x, tables[0], tables[1], style, size, 0)

    def with_pairs_moved(self, x: Value) -> Value | None:
        """y, where x is y with its even elements moved in front of its odd ones."""
        outer = self.rw.producer(x, "tensor.reshape")
        permute = self.rw.producer(outer.inputs[0], "tensor.permute") if outer else None
        if permute is not None:
            paired, rank = permute.inputs[0], len(permute.output.dims)
            assert paired is not None
            moves_pairs = permute.attrs["perm"] == (*range(rank - 2), rank - 1, rank - 2)
            if moves_pairs and paired.dims == (*x.dims[:-1], _half(x.dims[-1]), 2):
                return self.reshaped(paired, x.dims)
        concat = self.rw.producer(x, "tensor.concat")
        if concat is not None and len(concat.inputs) == 2:
            even, odd = concat.operands
            return self.whole_of(even, odd, pairing="pairs")
        return None

    def emit(self, x: Value, cos: Value | None, sin: Value | None, style: str, rotary_dim: int, offset: int) -> Value:
        """nn.rope wants a head dim; a single head has none in token-major form."""
        heads = x if len(x.dims) == 3 else self.reshaped(x, (x.dims[0], 1, x.dims[1]))
        rope = self.rw.add("nn.rope", [heads, cos, sin], {"style": style, "rotary_dim": rotary_dim, "offset": offset})
        return self.reshaped(rope, x.dims)

    def full_rope(self, value: Value | None) -> Node | None:
        """The rope that made the value, if it rotates all of it."""
        node = self.rw.producer(self.rw.through(value, "tensor.reshape"), "nn.rope")
        return node if node is not None and node.attrs["rotary_dim"] == node.output.dims[-1] == _last(value) else None

    def rotated_value(self, value: Value | None, rope: Node) -> Value:
        """What the rope rotated, with the rank of its result `value`."""
        assert value is not None and rope.inputs[0] is not None
        return self.reshaped(rope.inputs[0], value.dims)

    # --- values

    def span(self, value: Value | None) -> _Span:
        """The value as elements of what it was sliced from."""
        assert value is not None
        size = value.dims[-1]
        assert isinstance(size, int)
        source = self.split_source(value)
        if source is not None:
            return source
        node = self.rw.producer(value, "tensor.slice")
        if node is None or node.attrs["dim"] != len(value.dims) - 1:
            return _Span(value, 0, size)
        base, start, step = node.inputs[0], node.attrs["start"], node.attrs["step"]
        assert base is not None and isinstance(start, int) and isinstance(step, int)
        outer = self.span(base) if step == 1 else _Span(base, 0, size)
        return _Span(outer.base, outer.start + start * outer.step, size, step * outer.step)

    def split_source(self, value: Value) -> _Span | None:
        """For a value taken from a split last dim, x.reshape(…, n, 2)[…, k] or x.reshape(…, 2, n)[…, k, :]: the elements of x."""
        outer = self.rw.producer(value, "tensor.reshape")
        pick = self.rw.producer(outer.inputs[0], "tensor.slice") if outer else None
        split = self.rw.producer(pick.inputs[0], "tensor.reshape") if pick else None
        if pick is None or split is None or split.inputs[0] is None:
            return None
        parts, start, size = split.output.dims, pick.attrs["start"], value.dims[-1]
        assert isinstance(start, int) and isinstance(size, int)
        if parts[:-2] != value.dims[:-1] or pick.output.dims[pick.attrs["dim"]] != 1:  # type: ignore[index]
            return None
        if parts[-2:] not in ((size, 2), (2, size)):
            return None
        source, rank = self.reshaped(split.inputs[0], (*value.dims[:-1], 2 * size)), len(parts)
        whole = self.span(source)
        if parts[-2:] == (size, 2) and pick.attrs["dim"] == rank - 1:
            return _Span(whole.base, whole.start + start * whole.step, size, 2 * whole.step)
        if parts[-2:] == (2, size) and pick.attrs["dim"] == rank - 2:
            return _Span(whole.base, whole.start + start * size * whole.step, size, whole.step)
        return None

    def slice_of(self, span: _Span) -> Value:
        if span.size == span.base.dims[-1]:
            return span.base
        attrs = {"dim": len(span.base.dims) - 1, "start": span.start, "stop": span.start + span.size}
        result: Value = self.rw.add("tensor.slice", [span.base], attrs)
        return result

    def reshaped(self, value: Value, dims: Dims) -> Value:
        """A reshape that sees through the reshapes above."""
        source = self.rw.through(value, "tensor.reshape")
        assert source is not None
        if value.dims == dims or source.dims == dims:
            return value if value.dims == dims else source
        if (source, dims) not in self.reshapes:
            self.reshapes[source, dims] = self.rw.add("tensor.reshape", [source], {"dims": dims})
        return self.reshapes[source, dims]

    def negated(self, value: Value | None) -> Value | None:
        """What the value is the negative of, without a last dim of size 1."""
        node = self.rw.producer(value, "ew.neg")
        return self.without_last_one(node.inputs[0]) if node else None

    def without_last_one(self, value: Value | None) -> Value:
        """The value without a last dim of size 1."""
        assert value is not None
        return self.reshaped(value, value.dims[:-1]) if value.dims[-1] == 1 else value

    def half_of(self, value: Value, pairing: str) -> Value | None:
        """[T, R/2] h such that the value is concat(h, h) ("halves") or repeats each element of h ("pairs"); None if that is not proven."""
        key = (value, pairing)
        if key not in self.halves:
            self.halves[key] = self.find_half(value, pairing)
        return self.halves[key]

    def find_half(self, value: Value, pairing: str) -> Value | None:
        data = self.rw.data(value)
        if data is not None:
            half = _half_of_array(data, pairing)
            return None if half is None else self.rw.builder.constant(half)
        node = self.rw.producer(value)
        if node is None:
            return None
        if node.op in POINTWISE:
            return self.half_of_pointwise(node, pairing)
        if node.op in ("nn.embedding", "tensor.gather_rows"):
            table = self.half_of(node.inputs[0], pairing) if node.inputs[0] is not None else None
            rows_first = (table, node.inputs[1])
            return None if table is None else self.rw.add(node.op, rows_first)
        if pairing == "halves" and node.op == "tensor.concat" and _is_twice(node) and node.attrs["dim"] == len(value.dims) - 1:
            return node.inputs[0]
        if node.op == "tensor.reshape":
            return self.half_of_reshape(node, pairing)
        return None

    def half_of_pointwise(self, node: Node, pairing: str) -> Value | None:
        operands: list[Value] = []
        for operand in node.operands:
            is_row = bool(operand.dims) and operand.dims[-1] == node.output.dims[-1]
            half = self.half_of(operand, pairing) if is_row else operand
            if half is None:
                return None
            operands.append(half)
        result: Value = self.rw.add(node.op, operands)
        return result

    def half_of_reshape(self, node: Node, pairing: str) -> Value | None:
        """A copy behind (…, n, 2) or in front (…, 2, n) of itself, seen as one dim; or a reshape of the dims before."""
        source, out = node.inputs[0], node.output
        assert source is not None
        if source.dims and source.dims[-1] == out.dims[-1]:
            half = self.half_of(source, pairing)
            return None if half is None else self.reshaped(half, (*out.dims[:-1], half.dims[-1]))
        half_dims = (*out.dims[:-1], _half(out.dims[-1]))
        copies = (*half_dims, 2) if pairing == "pairs" else (*out.dims[:-1], 2, half_dims[-1])
        axis = len(copies) - (1 if pairing == "pairs" else 2)
        repeat = self.rw.producer(source, "tensor.expand", "tensor.concat")
        if source.dims != copies or repeat is None or repeat.inputs[0] is None:
            return None
        one = tuple(1 if i == axis else dim for i, dim in enumerate(copies))
        is_concat = repeat.op == "tensor.concat" and repeat.attrs["dim"] == axis and _is_twice(repeat)
        is_expand = repeat.op == "tensor.expand" and repeat.inputs[0].dims == one
        return self.narrowed(self.reshaped(repeat.inputs[0], half_dims)) if is_concat or is_expand else None

    def narrowed(self, half: Value) -> Value:
        """The first half of a value made of equal halves, computed without the other."""
        node = self.rw.producer(half, "tensor.slice")
        if node is None or node.inputs[0] is None or node.attrs["start"] != 0 or node.attrs["step"] != 1:
            return half
        whole = node.inputs[0]
        if node.attrs["dim"] != len(whole.dims) - 1 or whole.dims[-1] != _times(half.dims[-1], 2):
            return half
        return self.half_of(whole, "halves") or half


def _parts(whole: _Span, pairing: str) -> tuple[_Span, _Span]:
    """The two spans that rotate against each other."""
    half = whole.size // 2
    if pairing == "halves":
        return _Span(whole.base, whole.start, half), _Span(whole.base, whole.start + half, half)
    return _Span(whole.base, whole.start, half, 2), _Span(whole.base, whole.start + 1, half, 2)


def _half_of_array(array: np.ndarray, pairing: str) -> np.ndarray | None:
    size = array.shape[-1]
    first, second = (array[..., : size // 2], array[..., size // 2 :]) if pairing == "halves" else (array[..., 0::2], array[..., 1::2])
    return first.copy() if first.shape == second.shape and np.array_equal(first, second) else None


def _is_twice(concat: Node) -> bool:
    return len(concat.inputs) == 2 and concat.inputs[0] is concat.inputs[1]


def _times(dim: int | str, factor: int) -> int | None:
    return dim * factor if isinstance(dim, int) else None


def _half(dim: int | str) -> int:
    return dim // 2 if isinstance(dim, int) else 0


def _last(value: Value | None) -> int | str | None:
    return value.dims[-1] if value is not None and value.dims else None
