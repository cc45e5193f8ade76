"""What goes into the layers of a model, on tokens that it draws itself: no data is needed.

    reference packing ─▶ sampled sequences ─▶ the plan with a tap at the input of each wanted call ─▶ one array [T, K] per weight, on disk

Rounding with error feedback (quantize/feedback.py) reads these arrays one at a time. Inputs of the second matrix of experts are inside of
one call and cannot be tapped: such weights are rounded by weight error alone.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .quality.packed_run import PackedRun, Runnable, longest
from .quality.probes import Vocabulary, sampled_probes
from .quantize.choose import ActivationErrors, activation_errors
from .self_check.layer_outputs import Tap, tapped_plan

Array = np.ndarray
OnFraction = Callable[[float], None]
MIN_TOKENS, MAX_TOKENS = 256, 2048
TOKEN_PARAMS = 1 << 38  # tokens × parameters that are spent: seconds for a billion parameters
SAMPLE_LEN = 64  # tokens of a sequence
SEED = 1  # other samples than those on which quality is measured
MAX_TAPPED_WIDTH = 1 << 16  # columns that one run copies out
INPUT_OPERANDS = {"nn.linear": ((1, 0),), "moe.experts": ((3, 0),)}  # op → (operand that is the weight, operand that it multiplies)


class Calibration:
    """Inputs of layers in `folder`, which is removed by `discard`."""

    def __init__(self, folder: Path) -> None:
        self.errors: dict[str, ActivationErrors] = {}  # by weight name
        self._folder = folder
        self._paths: dict[str, Path] = {}

    def inputs(self, name: str) -> Array | None:
        """Inputs [T, K] f32 of the layer of a weight; None where they are not known."""
        return np.load(self._paths[name]) if name in self._paths else None

    def collect(
        self, model: Runnable, weights: Collection[str], vocabulary: Vocabulary, max_context_len: int, num_params: int, progress: OnFraction
    ) -> int:
        """Draws sequences from `model`, in which nothing is quantized, and keeps the inputs of `weights`; returns how many tokens."""
        self._folder.mkdir()
        num_tokens = int(min(MAX_TOKENS, max(MIN_TOKENS, TOKEN_PARAMS // max(num_params, 1))))
        probes = sampled_probes(model, vocabulary.starts(SEED), max_context_len, num_tokens, SEED, SAMPLE_LEN)
        progress(0.5)
        groups = _groups(input_taps(model.plan, weights))
        for number, group in enumerate(groups):
            self._collect_group(model, group, probes.sequences)
            progress(0.5 + 0.5 * (number + 1) / len(groups))
        return sum(map(len, probes.sequences))

    def discard(self) -> None:
        self._paths.clear()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _collect_group(self, model: Runnable, group: Mapping[str, Tap], sequences: Sequence[Array]) -> None:
        tapped = Runnable(tapped_plan(model.plan, list(group.values())), model.weights)
        run = PackedRun(tapped, longest(sequences), width=MAX_TAPPED_WIDTH)
        wide = np.concatenate([rows for tokens in sequences for _, rows in run.pieces(tokens)])
        start = 0
        for name, tap in group.items():
            num_columns = int(tap.view["dims"][-1])
            inputs = np.ascontiguousarray(wide[:, start : start + tap.width]).reshape(-1, num_columns)
            start += tap.width
            if np.isfinite(inputs).all():
                self._paths[name] = self._folder / f"{len(self._paths)}.npy"
                np.save(self._paths[name], inputs)
                self.errors[name] = activation_errors(inputs)


def input_taps(plan: Mapping[str, Any], weights: Collection[str]) -> dict[str, Tap]:
    """Weight name → the view that it multiplies; views with gaps inside of their rows are left out."""
    taps: dict[str, Tap] = {}
    for index, call in enumerate(plan["calls"]):
        for weight, x in INPUT_OPERANDS.get(call["op"], ()):
            name, view = str(call["inputs"][weight]["id"]), call["inputs"][x]
            if name in weights and view["space"] == "buffer" and view["dtype"] == "f32" and _is_dense(view):
                taps[name] = Tap(index, view, int(np.prod(view["dims"][1:])), call["layer"], call["source"])
    return taps


def _is_dense(view: Mapping[str, Any]) -> bool:
    dims, strides = view["dims"][1:], view["strides"][1:]
    expected = [int(np.prod(dims[i + 1 :])) for i in range(len(dims))]
    return all(dim == 1 or stride == wanted for dim, stride, wanted in zip(dims, strides, expected, strict=True))


def _groups(taps: Mapping[str, Tap]) -> list[dict[str, Tap]]:
    """Taps that one run copies out together."""
    groups: list[dict[str, Tap]] = []
    width = 0
    for name, tap in taps.items():
        if not groups or width + tap.width > MAX_TAPPED_WIDTH:
            groups.append({})
            width = 0
        groups[-1][name] = tap
        width += tap.width
    return groups
