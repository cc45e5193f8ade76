"""One spelling for each thing, and no op that does nothing: what later passes match is what this pass writes.

Movement: reshapes, permutes, slices and concats of each other collapse; those that change nothing vanish.
Arithmetic: scalars are 0-d constants on the right; x·x and x² are `square`; 1/√x is `rsqrt`; x−c is x+(−c); ×1, +0, ÷1 vanish; a row mean
that was written as sum ÷ n is a mean; an operand that broadcasts by itself is not expanded first.

before:
    input %x: f32[num_tokens, 8]
    %a = tensor.reshape(%x) {dims=["num_tokens", 2, 4]}
    %b = tensor.reshape(%a) {dims=["num_tokens", 8]}
    %c = ew.mul(2.0, %b)
    %d = ew.pow(%c, 2.0)
    return %d
after:
    input %x: f32[num_tokens, 8]
    %c = ew.mul(%x, 2.0)
    %d = ew.square(%c)
    return %d
"""

from __future__ import annotations

from collections.abc import Callable

from ..ir.graph import Dims, Graph, Node, Value, num_elements
from ..ir.ops import POINTWISE
from ..ir.rewrite import Inputs, Replacement, Rewriter, rewrite

_COMMUTATIVE = ("ew.add", "ew.mul", "ew.minimum", "ew.maximum", "ew.eq", "ew.ne", "ew.and", "ew.or")


def run(graph: Graph) -> Graph:
    return rewrite(graph, _rule)


def _rule(rw: Rewriter, node: Node, inputs: Inputs) -> Replacement:
    if node.op in POINTWISE:
        return _pointwise(rw, node, inputs)
    rule = _RULES.get(node.op)
    return rule(rw, node, inputs) if rule else None


# --- movement


def _reshape(rw: Rewriter, node: Node, inputs: Inputs) -> Replacement:
    x, dims = inputs[0], node.output.dims
    inner = rw.producer(x, "tensor.reshape")
    source = inner.inputs[0] if inner else x
    assert source is not None
    if source.dims == dims:
        return source
    if inner is not None:
        return rw.add("tensor.reshape", [source], {"dims": dims})
    return None


def _permute(rw: Rewriter, node: Node, inputs: Inputs) -> Replacement:
    """Two permutes are one; one that only moves size-1 dims is a reshape."""
    perm = node.attrs["perm"]
    inner = rw.producer(inputs[0], "tensor.permute")
    source, perms = (inner.inputs[0], inner.attrs["perm"]) if inner else (inputs[0], None)
    assert source is not None and isinstance(perm, tuple)
    if isinstance(perms, tuple):
        perm = tuple(perms[i] for i in perm)
    moved = [i for i in perm if source.dims[i] != 1]
    if moved == sorted(moved):
        return _reshaped(rw, source, node.output.dims)
    return rw.add("tensor.permute", [source], {"perm": perm}) if inner else None


def _reshaped(rw: Rewriter, value: Value, dims: Dims) -> Value:
    return value if value.dims == dims else rw.add("tensor.reshape", [value], {"dims": dims})


def _expand(rw: Rewriter, node: Node, inputs: Inputs) -> Replacement:
    x, dims = inputs[0], node.output.dims
    assert x is not None
    if x.dims == dims:
        return x
    if num_elements(x.dims) == num_elements(dims):
        return rw.add("tensor.reshape", [x], {"dims": dims})
    inner = rw.producer(x, "tensor.expand")
    return rw.add("tensor.expand", [inner.inputs[0]], {"dims": dims}) if inner else None


