"""Translations of torch ops that move, cut and join elements. A table: op name → function of a Call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..ir.graph import Value
from .aten_call import Call, ComplexValue, EmptyValue

Result = Any  # Value, ComplexValue, EmptyValue, or a list of Values
Translation = Callable[[Call], Result]


def map_complex(translate: Callable[[Call, Value], Result]) -> Translation:
    """A translation of `self` that works on each part of a complex tensor alike."""

    def both(call: Call) -> Result:
        x = call.args["self"]
        if isinstance(x, ComplexValue):
            return ComplexValue(translate(call, x.real), translate(call, x.imag))
        return translate(call, call.value("self"))

    return both


# --- the same elements in the same order


def _reshape(call: Call, x: Value) -> Value:
    return call.reshape(x, call.dims)


def _expand(call: Call, x: Value) -> Value:
    return call.expand(x, call.dims)


def _identity(call: Call) -> Result:
    return call.args["self"] if "self" in call.args else call.args["input"]


def _cast(call: Call) -> Result:
    x = call.args["self"]
    if isinstance(x, ComplexValue):
        if not call.fake.is_complex():
            raise call.unsupported("a complex tensor is cast to a real one")
        return x
    return x if isinstance(x, EmptyValue) else call.cast(call.value("self"), call.dtype)


def _dropout(call: Call) -> Value:
    if call.args["train"] and call.args["p"]:
        raise call.unsupported("dropout is active; the model must be traced in eval mode")
    return call.value("input")


# --- another order


def _perm(call: Call, rank: int) -> list[int]:
    """Where each dim of the result comes from."""
    if call.name == "permute":
        return [int(dim) % rank for dim in call.args["dims"]]
    if call.name in ("t", "numpy_T"):
        return list(reversed(range(rank)))
    if call.name in ("movedim", "moveaxis"):
        source, destination = call.args["source"], call.args["destination"]
        sources = [source] if isinstance(source, int) else source
        targets = [destination] if isinstance(destination, int) else destination
        at = {int(target) % rank: int(origin) % rank for origin, target in zip(sources, targets, strict=True)}
        rest = iter(dim for dim in range(rank) if dim not in at.values())
        return [at[dim] if dim in at else next(rest) for dim in range(rank)]
    first, second = (-2, -1) if call.name in ("mT", "adjoint") else _dim_pair(call)
    perm = list(range(rank))
    perm[first % rank], perm[second % rank] = perm[second % rank], perm[first % rank]
    return perm


def _dim_pair(call: Call) -> tuple[int, int]:
    names = ("dim0", "dim1") if "dim0" in call.args else ("axis0", "axis1")
    return int(call.args[names[0]]), int(call.args[names[1]])


def _permute(call: Call, x: Value) -> Value:
    return call.permute(x, _perm(call, len(x.dims)))


# --- cutting


def slice_bounds(call: Call, size: int) -> tuple[int, int, int]:
    """start, stop, step of aten.slice along a dim of `size`, as torch clamps them."""
    start, stop, step = call.args.get("start"), call.args.get("end"), call.args.get("step", 1)
    if not all(bound is None or isinstance(bound, int) for bound in (start, stop)):
        raise call.unsupported("a slice has bounds that depend on the number of tokens")
    return *slice(start, stop).indices(size)[:2], int(step)


def _slice(call: Call, x: Value) -> Value:
    dim = call.dim(x)
    size = x.dims[dim]
    if isinstance(size, int):
        start, stop, step = slice_bounds(call, size)
        return call.slice(x, dim, start, max(start, stop), step)
    if call.args.get("start") in (None, 0) and call.args.get("step", 1) == 1 and call.dims == x.dims:
        return x
    raise call.unsupported("a slice picks some of the packed tokens, which belong to several sequences")


def _select(call: Call, x: Value) -> Value:
    dim = call.dim(x)
    index = int(call.args["index"]) % call.static(x, dim)
    return call.reshape(call.slice(x, dim, index, index + 1), (*x.dims[:dim], *x.dims[dim + 1 :]))


def _pieces(call: Call) -> Result:
    """split, chunk, unbind: the sizes are read off what torch says the results are."""
    x = call.value("self")
    dim = call.dim(x)
    call.static(x, dim)
    results, start = [], 0
    for fake in call.fake:
        dims = call.dims_of(fake)
        length = 1 if call.name == "unbind" else dims[dim]
        assert isinstance(length, int)
        results.append(call.reshape(call.slice(x, dim, start, start + length), dims))
        start += length
    return results


# --- joining


def _concat(call: Call) -> Result:
    operands = call.args["tensors"]
    if any(isinstance(operand, ComplexValue) for operand in operands):
        raise call.unsupported("joining complex tensors has no translation")
    dtype = call.dtype
    values = [call.cast(value, dtype) for value in call.values("tensors") if value.dims != (0,)]
    return call.concat(values, int(call.args.get("dim", 0)) % len(values[0].dims))


def _stack(call: Call) -> Value:
    values = call.values("tensors")
    dim = int(call.args.get("dim", 0)) % (len(values[0].dims) + 1)
    return call.concat([call.reshape(v, (*v.dims[:dim], 1, *v.dims[dim:])) for v in values], dim)


def _repeat(call: Call, x: Value) -> Value:
    repeats = [int(r) if isinstance(r, int) else None for r in call.args["repeats"]]
    x = call.reshape(x, (*([1] * (len(repeats) - len(x.dims))), *x.dims))
    for dim, times in enumerate(repeats):
        if times == 1:
            continue
        if x.dims[dim] == 1:
            x = call.expand(x, (*x.dims[:dim], call.dims[dim], *x.dims[dim + 1 :]))
        elif times is None:
            raise call.unsupported("a tensor is repeated as often as there are tokens")
        else:
            call.static(x, dim)
            x = call.concat([x] * times, dim)
    return x


def _repeat_interleave(call: Call, x: Value) -> Value:
    if not isinstance(call.args.get("repeats"), int) or call.args.get("dim") is None:
        raise call.unsupported("repeat_interleave with a count per element has no translation")
    dim, times = call.dim(x), int(call.args["repeats"])
    size = call.static(x, dim)
    head, tail = x.dims[:dim], x.dims[dim + 1 :]
    wide = call.expand(call.reshape(x, (*head, size, 1, *tail)), (*head, size, times, *tail))
    return call.reshape(wide, (*head, size * times, *tail))


def _pad(call: Call, x: Value) -> Value:
    """constant_pad_nd: `pad` lists (before, after) from the last dim on."""
    if call.args.get("mode", "constant") != "constant":
        raise call.unsupported(f"padding with mode='{call.args['mode']}' has no translation")
    pad, value = call.args["pad"], call.args.get("value") or 0
    for i in range(0, len(pad), 2):
        dim, before, after = len(x.dims) - 1 - i // 2, int(pad[i]), int(pad[i + 1])
        if (before, after) == (0, 0):
            continue
        size = call.static(x, dim)
        x = call.slice(x, dim, max(0, -before), size + min(0, after))
        sides = [
            [call.filled((*x.dims[:dim], amount, *x.dims[dim + 1 :]), value, x.dtype)] if amount > 0 else [] for amount in (before, after)
        ]
        x = call.concat([*sides[0], x, *sides[1]], dim)
    return x


# --- complex views


def _view_as_complex(call: Call) -> ComplexValue:
    x = call.value("self")
    last = len(x.dims) - 1
    return ComplexValue(*(call.reshape(call.slice(x, last, part, part + 1), x.dims[:-1]) for part in (0, 1)))


def _view_as_real(call: Call) -> Value:
    x = call.args["self"]
    parts = [call.reshape(call.expand(part, call.dims[:-1]), (*call.dims[:-1], 1)) for part in (x.real, x.imag)]
    return call.concat(parts, len(call.dims) - 1)


def write_slice(call: Call, base: Any, dim: int, start: int, stop: int, piece: Value) -> Value | EmptyValue:
    """`base` with base[…, start:stop, …] replaced by `piece`."""
    if isinstance(base, EmptyValue):
        fits = base.dim in (None, dim) and all(stop <= a or b <= start or (a, b) == (start, stop) for a, b in base.pieces)
        if not fits:
            raise call.unsupported("an uninitialised tensor is written in overlapping pieces or along two dims")
        return EmptyValue(base.dims, dim, {**base.pieces, (start, stop): piece})
    size = call.static(base, dim)
    before = [call.slice(base, dim, 0, start)] if start else []
    after = [call.slice(base, dim, stop, size)] if stop < size else []
    return call.concat([*before, piece, *after], dim)


def _slice_scatter(call: Call) -> Result:
    base = call.args["self"]
    dim = int(call.args.get("dim", 0)) % len(base.dims)
    size = base.dims[dim]
    if not isinstance(size, int):
        raise call.unsupported("some of the packed tokens are written, which belong to several sequences")
    start, stop, step = slice_bounds(call, size)
    if step != 1:
        raise call.unsupported("writing every n-th element has no translation")
    return write_slice(call, base, dim, start, stop, call.value("src"))


MAYBE_SAME: Sequence[str] = (  # torch returns its argument where there is nothing to do
    "alias", "contiguous", "detach", "to", "type_as", "float", "dropout", "feature_dropout", "alpha_dropout", "lift_fresh",
)  # fmt: skip

RESHAPES = ("view", "reshape", "_unsafe_view", "unsqueeze", "squeeze", "flatten", "unflatten", "view_as", "reshape_as")
PERMUTES = ("permute", "transpose", "t", "numpy_T", "mT", "adjoint", "movedim", "moveaxis", "swapaxes", "swapdims")
PIECES = ("split", "chunk", "split_with_sizes", "unbind", "tensor_split", "unsafe_split", "unsafe_chunk")
VIEWS = (*RESHAPES, "expand", "expand_as", "broadcast_to", *PERMUTES, *PIECES, "slice", "select", "view_as_real", "view_as_complex")

TRANSLATIONS: dict[str, Translation] = {
    **dict.fromkeys(RESHAPES, map_complex(_reshape)),
    **dict.fromkeys(("expand", "expand_as", "broadcast_to"), map_complex(_expand)),
    **dict.fromkeys(PERMUTES, map_complex(_permute)),
    **dict.fromkeys(("alias", "clone", "contiguous", "detach", "lift_fresh", "lift_fresh_copy"), _identity),
    **dict.fromkeys(("to", "_to_copy", "type_as", "float"), _cast),
    **dict.fromkeys(("dropout", "feature_dropout", "alpha_dropout"), _dropout),
    **dict.fromkeys(PIECES, _pieces),
    **dict.fromkeys(("cat", "concat", "concatenate"), _concat),
    "slice": map_complex(_slice), "select": map_complex(_select), "stack": _stack, "repeat": map_complex(_repeat),
    "repeat_interleave": map_complex(_repeat_interleave), "constant_pad_nd": map_complex(_pad), "pad": map_complex(_pad),
    "slice_scatter": _slice_scatter,
    "view_as_complex": _view_as_complex, "view_as_real": _view_as_real,
}  # fmt: skip
