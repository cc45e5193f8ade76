"""What each quantized unit costs, alone: the error of its output, and the KL divergence of a model in which only it is quantized.

    relative error   ‖y' − y‖ / ‖y‖ over probe rows, y and y' the outputs of the unquantized and the quantized call on the same input,
                     which is the one that the reference computes: weights × activations, through the kernels that will serve them
    kl               mean KL divergence of the reference with this unit alone quantized; None where that many runs would take too long

For the first, the reference's plan gets both calls in front of the original one, each writing into a scratch buffer, and taps
(self_check/layer_outputs.py) that copy what they wrote:

    x ─▶ call ─▶ scratch ─▶ tap 0     x ─▶ call' ─▶ scratch ─▶ tap 1     x ─▶ call ─▶ as before
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..self_check.layer_outputs import ALIGNMENT, F32_BYTES, Tap, tapped_plan
from .compare import Reference, compare_sequences
from .figures import Estimate, at_least_zero, jackknife
from .packed_run import PackedRun, Runnable, longest
from .probes import TOKEN_PARAMS, ProbeSet
from .variants import Call, Unit, renamed, variant

Progress = Callable[[str, float], None]
NUM_ERROR_TOKENS = 256  # rows on which output errors are measured
MAX_TAPPED_WIDTH = 1 << 17  # columns that one run copies out, 64 MiB with the rows of a piece
ERROR_PIECE = 32  # tokens of one sequence of that run
MIN_KL_TOKENS, MAX_KL_TOKENS = 80, 512  # of each run with one unit quantized
MIN_KL_PIECE, MAX_KL_PIECE = 16, 64  # tokens of one sequence of those runs
NUM_PIECES = 8  # sequences that intervals are made from, where there are so many tokens


@dataclass(frozen=True, slots=True)
class UnitFigures:
    """Of one unit, with 95 % intervals over sequences.

    `share` is that of the sum over all units: of their KL divergences, or squared relative errors where those are None."""

    unit: Unit
    relative_error: Estimate
    kl: Estimate | None
    share: float

    def to_json(self, plan: Mapping[str, Any]) -> dict[str, Any]:
        dtypes = {str(plan["weights"][name]["dtype"]) for name in self.unit.weights}
        return {
            "weights": list(self.unit.weights),
            "module": self.unit.module,
            "layer": self.unit.layer,
            "dtype": "+".join(sorted(dtypes)),
            "relative_error": asdict(self.relative_error),
            "kl": None if self.kl is None else asdict(self.kl),
            "share": self.share,
        }


def unit_figures(
    reference: Runnable, quantized: Runnable, units: Sequence[Unit], probes: ProbeSet, num_params: int, progress: Progress | None = None
) -> list[UnitFigures]:
    """The figures of every unit, in their order."""
    report = progress or (lambda what, fraction: None)
    errors = relative_errors(reference, quantized, units, probes, lambda done: report("the error of every layer", 0.5 * done))
    num_tokens = TOKEN_PARAMS // max(1, num_params * len(units))
    if num_tokens < MIN_KL_TOKENS:
        return _shared(units, errors, None)
    kl = single_unit_kl(reference, quantized, units, probes, num_tokens, lambda done: report("the cost of every layer", 0.5 + 0.5 * done))
    return _shared(units, errors, kl)


def single_unit_kl(
    reference: Runnable,
    quantized: Runnable,
    units: Sequence[Unit],
    probes: ProbeSet,
    num_tokens: int,
    progress: Callable[[float], None] | None = None,
) -> list[Estimate]:
    """For each unit the mean KL divergence of the reference with it alone quantized, on the same few tokens."""
    num_tokens = min(num_tokens, MAX_KL_TOKENS)
    length = max(MIN_KL_PIECE, min(MAX_KL_PIECE, num_tokens // NUM_PIECES))
    expected = Reference(reference, shortened(probes, num_tokens, length))
    found = []
    for number, unit in enumerate(units):
        alone = compare_sequences(expected, variant(reference, [(quantized, [unit])]))
        estimate = jackknife(np.array([rows.kl.sum() for rows in alone]), np.array([len(rows.kl) for rows in alone], np.float64))
        found.append(at_least_zero(estimate))
        if progress is not None:
            progress((number + 1) / len(units))
    return found


def relative_errors(
    reference: Runnable,
    quantized: Runnable,
    units: Sequence[Unit],
    probes: ProbeSet,
    progress: Callable[[float], None] | None = None,
) -> list[Estimate]:
    """For each unit ‖y' − y‖ / ‖y‖; of a unit with several calls, that of the worst."""
    sequences = shortened(probes, NUM_ERROR_TOKENS, ERROR_PIECE)
    indices = sorted({index for unit in units for index in unit.calls})
    errors: dict[int, Estimate] = {}
    for group in _groups(indices, reference.plan):
        plan, weights = _doubled(reference, quantized, group)
        errors |= _errors_of_group(Runnable(plan, weights), reference.plan, group, sequences)
        if progress is not None:
            progress(len(errors) / len(indices))
    return [max((errors[index] for index in unit.calls), key=lambda estimate: estimate.value) for unit in units]