def _slice(rw: Rewriter, node: Node, inputs: Inputs) -> Replacement:
    """Of everything; of a slice; of one part of a concat; of an expansion."""
    x = inputs[0]
    dim, start, stop, step = (node.attrs[name] for name in ("dim", "start", "stop", "step"))
    assert x is not None and isinstance(dim, int) and isinstance(start, int) and isinstance(stop, int) and isinstance(step, int)
    if x.dims == node.output.dims:
        return x
    inner = rw.producer(x, "tensor.slice")
    if inner and inner.attrs["dim"] == dim and inner.attrs["step"] == 1:
        offset = inner.attrs["start"]
        assert isinstance(offset, int)
        return rw.add("tensor.slice", inner.inputs, {"dim": dim, "start": start + offset, "stop": stop + offset, "step": step})
    inner = rw.producer(x, "tensor.concat")
    if inner and inner.attrs["dim"] == dim:
        return _slice_of_concat(rw, inner, dim, start, stop, step)
    return None


def _slice_of_concat(rw: Rewriter, concat: Node, dim: int, start: int, stop: int, step: int) -> Replacement:
    offset = 0
    for part in concat.operands:
        size = part.dims[dim]
        assert isinstance(size, int)
        if offset <= start and stop <= offset + size:
            if (start, stop, step) == (offset, offset + size, 1):
                return part
            return rw.add("tensor.slice", [part], {"dim": dim, "start": start - offset, "stop": stop - offset, "step": step})
        offset += size
    return None


def _concat(rw: Rewriter, node: Node, inputs: Inputs) -> Replacement:
    """Neighbouring slices of one value are one slice."""
    dim = node.attrs["dim"]
    merged: list[Value] = []
    for part in inputs:
        assert part is not None
        joined = _joined_slices(rw, merged[-1], part, dim) if merged else None
        merged[-1:] = [*merged[-1:], part] if joined is None else [joined]
    if len(merged) == 1:
        return merged[0]
    return rw.add("tensor.concat", merged, {"dim": dim}) if len(merged) != len(inputs) else None


def _joined_slices(rw: Rewriter, a: Value, b: Value, dim: object) -> Value | None:
    first, second = rw.producer(a, "tensor.slice"), rw.producer(b, "tensor.slice")
    if first is None or second is None or first.inputs[0] is not second.inputs[0]:
        return None
    if any(n.attrs["dim"] != dim or n.attrs["step"] != 1 for n in (first, second)) or first.attrs["stop"] != second.attrs["start"]:
        return None
    source, start, stop = first.inputs[0], first.attrs["start"], second.attrs["stop"]
    assert source is not None and isinstance(dim, int)
    if start == 0 and stop == source.dims[dim]:
        return source
    return rw.add("tensor.slice", [source], {"dim": dim, "start": start, "stop": stop})


def _cast(rw: Rewriter, node: Node, inputs: Inputs) -> Replacement:
    x = inputs[0]
    assert x is not None
    if x.dtype == node.attrs["dtype"]:
        return x
    inner = rw.producer(x, "tensor.cast")
    if inner and inner.inputs[0] is not None and inner.inputs[0].dtype == "bool":
        return rw.add("tensor.cast", inner.inputs, dict(node.attrs))  # bool → anything → anything
    return None


# --- arithmetic


def _pointwise(rw: Rewriter, node: Node, inputs: Inputs) -> Replacement:
    operands = [_without_expansion(rw, node, inputs, i) for i in range(len(inputs))]
    if node.op in _COMMUTATIVE and rw.scalar(operands[0]) is not None and rw.scalar(operands[1]) is None:
        operands.reverse()
    rule = _ARITHMETIC.get(node.op)
    result = rule(rw, node, operands) if rule else None
    if result is not None:
        return result if result.dims == node.output.dims else rw.add("tensor.expand", [result], {"dims": node.output.dims})
    changed = any(a is not b for a, b in zip(operands, inputs, strict=True))
    return rw.add(node.op, operands) if changed else None


def _without_expansion(rw: Rewriter, node: Node, inputs: Inputs, position: int) -> Value:
    """The operand before expansions that broadcasting makes anyway, as long as the result keeps its dims; a uniform array as a scalar."""
    value = inputs[position]
    assert value is not None
    others = [other.dims for i, other in enumerate(inputs) if i != position and other is not None]
    scalar = _uniform(rw, value)
    if scalar is not None and node.output.dims in others:
        return scalar
    inner = rw.producer(value, "tensor.expand")
    if inner and inner.inputs[0] is not None and node.output.dims in others:
        return inner.inputs[0]
    return value


