"""Translations of torch ops that work element by element, and of reductions and norms. A table: op name → function of a Call."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..ir.graph import Value
from .aten_call import Call, ComplexValue

Result = Any  # Value, ComplexValue, or a list of them
Translation = Callable[[Call], Result]

UNARY = {
    "neg": "neg", "abs": "abs", "sqrt": "sqrt", "rsqrt": "rsqrt", "square": "square", "exp": "exp", "log": "log", "log1p": "log1p",
    "sin": "sin", "cos": "cos", "tanh": "tanh", "sigmoid": "sigmoid", "erf": "erf", "relu": "relu", "silu": "silu", "floor": "floor",
    "logical_not": "not", "bitwise_not": "not",
}  # fmt: skip
BINARY = {
    "eq": "eq", "ne": "ne", "lt": "lt", "le": "le", "gt": "gt", "ge": "ge", "logical_and": "and", "logical_or": "or", "bitwise_and": "and",
    "bitwise_or": "or", "__and__": "and", "__or__": "or", "maximum": "maximum", "minimum": "minimum", "floor_divide": "floor_div",
    "remainder": "remainder",
}  # fmt: skip
SOFTPLUS_THRESHOLD = 20.0  # torch's default: linear above
LOGICAL = frozenset({"and", "or", "not"})


def _unary(call: Call) -> Value:
    x = call.value("self")
    op = UNARY[call.name]
    if op in LOGICAL and x.dtype != "bool":
        raise call.unsupported(f"{call.name} of {x.dtype} values has no translation")
    if call.dtype == "f32":
        x = call.cast(x, "f32")
    return call.add(f"ew.{op}", x)


def _binary(call: Call) -> Value:
    a, b = call.value("self"), call.value("other")
    op = BINARY[call.name]
    if op in LOGICAL and not (a.dtype == b.dtype == "bool"):
        raise call.unsupported(f"{call.name} of {a.dtype} values has no translation")
    return call.add(f"ew.{op}", a, b)


def _add(call: Call) -> Result:
    a, b = call.args["self"], call.args["other"]
    op = "ew.sub" if call.name in ("sub", "subtract") else "ew.add"
    if isinstance(a, ComplexValue) or isinstance(b, ComplexValue):
        a, b = as_complex(call, a), as_complex(call, b)
        return ComplexValue(call.add(op, a.real, b.real), call.add(op, a.imag, b.imag))
    a, b = call.real(a), call.real(b)
    alpha = call.args.get("alpha", 1)
    return call.add(op, a, b if alpha == 1 else call.add("ew.mul", b, alpha))


def _rsub(call: Call) -> Value:
    x, alpha = call.value("self"), call.args.get("alpha", 1)
    return call.add("ew.sub", call.value("other"), x if alpha == 1 else call.add("ew.mul", x, alpha))


def as_complex(call: Call, operand: Any) -> ComplexValue:
    if isinstance(operand, ComplexValue):
        return operand
    real = call.cast(call.real(operand), "f32")
    return ComplexValue(real, call.builder.constant(0.0))


def _mul(call: Call) -> Result:
    a, b = call.args["self"], call.args["other"]
    if not (isinstance(a, ComplexValue) or isinstance(b, ComplexValue)):
        if call.value("self").dtype == call.value("other").dtype == "bool":
            return call.add("ew.and", call.value("self"), call.value("other"))
        return call.add("ew.mul", call.value("self"), call.value("other"))
    if not isinstance(a, ComplexValue):
        a, b = b, a
    if not isinstance(b, ComplexValue):
        return ComplexValue(call.add("ew.mul", a.real, call.real(b)), call.add("ew.mul", a.imag, call.real(b)))
    real = call.add("ew.sub", call.add("ew.mul", a.real, b.real), call.add("ew.mul", a.imag, b.imag))
    imag = call.add("ew.add", call.add("ew.mul", a.real, b.imag), call.add("ew.mul", a.imag, b.real))
    return ComplexValue(real, imag)


def _div(call: Call) -> Value:
    a, b = call.value("self"), call.value("other")
    mode = call.args.get("rounding_mode")
    if mode == "floor":
        return call.add("ew.floor", call.add("ew.div", a, b)) if call.dtype == "f32" else call.add("ew.floor_div", a, b)
    if mode is not None:
        raise call.unsupported(f"div with rounding_mode='{mode}' has no translation")
    return call.add("ew.div", a, b)


def _reciprocal(call: Call) -> Value:
    return call.add("ew.div", 1.0, call.value("self"))


def _pow(call: Call) -> Value:
    return call.add("ew.pow", call.value("self"), call.value("exponent"))


def _expm1(call: Call) -> Value:
    return call.add("ew.sub", call.add("ew.exp", call.value("self")), 1.0)


def _gelu(call: Call) -> Value:
    return call.add("ew.gelu_tanh" if call.args.get("approximate") == "tanh" else "ew.gelu", call.value("self"))


def _softplus(call: Call) -> Value:
    if call.args.get("beta", 1) != 1 or call.args.get("threshold", SOFTPLUS_THRESHOLD) != SOFTPLUS_THRESHOLD:
        raise call.unsupported("softplus with another beta or threshold has no translation")
    return call.add("ew.softplus", call.value("self"))


def _log_sigmoid(call: Call) -> Value:
    return call.add("ew.neg", call.add("ew.softplus", call.add("ew.neg", call.value("self"))))


def _leaky_relu(call: Call) -> Value:
    x = call.value("self")
    return call.add("ew.where", call.add("ew.ge", x, 0.0), x, call.add("ew.mul", x, float(call.args["negative_slope"])))


def _clamp(call: Call) -> Value:
    x = call.value("self")
    low, high = call.args.get("min"), call.args.get("max")
    if low is not None:
        x = call.add("ew.maximum", x, call.real(low))
    return x if high is None else call.add("ew.minimum", x, call.real(high))


def _where(call: Call) -> Value:
    return call.add("ew.where", call.value("condition"), call.value("self"), call.value("other"))


def _masked_fill(call: Call) -> Value:
    x = call.value("self")
    return call.add("ew.where", call.value("mask"), call.cast(call.value("value"), x.dtype), x)


def _polar(call: Call) -> ComplexValue:
    length, angle = call.value("abs"), call.value("angle")
    return ComplexValue(call.add("ew.mul", length, call.add("ew.cos", angle)), call.add("ew.mul", length, call.add("ew.sin", angle)))


# --- reductions, norms, softmax


def _reduced_dims(call: Call, x: Value) -> list[int]:
    """The dims of a reduction, last first so that removing one does not move the others."""
    given = call.args.get("dim")
    dims = range(len(x.dims)) if given is None or given == [] else [given] if isinstance(given, int) else given
    return sorted({dim % len(x.dims) for dim in dims}, reverse=True)


def _reduce(op: str) -> Translation:
    def translate(call: Call) -> Value:
        x = call.value("self")
        if op in ("sum", "mean"):
            x = call.cast(x, call.dtype)
        for dim in _reduced_dims(call, x):
            x = call.add(f"reduce.{op}", x, dim=dim, keepdim=bool(call.args.get("keepdim", False)))
        return x

    return translate


def _arg_reduce(call: Call) -> Value:
    x = call.value("self")
    if call.args.get("dim") is None:
        raise call.unsupported("argmax over all dims has no translation")
    return call.add("reduce.argmax", x, dim=call.dim(x), keepdim=bool(call.args.get("keepdim", False)))


def _min_max(op: str) -> Translation:
    """max and min: of two tensors, over all, or over one dim with indices."""

    def translate(call: Call) -> Result:
        if "other" in call.args:
            return call.add(f"ew.{op}imum", call.value("self"), call.value("other"))
        if "dim" not in call.args:
            return _reduce(op)(call)
        x = call.value("self")
        attrs = {"dim": call.dim(x), "keepdim": bool(call.args.get("keepdim", False))}
        signed = x if op == "max" else call.add("ew.neg", x)
        return [call.add(f"reduce.{op}", x, **attrs), call.add("reduce.argmax", signed, **attrs)]

    return translate


def _layer_norm(call: Call) -> Value:
    _require_last_dim(call)
    return call.add("nn.layer_norm", call.value("input"), call.args.get("weight"), call.args.get("bias"), eps=float(call.args["eps"]))


def _rms_norm(call: Call) -> Value:
    _require_last_dim(call)
    eps = call.args.get("eps")
    return call.add(
        "nn.rms_norm", call.value("input"), call.args.get("weight"), eps=float(np.finfo(np.float32).eps if eps is None else eps)
    )


def _require_last_dim(call: Call) -> None:
    if len(call.args["normalized_shape"]) != 1:
        raise call.unsupported(f"a norm over {len(call.args['normalized_shape'])} dims has no translation")


def _softmax(call: Call) -> Value:
    x = call.cast(call.value("self"), "f32")
    return call.add("nn.softmax", x, dim=call.dim(x))


def _log_softmax(call: Call) -> Value:
    return call.add("ew.log", _softmax(call))


def _cumsum(call: Call) -> Value:
    x = call.cast(call.value("self"), call.dtype)
    return call.add("tensor.cumsum", x, dim=call.dim(x))


def _isinf(call: Call) -> Value:
    return call.add("ew.eq", call.add("ew.abs", call.value("self")), math.inf)


TRANSLATIONS: dict[str, Translation] = {
    **dict.fromkeys(UNARY, _unary), **dict.fromkeys(BINARY, _binary), **dict.fromkeys(("add", "sub", "subtract"), _add),
    **dict.fromkeys(("mul", "multiply"), _mul), **dict.fromkeys(("div", "divide", "true_divide"), _div),
    "rsub": _rsub, "reciprocal": _reciprocal, "pow": _pow, "expm1": _expm1, "gelu": _gelu, "softplus": _softplus,
    "log_sigmoid": _log_sigmoid, "leaky_relu": _leaky_relu, **dict.fromkeys(("clamp", "clip", "clamp_min", "clamp_max"), _clamp),
    "where": _where, "masked_fill": _masked_fill, "polar": _polar, "isinf": _isinf,
    "sum": _reduce("sum"), "mean": _reduce("mean"), "amax": _reduce("max"), "amin": _reduce("min"), "argmax": _arg_reduce,
    "max": _min_max("max"), "min": _min_max("min"), "layer_norm": _layer_norm, "rms_norm": _rms_norm,
    **dict.fromkeys(("softmax", "_softmax"), _softmax), "log_softmax": _log_softmax, "cumsum": _cumsum,
}  # fmt: skip
