"""Runs a plan on real, shared arena memory with the numpy references: the planner's oracle.

Arenas start as NaN bytes and every buffer view is an alias of them, so that a buffer that is overwritten while it is still needed, a wrong
stride or a wrong offset shows up as wrong numbers, as it would in the C++ executor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from friendli_compile.artifact.layouts import pack, unpack
from friendli_compile.ir.attention import BatchDescription, paged_attention
from friendli_compile.ir.ops import lookup, normalise_attrs
from friendli_compile.ir.reference import pointwise
from friendli_compile.plan.model import ITEM_BYTES, Call, Plan, View

NUMPY = {"f32": np.float32, "i32": np.int32, "bool": np.bool_}


class NumpyExecutor:
    """Binds a plan to arenas of `max_rows` rows and to unpacked weights."""

    def __init__(self, plan: Plan, params: Mapping[str, np.ndarray], max_rows: int = 64) -> None:
        self.plan = plan
        self.max_rows = max_rows
        self.arenas = {name: np.full(size * max_rows, 0xFF, np.uint8) for name, size in plan.arenas.items()}
        self.weights = {spec.name: unpack(pack(spec.expression.evaluate(params.__getitem__), spec), spec) for spec in plan.weights}

    def forward(self, inputs: Mapping[str, np.ndarray], batch: BatchDescription) -> np.ndarray:
        """The logits [num_logits or num_tokens, vocab_size]."""
        rows = {"num_tokens": len(inputs["input_ids"]), "num_logits": len(inputs.get("logit_rows", ()))}
        for call in self.plan.calls:
            self._run(call, inputs, rows, batch)
        return self._array(self.plan.logits, inputs, rows).copy()

    def _run(self, call: Call, inputs: Mapping[str, np.ndarray], rows: Mapping[str, int], batch: BatchDescription) -> None:
        operands = [None if view is None else self._array(view, inputs, rows) for view in call.inputs]
        outputs = [self._array(view, inputs, rows) for view in call.outputs]
        attrs: dict[str, Any] = dict(call.attrs)
        if call.op == "tensor.copy":
            results: Any = operands[0]
        elif call.op == "attn.paged":
            attrs |= {"has_sinks": operands[3] is not None, "has_slopes": operands[4] is not None}
            results = paged_attention(tuple(operands), attrs, batch)
        elif call.op == "ew.program":
            results = _program(attrs["code"], operands, outputs[0].shape)
        else:
            if call.op in ("tensor.full", "tensor.iota"):
                attrs |= {"dims": outputs[0].shape, "dtype": call.outputs[0].dtype}
            reference = lookup(call.op).reference
            assert reference is not None
            known = {spec.name for spec in lookup(call.op).attrs}
            results = reference(
                operands, attrs if "dims" in attrs else normalise_attrs(lookup(call.op), {k: v for k, v in attrs.items() if k in known})
            )
        results = results if isinstance(results, tuple) else (results,)
        for output, result in zip(outputs, results, strict=True):
            output[...] = result

    def _array(self, view: View, inputs: Mapping[str, np.ndarray], rows: Mapping[str, int]) -> np.ndarray:
        dims = tuple(rows[dim] if isinstance(dim, str) else dim for dim in view.dims)
        if view.space == "weight":
            data = self.weights[str(view.id)]
            if view.strides is None:
                return data
            flat = np.ascontiguousarray(data).reshape(-1)
        elif view.space == "input":
            flat = np.ascontiguousarray(inputs[str(view.id)], dtype=NUMPY[view.dtype])
        else:
            buffer = self.plan.buffers[int(view.id)]
            start = buffer.offset * (self.max_rows if buffer.arena != "fixed" else 1)
            num_bytes = buffer.row_bytes * (self.max_rows if buffer.arena != "fixed" else 1)
            flat = self.arenas[buffer.arena][start : start + num_bytes].view(NUMPY[view.dtype])
        assert view.strides is not None
        item_bytes = ITEM_BYTES[view.dtype]
        last = view.offset + sum((n - 1) * s for n, s in zip(dims, view.strides, strict=True))
        assert view.offset >= 0 and last < flat.size, f"{view} leaves its memory of {flat.size} elements"
        return np.lib.stride_tricks.as_strided(flat[view.offset :], dims, tuple(s * item_bytes for s in view.strides))


def _program(code: Any, operands: list[np.ndarray | None], dims: tuple[int, ...]) -> np.ndarray:
    registers: list[np.ndarray] = []
    for fn, *arguments in code:
        values = [w if k == "const" else operands[w] if k == "in" else registers[w] for k, w in arguments]
        registers.append(pointwise(fn)([np.asarray(v, np.float32) if isinstance(v, float) else np.asarray(v) for v in values], {}))
    return np.broadcast_to(registers[-1], dims)
