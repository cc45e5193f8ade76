"""The whole model on both sides: every probe position's logits, through prefill, chunks and decoding with the KV cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from ..errors import SelfCheckFailed
from ..frontend.trace import TracedModel
from ..ir.graph import Graph
from .artifact_runner import PackedModel, run_logits
from .compare import Comparison, compare_logits, tolerance_for
from .failure import as_rows, describe_layer, failure, first_difference, first_wrong_module, not_runnable, rows_to_look_at
from .layer_outputs import layer_errors
from .probes import Probes
from .reference import Edit, decoder_layers, load_reference, observed, reference_logits, reference_logits_batch
from .stability import chooses, excused_rows

Progress = Callable[[str, float], None]
LEAVES = (torch.nn.Linear, torch.nn.LayerNorm, torch.nn.Embedding)


@dataclass(frozen=True)
class Outcome:
    """Figures of a comparison that passed."""

    max_abs_error: float
    tolerance: float
    greedy_tokens_equal: bool
    num_tokens: int
    num_unstable: int = 0


def check_whole_model(
    name: str,
    model: PackedModel,
    checkpoint_dir: Path,
    traced: TracedModel,
    probes: Probes,
    progress: Progress | None = None,
    edits: Mapping[str, Edit] | None = None,
) -> Outcome:
    """Compares the artifact with the model in `checkpoint_dir`, whose parameters are edited first (merged adapters); `name` says which
    artifact it is. Raises SelfCheckFailed."""
    progress = progress or (lambda what, fraction: None)
    progress("the model in transformers", 0.0)
    reference = load_reference(checkpoint_dir, traced, model.rounded_params, model.stored_params, edits)
    expected = [reference_logits(reference, tokens) for tokens in probes.tokens]
    ours = run_or_fail(name, model, probes, lambda done, of: progress("the artifact", 0.5 + 0.5 * done / of))
    comparison = compare_sequences(ours, expected)
    judged, num_unstable = without_unstable(reference, traced.graph, probes, expected, comparison)
    if judged.wrong_rows.any():
        raise failure(name, judged, _where(model, reference, probes, comparison, expected))
    return outcome_of(judged, num_unstable)


def run_or_fail(name: str, model: PackedModel, probes: Probes, on_step: Callable[[int, int], None] | None = None) -> list[np.ndarray]:
    """The artifact's logits of each sequence. What the executor refuses is a failed check."""
    try:
        return run_logits(model, probes, on_step)
    except (ValueError, RuntimeError, IndexError, KeyError, TypeError) as error:
        raise not_runnable(name, error) from error


def compare_sequences(ours: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> Comparison:
    """All sequences under one tolerance; rows are packed in order."""
    tolerance = max(tolerance_for(logits) for logits in expected)
    parts = [compare_logits(mine, theirs, tolerance) for mine, theirs in zip(ours, expected, strict=True)]
    return Comparison(
        np.concatenate([part.row_errors for part in parts]),
        tolerance,
        np.concatenate([part.wrong_tokens for part in parts]),
        np.concatenate([part.tokens_equal for part in parts]),
    )


def outcome_of(comparison: Comparison, num_unstable: int = 0) -> Outcome:
    is_equal = bool(comparison.tokens_equal.all())
    return Outcome(comparison.max_abs_error, comparison.tolerance, is_equal, len(comparison.row_errors) + num_unstable, num_unstable)


def without_unstable(
    model: PreTrainedModel, graph: Graph, probes: Probes, expected: Sequence[np.ndarray], comparison: Comparison
) -> tuple[Comparison, int]:
    """The comparison without the rows at which the reference itself is unstable, and how many these are."""
    if not comparison.wrong_rows.any() or not chooses(graph):
        return comparison, 0
    excused = excused_rows(model, probes, expected, comparison)
    return comparison.without(excused), int(excused.sum())


def _where(model: PackedModel, reference: PreTrainedModel, probes: Probes, comparison: Comparison, expected: Sequence[np.ndarray]) -> str:
    """The first layer that differs, or the first step where a plain prefill agrees."""
    whole = probes.in_one_step()
    try:
        prefill = compare_sequences(run_logits(model, whole), expected)
        if not prefill.wrong_rows.any():
            return _first_wrong_step(probes, comparison)
        rows = rows_to_look_at(probes, prefill.wrong_rows)
        layers = decoder_layers(reference)
        errors = layer_errors(model, whole, rows, collect(reference, layers, probes, rows))
        first = first_difference(errors)
        place = describe_layer(errors)
        if first is not None:
            inside = [(path, module) for path, module in reference.named_modules() if path.startswith(f"{first.module}.")]
            leaves = [path for path, module in inside if isinstance(module, LEAVES)]
            module = first_wrong_module(model, whole, rows, collect(reference, leaves, probes, rows))
            place += f"; first in {module}" if module else ""
        return place
    except (SelfCheckFailed, RuntimeError, ValueError, IndexError) as error:  # the check has failed already; the place is a courtesy
        return f"the layer could not be found ({str(error).splitlines()[0]})"


def collect(model: PreTrainedModel, paths: Sequence[str], probes: Probes, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Outputs of these modules for rows of the packed batch: path → [len(rows), width], in the order in which they run."""
    parts: dict[str, list[np.ndarray]] = {}
    starts = np.cumsum([0, *probes.lengths])
    for s, tokens in enumerate(probes.tokens):
        picks = [(0, int(row - starts[s])) for row in rows if starts[s] <= row < starts[s + 1]]
        if picks:
            for path, rows_of_path in collect_rows(model, paths, [tokens], picks)[0].items():
                parts.setdefault(path, []).append(rows_of_path)
    return {path: np.concatenate(arrays) for path, arrays in parts.items()}


def collect_rows(
    model: PreTrainedModel, paths: Sequence[str], sequences: Sequence[np.ndarray], picks: Sequence[tuple[int, int]]
) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    """One run of all sequences: outputs of these modules at (sequence, position) picks, [len(picks), width] each, and the logits."""
    outputs: dict[str, np.ndarray] = {}

    def keep(path: str, output: torch.Tensor) -> None:
        outputs[path] = as_rows(output, picks)

    with observed(model, paths, keep):
        logits = reference_logits_batch(model, sequences)
    return outputs, logits


def _first_wrong_step(probes: Probes, comparison: Comparison) -> str:
    """Which step first computed a wrong row, for mistakes that only cached steps show."""
    starts = np.cumsum([0, *probes.lengths])
    for index, step in enumerate(probes.steps):
        for s, start, count in step.rows:
            rows = comparison.wrong_rows[starts[s] + start : starts[s] + start + count]
            if rows.any():
                position = start + int(np.argmax(rows))
                place = f"step {index} differs first, in sequence {s} at position {position}"
                return f"one prefill of everything agrees; {place}: the KV cache or the batch"
    return "no step"