def shortened(probes: ProbeSet, num_tokens: int, length: int) -> list[np.ndarray]:
    """Pieces of `length` tokens (or what a sequence has), `num_tokens` in all, spread over the set: a few positions of many texts."""
    pieces = [tokens[start : start + length] for tokens in probes.sequences for start in range(0, len(tokens), length)]
    pieces = [piece for piece in pieces if len(piece) > 1]
    count = max(1, min(len(pieces), -(-num_tokens // length)))
    return [pieces[i] for i in np.linspace(0, len(pieces) - 1, count).round().astype(int)]


def _groups(indices: Sequence[int], plan: Mapping[str, Any]) -> list[list[int]]:
    """Calls whose outputs together, twice, are at most MAX_TAPPED_WIDTH columns wide."""
    groups: list[list[int]] = []
    width = 0
    for index in indices:
        own = 2 * _width(plan["calls"][index])
        if not groups or width + own > MAX_TAPPED_WIDTH:
            groups.append([])
            width = 0
        groups[-1].append(index)
        width += own
    return groups


def _doubled(reference: Runnable, quantized: Runnable, group: Sequence[int]) -> tuple[dict[str, Any], dict[str, tuple[str, int, int]]]:
    """The plan and weights of the picture at the top, for these calls."""
    tables, places = dict(reference.plan["weights"]), dict(reference.weights)
    plan = {**reference.plan, "weights": tables}
    buffers = _add_scratch(plan, [reference.plan["calls"][index] for index in group])
    calls: list[Call] = []
    taps: list[Tap] = []
    for index, call in enumerate(reference.plan["calls"]):
        if index in group:
            other = renamed(quantized, quantized.plan["calls"][index], "quantized:", tables, places)
            for copy in (call, other):
                view = _scratch_view(call["outputs"][0], buffers)
                taps.append(Tap(len(calls), view, _width(call), call["layer"], call["source"]))
                calls.append({**copy, "outputs": [view]})
        calls.append(call)
    plan["calls"] = calls
    return tapped_plan(plan, taps), places


def _errors_of_group(
    model: Runnable, plan: Mapping[str, Any], group: Sequence[int], sequences: Sequence[np.ndarray]
) -> dict[int, Estimate]:
    """Sums of squares over the rows of each sequence, then the ratio, per call."""
    run = PackedRun(model, longest(sequences), width=MAX_TAPPED_WIDTH)
    error, size = np.zeros((len(group), len(sequences))), np.zeros((len(group), len(sequences)))
    for number, tokens in enumerate(sequences):
        for _, wide in run.pieces(tokens):
            start = 0
            for i, index in enumerate(group):
                width = _width(plan["calls"][index])
                y, other = wide[:, start : start + width], wide[:, start + width : start + 2 * width]
                error[i, number] += np.square(other - y, dtype=np.float64).sum()
                size[i, number] += np.square(y, dtype=np.float64).sum()
                start += 2 * width
    return {index: _root_of_ratio(error[i], size[i]) for i, index in enumerate(group)}


def _root_of_ratio(error: np.ndarray, size: np.ndarray) -> Estimate:
    """√(Σ error / Σ size) over sequences [num_sequences]; 0 where there is no output at all."""
    if not (size > 0).sum() > 1:
        value = math.sqrt(float(error.sum() / size.sum())) if size.sum() > 0 else 0.0
        return Estimate(value, 0.0, value)
    squared = at_least_zero(jackknife(error, size))
    return Estimate(math.sqrt(squared.value), math.sqrt(squared.low), math.sqrt(squared.high))


def _add_scratch(plan: dict[str, Any], calls: Sequence[Call]) -> dict[str, tuple[int, int]]:
    """One buffer per arena, as wide as the widest output of `calls` in it: row dim → (id of the buffer, elements from row to row)."""
    arenas, buffers, found = dict(plan["arenas"]), list(plan["buffers"]), {}
    for rows in dict.fromkeys(str(call["outputs"][0]["dims"][0]) for call in calls):
        width = max(_width(call) for call in calls if call["outputs"][0]["dims"][0] == rows)
        row_bytes = -(-width * F32_BYTES // ALIGNMENT) * ALIGNMENT
        found[rows] = (len(buffers), row_bytes // F32_BYTES)
        buffers.append({"arena": rows, "offset": arenas[rows], "row_bytes": row_bytes})
        arenas[rows] += row_bytes
    plan |= {"arenas": arenas, "buffers": buffers}
    return found


def _scratch_view(output: Mapping[str, Any], buffers: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    """`output` in its scratch buffer, dense in its row."""
    dims = output["dims"]
    buffer_id, row_stride = buffers[dims[0]]
    strides = [row_stride, *(math.prod(dims[i + 1 :]) for i in range(1, len(dims)))]
    return {**output, "id": buffer_id, "strides": strides, "offset": 0}


def _width(call: Mapping[str, Any]) -> int:
    return math.prod(call["outputs"][0]["dims"][1:])


def _shared(units: Sequence[Unit], errors: Sequence[Estimate], kl: Sequence[Estimate] | None) -> list[UnitFigures]:
    damages = [error.value**2 for error in errors] if kl is None else [estimate.value for estimate in kl]
    total = sum(damages)
    shares = [damage / total if total > 0 else 0.0 for damage in damages]
    each: Sequence[Estimate | None] = [None] * len(units) if kl is None else kl
    return [UnitFigures(*row) for row in zip(units, errors, each, shares, strict=True)]
