"""Translations of the ops that do the work: linear, matmul, convolution, and the captured attention and experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..ir.graph import Value
from .aten_call import Call


def _linear(call: Call) -> Value:
    return call.add("nn.linear", call.value("input"), call.value("weight"), call.args.get("bias"))


def _matmul(call: Call) -> Value:
    other = "other" if "other" in call.args else "mat2"
    return call.add("tensor.matmul", call.value("self"), call.value(other))


def _addmm(call: Call) -> Value:
    """beta * self + alpha * (mat1 @ mat2), and its batched form."""
    first, second = ("mat1", "mat2") if "mat1" in call.args else ("batch1", "batch2")
    product = call.add("tensor.matmul", call.value(first), call.value(second))
    alpha, beta = call.args.get("alpha", 1), call.args.get("beta", 1)
    if alpha != 1:
        product = call.add("ew.mul", product, float(alpha))
    if beta == 0:
        return product
    bias = call.value("self")
    return call.add("ew.add", product, bias if beta == 1 else call.add("ew.mul", bias, float(beta)))


def _conv1d(call: Call) -> Value:
    attrs = {name: _single(call, name) for name in ("stride", "padding", "dilation")}
    return call.add("nn.conv1d", call.value("input"), call.value("weight"), call.args.get("bias"), groups=int(call.args["groups"]), **attrs)


def _single(call: Call, name: str) -> int:
    value = call.args[name]
    if isinstance(value, str):
        raise call.unsupported(f"conv1d with {name}='{value}' has no translation")
    return int(value if isinstance(value, int) else value[0])


def _attention(call: Call) -> Value:
    sinks, slopes = call.args["sinks"], call.args["slopes"]
    attrs = {"scale": call.args["scale"], "kv_layer": call.next_kv_layer, "window": call.args["window"], "chunk": call.args["chunk"]}
    flags = {"softcap": call.args["softcap"], "has_sinks": sinks is not None, "has_slopes": slopes is not None}
    return call.add("attn.paged", call.value("q"), call.value("k"), call.value("v"), sinks, slopes, **attrs, **flags)


def _experts(call: Call) -> Value:
    """Stacked weights become `[num_experts, rows out, rows in]` with gate rows first; only parameters are permuted."""
    transposed, interleaved = call.args["transposed"], call.args["interleaved"]
    gate_up, down = call.value("gate_up"), call.value("down")
    if transposed:
        gate_up, down = call.permute(gate_up, (0, 2, 1)), call.permute(down, (0, 2, 1))
    gate_up_bias, down_bias = call.args["gate_up_bias"], call.args["down_bias"]
    if interleaved:
        gate_up = _gate_rows_first(call, gate_up)
        gate_up_bias = None if gate_up_bias is None else _gate_rows_first(call, gate_up_bias)
    x = call.value("x")
    flat = call.reshape(x, x.dims[-2:]) if len(x.dims) == 3 and x.dims[0] == 1 else x
    result = call.add(
        "moe.experts", flat, call.value("expert_ids"), call.value("expert_weights"), gate_up, down, gate_up_bias, down_bias,
        act=call.args["act"], has_gate=call.args["has_gate"], has_bias=gate_up_bias is not None,
        alpha=call.args["alpha"], limit=call.args["limit"],
    )  # fmt: skip
    return call.reshape(result, x.dims)


def _gate_rows_first(call: Call, stacked: Value) -> Value:
    """[E, 2I, …] with gate rows at even places → gate rows, then up rows."""
    rows = call.static(stacked, 1)
    return call.concat([call.slice(stacked, 1, first, rows, 2) for first in (0, 1)], 1)


TRANSLATIONS: dict[str, Callable[[Call], Any]] = {
    "linear": _linear, **dict.fromkeys(("matmul", "bmm", "mm", "mv"), _matmul), **dict.fromkeys(("addmm", "baddbmm"), _addmm),
    "conv1d": _conv1d, "attention": _attention, "experts": _experts,
}  # fmt: skip
