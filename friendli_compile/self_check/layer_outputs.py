"""Which decoder layer of an artifact is the first that computes something else: hidden states of both sides, layer by layer.

A fused plan has no "output of layer 3"; but the hidden state must stand in some buffer, because the next norm and the residual both read
it. So the plan is tapped: behind every call whose output is as wide as a hidden state, its wanted rows are copied into one wide output,

    [ tap 0 | tap 1 | … | tap n ]      [num_logits, n · hidden_size]   in place of the logits

and a layer's error is the distance of transformers' hidden state to the nearest tap of that layer, in the order of the calls. The tapped
plan runs in the C++ executor like any other; the calls of the artifact are unchanged.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .artifact_runner import PackedModel, run_rows
from .compare import row_differences, tolerance_for
from .probes import Probes
from .result import LayerError

ALIGNMENT = 64  # bytes
F32_BYTES = 4
MAX_TAPPED_BYTES = 512 << 20

View = dict[str, Any]


@dataclass(frozen=True)
class Tap:
    """An output of a call, seen as [rows, width] f32."""

    call: int
    view: View
    width: int
    layer: int | None
    source: str


def layer_errors(model: PackedModel, probes: Probes, rows: np.ndarray, hidden: Mapping[str, np.ndarray]) -> list[LayerError]:
    """`hidden[module path]` [len(rows), hidden_size]: transformers' outputs, in the order in which the layers run.

    `rows` are those of the packed batch. Layers come back in that order; the error is infinite where no call has an output so wide."""
    width = next(iter(hidden.values())).shape[-1]
    taps = [tap for tap in find_taps(model.plan) if tap.width == width]
    outputs = run_taps(model, taps, probes, rows)
    errors, first = [], 0
    for layer, (module, reference) in enumerate(hidden.items()):
        best, best_error = first, np.inf
        for index in range(first, len(taps)):
            if taps[index].layer in (None, layer, layer + 1):
                error = float(row_differences(outputs[index], reference).max())
                best, best_error = (index, error) if error < best_error else (best, best_error)
        tolerance = tolerance_for(reference)
        first = best if best_error <= tolerance else first
        errors.append(LayerError(layer, module, best_error, tolerance))
    return errors


def find_taps(plan: Mapping[str, Any]) -> list[Tap]:
    """Every float output of a call that is dense in its row."""
    taps = []
    for index, call in enumerate(plan["calls"]):
        for view in call["outputs"]:
            width = _dense_width(view)
            if width is not None:
                taps.append(Tap(index, view, width, call["layer"], call["source"]))
    return taps


def run_taps(model: PackedModel, taps: Sequence[Tap], probes: Probes, rows: np.ndarray) -> list[np.ndarray]:
    """The rows of each tap [len(rows), width], after one prefill of all sequences."""
    if not taps:
        return []
    outputs: list[np.ndarray] = []
    budget = max(1, MAX_TAPPED_BYTES // (F32_BYTES * max(1, len(rows)) * max(tap.width for tap in taps)))
    for start in range(0, len(taps), budget):
        group = taps[start : start + budget]
        wide = run_rows(tapped_plan(model.plan, group), model.weights, probes, rows)
        ends = np.cumsum([tap.width for tap in group])
        outputs += [wide[:, end - tap.width : end] for tap, end in zip(group, ends, strict=True)]
    return outputs


def tapped_plan(plan: Mapping[str, Any], taps: Sequence[Tap]) -> dict[str, Any]:
    """The plan with a copy behind each tapped call, and the wide buffer of those copies as its output."""
    total = sum(tap.width for tap in taps)
    row_bytes = -(-total * F32_BYTES // ALIGNMENT) * ALIGNMENT
    stride, buffer_id = row_bytes // F32_BYTES, len(plan["buffers"])
    tapped = copy.copy(dict(plan))
    offset = plan["arenas"]["num_logits"]
    tapped["buffers"] = [*plan["buffers"], {"arena": "num_logits", "offset": offset, "row_bytes": row_bytes}]
    tapped["arenas"] = {**plan["arenas"], "num_logits": offset + row_bytes}
    copies: dict[int, list[dict[str, Any]]] = {}
    start = 0
    for tap in taps:
        target = _view(buffer_id, ["num_logits", tap.width], [stride, 1], start)
        copies.setdefault(tap.call, []).append(_copy_call(tap.view, target))
        start += tap.width
    last = max(copies)
    tapped["calls"] = [c for index, call in enumerate(plan["calls"][: last + 1]) for c in (call, *copies.get(index, ()))]
    tapped["logits"] = _view(buffer_id, ["num_logits", total], [stride, 1], 0)
    tapped["output_width"] = total
    return tapped


def _copy_call(source: View, target: View) -> dict[str, Any]:
    """`source` [rows, …] → `target`: the wanted rows where `source` has all of them."""
    flat = {**source, "dims": [source["dims"][0], target["dims"][1]], "strides": [source["strides"][0], 1]}
    is_gathered = source["dims"][0] == "num_logits"
    rows = {"space": "input", "id": "logit_rows", "dtype": "i32", "dims": ["num_logits"], "strides": [1], "offset": 0}
    op, inputs = ("tensor.copy", [flat]) if is_gathered else ("tensor.gather_rows", [flat, rows])
    return {"op": op, "inputs": inputs, "outputs": [target], "attrs": {}, "layer": None, "source": "self_check"}


def _view(buffer_id: int, dims: list[int | str], strides: list[int], offset: int) -> View:
    return {"space": "buffer", "id": buffer_id, "dtype": "f32", "dims": dims, "strides": strides, "offset": offset}


def _dense_width(view: View) -> int | None:
    """Elements per row of a float buffer view without gaps inside its row; None for any other view."""
    dims, strides = view["dims"], view.get("strides")
    is_float_rows = view["space"] == "buffer" and view["dtype"] == "f32" and len(dims) >= 2 and isinstance(dims[0], str)
    if not is_float_rows or strides is None:
        return None
    width = 1
    for dim, stride in zip(reversed(dims[1:]), reversed(strides[1:]), strict=True):
        if dim != 1 and stride != width:
            return None
        width *= dim
    return width
