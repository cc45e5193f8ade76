"""Numpy references of every op, in float32: what an op means.

A reference is `f(operands, attrs) -> array | tuple of arrays`; operands are arrays (absent ones None), named dims in attributes are
already numbers. `attn.paged` also needs to know the sequences of the batch: see `attention.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Array = np.ndarray
Operands = Sequence[Any]  # Array, or None where an optional operand is absent
Attrs = Mapping[str, Any]
Reference = Callable[[Operands, Attrs], Any]

NUMPY_DTYPES: dict[str, type] = {"f32": np.float32, "i32": np.int32, "bool": np.bool_}
_SQRT_HALF = np.float32(math.sqrt(0.5))
_GELU_TANH = np.float32(math.sqrt(2.0 / math.pi))
_erf = np.frompyfunc(math.erf, 1, 1)


def erf(x: Array) -> Array:
    return np.asarray(_erf(x), dtype=np.float32)


def sigmoid(x: Array) -> Array:
    """Never overflows: exp of a non-positive number on both sides."""
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e)).astype(np.float32)


def softplus(x: Array) -> Array:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def gelu(x: Array) -> Array:
    return np.float32(0.5) * x * (1 + erf(x * _SQRT_HALF))


def gelu_tanh(x: Array) -> Array:
    return np.float32(0.5) * x * (1 + np.tanh(_GELU_TANH * (x + np.float32(0.044715) * x * x * x)))


UNARY: dict[str, Callable[[Array], Array]] = {
    "neg": np.negative,
    "abs": np.abs,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "square": np.square,
    "exp": np.exp,
    "log": np.log,
    "log1p": np.log1p,
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
    "sigmoid": sigmoid,
    "erf": erf,
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x * sigmoid(x),
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "softplus": softplus,
    "floor": np.floor,
    "not": np.logical_not,
}
BINARY: dict[str, Callable[[Array, Array], Array]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "pow": np.power,
    "floor_div": np.floor_divide,
    "remainder": np.remainder,
    "minimum": np.minimum,
    "maximum": np.maximum,
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "and": np.logical_and,
    "or": np.logical_or,
}


def pointwise(name: str) -> Reference:
    """The reference of `ew.<name>`; overflow and 0/0 follow IEEE silently, as in torch."""
    function: Callable[..., Array] = np.where if name == "where" else UNARY[name] if name in UNARY else BINARY[name]

    def reference(operands: Operands, attrs: Attrs) -> Array:
        with np.errstate(all="ignore"):
            return function(*operands)

    return reference


def program(operands: Operands, attrs: Attrs) -> Array:
    """Runs `ew.program` code; the last register is the output."""
    registers: list[Array] = []

    def value(operand: tuple) -> Any:
        kind, what = operand
        if kind == "const":
            return what if isinstance(what, bool) else np.int32(what) if isinstance(what, int) else np.float32(what)
        return operands[what] if kind == "in" else registers[what]

    for fn, *arguments in attrs["code"]:
        registers.append(pointwise(fn)([value(a) for a in arguments], {}))
    shape = np.broadcast_shapes(*(x.shape for x in operands))
    return np.broadcast_to(registers[-1], shape)


def concat(operands: Operands, attrs: Attrs) -> Array:
    return np.concatenate(operands, axis=attrs["dim"])


def slice_(operands: Operands, attrs: Attrs) -> Array:
    x, dim = operands[0], attrs["dim"] % operands[0].ndim
    return x[(slice(None),) * dim + (slice(attrs["start"], attrs["stop"], attrs["step"]),)]


def scatter(operands: Operands, attrs: Attrs) -> Array:
    x, index, src = operands
    result = x.copy()
    np.put_along_axis(result, index, src, axis=attrs["dim"])
    return result


def gather(operands: Operands, attrs: Attrs) -> Array:
    """torch.gather: the index may be smaller than x along the other dims."""
    x, index = operands
    dim = attrs["dim"] % x.ndim
    window = tuple(slice(None) if i == dim else slice(0, n) for i, n in enumerate(index.shape))
    return np.take_along_axis(x[window], index, axis=dim)


def full(operands: Operands, attrs: Attrs) -> Array:
    return np.full(attrs["dims"], attrs["value"], NUMPY_DTYPES[attrs["dtype"]])


def iota(operands: Operands, attrs: Attrs) -> Array:
    dims, dim = attrs["dims"], attrs["dim"] % len(attrs["dims"])
    shape = [-1 if i == dim else 1 for i in range(len(dims))]
    return np.broadcast_to(np.arange(dims[dim], dtype=NUMPY_DTYPES[attrs["dtype"]]).reshape(shape), dims)


def topk(operands: Operands, attrs: Attrs) -> tuple[Array, Array]:
    """Sorted; of equal values the lowest index comes first."""
    x, dim = operands[0], attrs["dim"]
    key = -x if attrs["largest"] else x
    order = np.argsort(key, axis=dim, kind="stable").astype(np.int32)
    indices = np.take(order, range(attrs["k"]), axis=dim)
    return np.take_along_axis(x, indices, axis=dim), indices


def reduction(function: Callable[..., Array]) -> Reference:
    def reference(operands: Operands, attrs: Attrs) -> Array:
        return function(operands[0], axis=attrs["dim"], keepdims=attrs["keepdim"])

    return reference


def linear(operands: Operands, attrs: Attrs) -> Array:
    x, w, bias = operands
    y = x @ w.T
    return y if bias is None else y + bias


def _normed(x: Array, w: Array | None, eps: float) -> Array:
    y = x / np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + np.float32(eps))
    return y if w is None else y * w


def rms_norm(operands: Operands, attrs: Attrs) -> Array:
    x, w = operands
    return _normed(x, w, attrs["eps"])


def layer_norm(operands: Operands, attrs: Attrs) -> Array:
    x, w, bias = operands
    y = _normed(x - np.mean(x, axis=-1, keepdims=True), w, attrs["eps"])
    return y if bias is None else y + bias


def add_rms_norm(operands: Operands, attrs: Attrs) -> tuple[Array, Array]:
    x, residual, w = operands
    total = x + residual
    return total, rms_norm((total, w), attrs)


def add_layer_norm(operands: Operands, attrs: Attrs) -> tuple[Array, Array]:
    x, residual, w, bias = operands
    total = x + residual
    return total, layer_norm((total, w, bias), attrs)


def rope(operands: Operands, attrs: Attrs) -> Array:
    """x [T, heads, D]; cos, sin [T, R/2]; rotates dims offset … offset+R in pairs."""
    x, cos, sin = operands
    start, size, style = attrs["offset"], attrs["rotary_dim"], attrs["style"]
    half, part = size // 2, x[..., start : start + size]
    first, second = (part[..., :half], part[..., half:]) if style == "half" else (part[..., 0::2], part[..., 1::2])
    c, s = cos[:, None, :], sin[:, None, :]
    rotated = (first * c - second * s, second * c + first * s)
    result = x.copy()
    if style == "interleaved":
        result[..., start : start + size] = np.stack(rotated, axis=-1).reshape(part.shape)
    else:
        result[..., start : start + size] = np.concatenate(rotated, axis=-1)
    return result


def act_mul(operands: Operands, attrs: Attrs) -> Array:
    gate, up = operands
    return UNARY[attrs["act"]](gate) * up


def softmax(operands: Operands, attrs: Attrs) -> Array:
    x, dim = operands[0], attrs["dim"]
    e = np.exp(x - np.max(x, axis=dim, keepdims=True))
    return e / np.sum(e, axis=dim, keepdims=True)


def conv1d(operands: Operands, attrs: Attrs) -> Array:
    """x [B, C, L], w [O, C/groups, taps], bias? [O]."""
    x, w, bias = operands
    padding, stride, dilation, groups = attrs["padding"], attrs["stride"], attrs["dilation"], attrs["groups"]
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding)))
    taps = w.shape[2]
    length = (x.shape[2] - dilation * (taps - 1) - 1) // stride + 1
    columns = [x[:, :, t * dilation : t * dilation + stride * (length - 1) + 1 : stride] for t in range(taps)]
    patches = np.stack(columns, axis=-1).reshape(x.shape[0], groups, x.shape[1] // groups, length, taps)
    kernels = w.reshape(groups, w.shape[0] // groups, w.shape[1], taps)
    y = np.einsum("bgclt,goct->bgol", patches, kernels).reshape(x.shape[0], w.shape[0], length)
    return y if bias is None else y + bias[None, :, None]


def experts(operands: Operands, attrs: Attrs) -> Array:
    """Sum over the chosen experts in ascending slot order."""
    x, ids, weights, gate_up, down, gate_up_bias, down_bias = operands
    result = np.zeros_like(x)
    for slot in range(ids.shape[1]):
        for expert in np.unique(ids[:, slot]):
            rows = np.flatnonzero(ids[:, slot] == expert)
            hidden = x[rows] @ gate_up[expert].T
            if gate_up_bias is not None:
                hidden = hidden + gate_up_bias[expert]
            y = _expert_activation(hidden, attrs) @ down[expert].T
            if down_bias is not None:
                y = y + down_bias[expert]
            result[rows] += y * weights[rows, slot, None]
    return result


def _expert_activation(hidden: Array, attrs: Attrs) -> Array:
    """[rows, 2I] (gate first) or [rows, I] → [rows, I]."""
    if not attrs["has_gate"]:
        return UNARY[attrs["act"]](hidden)
    gate, up = np.split(hidden, 2, axis=-1)
    if attrs["act"] == "swiglu_clamped":
        limit, alpha = np.float32(attrs["limit"]), np.float32(attrs["alpha"])
        gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
        return (up + 1) * gate * sigmoid(gate * alpha)
    return UNARY[attrs["act"]](gate) * up