def _uniform(rw: Rewriter, value: Value) -> Value | None:
    """The 0-d constant that the value is full of."""
    if not value.dims:
        return None
    full = rw.producer(value, "tensor.full")
    if full:
        number, dtype = full.attrs["value"], value.dtype
        assert isinstance(number, int | float)
        return rw.builder.constant(bool(number) if dtype == "bool" else int(number) if dtype == "i32" else float(number))
    data = rw.data(rw.through(value, "tensor.reshape", "tensor.expand"))
    if data is not None and data.size == 1:
        return rw.builder.constant(data.reshape(()))
    return None


def _add(rw: Rewriter, node: Node, x: list[Value]) -> Value | None:
    return x[0] if rw.scalar(x[1]) == 0 else None


def _sub(rw: Rewriter, node: Node, x: list[Value]) -> Value | None:
    """x − c is x + (−c), exactly."""
    data = rw.data(x[1])
    if data is None or data.ndim:
        return None
    return x[0] if data == 0 else rw.add("ew.add", [x[0], rw.builder.constant(-data)])


def _mul(rw: Rewriter, node: Node, x: list[Value]) -> Value | None:
    if x[0] is x[1]:
        return rw.add("ew.square", [x[0]])
    return x[0] if rw.scalar(x[1]) == 1 else None


def _div(rw: Rewriter, node: Node, x: list[Value]) -> Value | None:
    if rw.scalar(x[1]) == 1:
        return x[0]
    root = rw.producer(x[1], "ew.sqrt")
    if root and rw.scalar(x[0]) == 1:
        return rw.add("ew.rsqrt", root.inputs)
    total = rw.producer(x[0], "reduce.sum")
    if total and total.inputs[0] is not None and x[0].dtype == "f32":
        size = total.inputs[0].dims[total.attrs["dim"]]  # type: ignore[index]
        if rw.scalar(x[1]) == size:
            return rw.add("reduce.mean", total.inputs, dict(total.attrs))
    return None


def _pow(rw: Rewriter, node: Node, x: list[Value]) -> Value | None:
    exponent = rw.scalar(x[1])
    if exponent == 1:
        return x[0]
    op = {2.0: "ew.square", 0.5: "ew.sqrt", -0.5: "ew.rsqrt"}.get(exponent) if exponent is not None else None
    return rw.add(op, [x[0]]) if op else None


def _maximum(rw: Rewriter, node: Node, x: list[Value]) -> Value | None:
    return rw.add("ew.relu", [x[0]]) if rw.scalar(x[1]) == 0 else None


def _twice(rw: Rewriter, node: Node, x: list[Value]) -> Value | None:
    """−(−x), ¬¬x."""
    inner = rw.producer(x[0], node.op)
    return inner.inputs[0] if inner else None


def _where(rw: Rewriter, node: Node, x: list[Value]) -> Value | None:
    """where(¬c, a, b) is where(c, b, a)."""
    condition = rw.data(x[0])
    if condition is not None and condition.ndim == 0:
        return x[1] if condition else x[2]
    inverse = rw.producer(x[0], "ew.not")
    return rw.add("ew.where", [inverse.inputs[0], x[2], x[1]]) if inverse else None


_ARITHMETIC: dict[str, Callable[[Rewriter, Node, list[Value]], Value | None]] = {
    "ew.add": _add,
    "ew.sub": _sub,
    "ew.mul": _mul,
    "ew.div": _div,
    "ew.pow": _pow,
    "ew.maximum": _maximum,
    "ew.neg": _twice,
    "ew.not": _twice,
    "ew.where": _where,
}
_RULES: dict[str, Callable[[Rewriter, Node, Inputs], Replacement]] = {
    "tensor.reshape": _reshape,
    "tensor.permute": _permute,
    "tensor.expand": _expand,
    "tensor.slice": _slice,
    "tensor.concat": _concat,
    "tensor.cast": _cast,
}
