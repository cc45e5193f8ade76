"""The op table: one row per op with its operands, attributes, shape rule and numpy reference. The prose of it is docs/ir.md.

An operand spelled `name?` is optional, `name*` repeats one or more times. An attribute has a kind, and a default where it may be left out.
Unknown ops and attributes are refused with the nearest known name.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import reference as ref
from . import shapes
from .graph import DTYPES, NAMED_DIMS, Attr, GraphError


@dataclass(frozen=True, slots=True)
class AttrSpec:
    """Name and kind of an attribute; `default` None: it must be given."""

    name: str
    kind: str  # int float bool str dtype ints dims act style code
    default: Attr | None = None


@dataclass(frozen=True, slots=True)
class Op:
    """A row. `reference` is None only for attn.paged, which needs the batch (attention.py)."""

    name: str
    operands: tuple[str, ...]
    attrs: tuple[AttrSpec, ...]
    shape_rule: shapes.Rule
    reference: ref.Reference | None

    @property
    def is_variadic(self) -> bool:
        return self.operands[-1:] != () and self.operands[-1].endswith("*")

    @property
    def num_required(self) -> int:
        return sum(not name.endswith("?") for name in self.operands)


OPS: dict[str, Op] = {}


def _op(name: str, operands: str, attrs: str, rule: shapes.Rule, reference: ref.Reference | None) -> None:
    """`attrs` is like `dim:int eps:float=1e-6`."""
    specs = []
    for text in attrs.split():
        attr, kind = text.split(":")
        kind, _, default = kind.partition("=")
        specs.append(AttrSpec(attr, kind, _DEFAULTS[kind](default) if default else None))
    OPS[name] = Op(name, tuple(operands.split()), tuple(specs), rule, reference)


_DEFAULTS: dict[str, Callable[[str], Attr]] = {"int": int, "float": float, "bool": lambda text: text == "true", "str": str}

_op("tensor.reshape", "x", "dims:dims", shapes.reshape, lambda x, a: x[0].reshape(a["dims"]))
_op("tensor.permute", "x", "perm:ints", shapes.permute, lambda x, a: x[0].transpose(a["perm"]))
_op("tensor.expand", "x", "dims:dims", shapes.expand, lambda x, a: np.broadcast_to(x[0], a["dims"]))
_op("tensor.slice", "x", "dim:int start:int stop:int step:int=1", shapes.slice_, ref.slice_)
_op("tensor.concat", "x*", "dim:int", shapes.concat, ref.concat)
_op("tensor.cast", "x", "dtype:dtype", shapes.cast, lambda x, a: x[0].astype(ref.NUMPY_DTYPES[a["dtype"]]))
_op("tensor.gather", "x index", "dim:int", shapes.gather, ref.gather)
_op("tensor.scatter", "x index src", "dim:int", shapes.scatter, ref.scatter)
_op("tensor.gather_rows", "x rows", "", shapes.gather_rows, lambda x, a: x[0][x[1]])
_op("tensor.full", "", "dims:dims value:float dtype:dtype", shapes.full, ref.full)
_op("tensor.iota", "", "dims:dims dim:int dtype:dtype", shapes.iota, ref.iota)
_op("tensor.topk", "x", "k:int dim:int largest:bool=true", shapes.topk, ref.topk)
_op("tensor.matmul", "a b", "", shapes.matmul, lambda x, a: x[0] @ x[1])
_op("tensor.cumsum", "x", "dim:int", shapes.cumsum, lambda x, a: np.cumsum(x[0], axis=a["dim"], dtype=x[0].dtype))

_REDUCE = "dim:int keepdim:bool=false"
_op("reduce.sum", "x", _REDUCE, shapes.reduce_, ref.reduction(lambda x, **kw: np.sum(x, dtype=x.dtype, **kw)))
_op("reduce.mean", "x", _REDUCE, shapes.reduce_float, ref.reduction(np.mean))
_op("reduce.max", "x", _REDUCE, shapes.reduce_, ref.reduction(np.max))
_op("reduce.min", "x", _REDUCE, shapes.reduce_, ref.reduction(np.min))
_op("reduce.argmax", "x", _REDUCE, shapes.argmax, ref.reduction(np.argmax))

for _name, _rule in shapes.EW_RULES.items():
    _operands = "condition a b" if _name == "where" else "a b" if _name in ref.BINARY else "x"
    _op(f"ew.{_name}", _operands, "", _rule, ref.pointwise(_name))
_op("ew.program", "x*", "code:code", shapes.ew_program, ref.program)

_op("nn.linear", "x w b?", "", shapes.linear, ref.linear)
_op("nn.embedding", "table ids", "", shapes.embedding, lambda x, a: x[0][x[1]])
_op("nn.rms_norm", "x w?", "eps:float", shapes.norm, ref.rms_norm)
_op("nn.layer_norm", "x w? b?", "eps:float", shapes.norm, ref.layer_norm)
_op("nn.add_rms_norm", "x residual w?", "eps:float", shapes.add_norm, ref.add_rms_norm)
_op("nn.add_layer_norm", "x residual w? b?", "eps:float", shapes.add_norm, ref.add_layer_norm)
_op("nn.rope", "x cos sin", "style:style rotary_dim:int offset:int=0", shapes.rope, ref.rope)
_op("nn.act_mul", "gate up", "act:act", shapes.act_mul, ref.act_mul)
_op("nn.softmax", "x", "dim:int", shapes.softmax, ref.softmax)
_op("nn.conv1d", "x w b?", "stride:int=1 padding:int=0 dilation:int=1 groups:int=1", shapes.conv1d, ref.conv1d)

_ATTENTION = "scale:float kv_layer:int window:int=0 chunk:int=0 softcap:float=0 has_sinks:bool=false has_slopes:bool=false"
_op("attn.paged", "q k v sinks? alibi_slopes?", _ATTENTION, shapes.attention, None)
_EXPERTS = "act:expert_act has_gate:bool=true has_bias:bool=false alpha:float=0 limit:float=0"
_op("moe.experts", "x expert_ids expert_weights gate_up down gate_up_bias? down_bias?", _EXPERTS, shapes.experts, ref.experts)

POINTWISE = frozenset(name for name in OPS if name.startswith("ew.") and name != "ew.program")
ACTS = frozenset(ref.UNARY) - {"not"}
PROMOTES_TO_FLOAT = frozenset(f"ew.{name}" for name, rule in shapes.EW_RULES.items() if rule is shapes.ew_float)
STYLES = ("half", "interleaved", "interleaved_to_half")


def lookup(name: str) -> Op:
    """The row of an op."""
    if name not in OPS:
        close = difflib.get_close_matches(name, OPS, 1)
        raise GraphError(f"unknown op '{name}'", try_=f"did you mean '{close[0]}'?" if close else "docs/ir.md lists the ops")
    return OPS[name]


def normalise_attrs(op: Op, attrs: Mapping[str, Any]) -> dict[str, Attr]:
    """Checks kinds, fills defaults, orders as in the table."""
    known = {spec.name for spec in op.attrs}
    for name in attrs:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            advice = f"did you mean '{close[0]}'?" if close else f"it has {sorted(known)}"
            raise GraphError(f"{op.name} has no attribute '{name}'", try_=advice)
    result: dict[str, Attr] = {}
    for spec in op.attrs:
        value = attrs.get(spec.name, spec.default)
        if value is None:
            raise GraphError(f"{op.name} needs the attribute '{spec.name}' ({spec.kind})")
        result[spec.name] = _coerce(op, spec, value)
    return result


def _coerce(op: Op, spec: AttrSpec, value: Any) -> Attr:
    """`value` as the kind of the attribute, plain Python types inside."""
    try:
        return _KINDS[spec.kind](value)
    except (TypeError, ValueError) as error:
        raise GraphError(f"{op.name}: {spec.name}={value!r} is not of kind {spec.kind}: {error}") from None


def _exact_int(value: Any) -> int:
    if isinstance(value, bool) or int(value) != value:
        raise ValueError("not an integer")
    return int(value)


def _dim(value: Any) -> int | str:
    if isinstance(value, str):
        return _one_of(NAMED_DIMS)(value)
    if _exact_int(value) < 0:
        raise ValueError("a dim cannot be negative")
    return int(value)


def _one_of(names: Any) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if value not in names:
            raise ValueError(f"known are {sorted(names)}")
        return str(value)

    return check


def _bool(value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise ValueError("not a bool")
    return bool(value)


def _code(value: Any) -> tuple:
    """`ew.program` code: every operand must name an earlier register or an input."""
    code = []
    for position, (fn, *operands) in enumerate(value):
        arity = 3 if fn == "where" else 2 if fn in ref.BINARY else 1
        if f"ew.{fn}" not in POINTWISE or len(operands) != arity:
            raise ValueError(f"'{fn}' with {len(operands)} operands")
        code.append((str(fn), *(_code_operand(kind, what, position) for kind, what in operands)))
    if not code:
        raise ValueError("empty")
    return tuple(code)


def _code_operand(kind: str, what: Any, position: int) -> tuple[str, int | float]:
    if kind == "const":
        return (kind, what if isinstance(what, bool | int) else float(what))
    index = _exact_int(what)
    if kind not in ("in", "reg") or index < 0 or (kind == "reg" and index >= position):
        raise ValueError(f"operand {(kind, what)} of step {position}")
    return (kind, index)


_KINDS: dict[str, Callable[[Any], Attr]] = {
    "int": _exact_int,
    "float": float,
    "bool": _bool,
    "str": str,
    "dtype": _one_of(DTYPES),
    "ints": lambda value: tuple(_exact_int(v) for v in value),
    "dims": lambda value: tuple(_dim(v) for v in value),
    "act": _one_of(ACTS),
    "expert_act": _one_of(ACTS | {"swiglu_clamped"}),
    "style": _one_of(STYLES),
    "code": _code,
}
