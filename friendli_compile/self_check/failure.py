"""From a comparison that failed to the error that a person reads: how much, where, and what to do.

The place is found by running the prompt once more on both sides and comparing hidden states layer by layer. Where the whole prompt
agrees in one step, the mistake is in what comes after it: the KV cache, positions, chunks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from ..errors import FmoError, SelfCheckFailed
from .artifact_runner import PackedModel
from .compare import Comparison, tolerance_for
from .layer_outputs import find_taps, run_taps
from .probes import Probes
from .reference import NO_CHECK_HINT
from .result import LayerError

MAX_LOCATED_ROWS = 12  # rows of the packed probes whose hidden states are compared
HINT = f"this is a mistake of the compiler, nothing was written: please report it with the model's config.json; {NO_CHECK_HINT}"


def rows_to_look_at(probes: Probes, wrong: np.ndarray | None = None) -> np.ndarray:
    """Indices of the packed rows of one prefill: some that are wrong, and the last of every sequence. `wrong` [num_tokens] bool."""
    last = np.cumsum(probes.lengths) - 1
    first_wrong = np.flatnonzero(wrong) if wrong is not None else np.array([], np.int64)
    return np.unique(np.concatenate([last, first_wrong[: max(0, MAX_LOCATED_ROWS - len(last))]])).astype(np.int64)


def first_difference(errors: Sequence[LayerError]) -> LayerError | None:
    return next((error for error in errors if not error.max_abs_error <= error.tolerance), None)


def describe_layer(errors: Sequence[LayerError]) -> str:
    """Where the hidden states part."""
    first = first_difference(errors)
    if first is None:
        return f"behind the last layer ({errors[-1].module}), whose output agrees: the final norm or the output projection"
    figure = f"its output differs by {first.max_abs_error:.3g} (tolerance {first.tolerance:.2g})"
    if not np.isfinite(first.max_abs_error):
        figure = "its output is not a number, or is not computed anywhere"
    agree = f"; the {first.layer} before it agree" if first.layer else ""
    return f"layer {first.layer} ({first.module}): {figure}{agree}"


def first_wrong_module(model: PackedModel, probes: Probes, rows: np.ndarray, outputs: Mapping[str, np.ndarray]) -> str | None:
    """The first module whose output no call has computed. `outputs[path]` [len(rows), width]: transformers', in running order.

    A merged call computes several modules side by side, so each module is looked for as a run of columns of any call's output."""
    layers = {int(part) for path in outputs for part in path.split(".") if part.isdigit()}
    taps = [tap for tap in find_taps(model.plan) if tap.layer in layers or tap.layer is None]
    computed = run_taps(model, taps, probes, rows)
    for path, reference in outputs.items():
        if not any(_has_columns(ours, reference) for ours in computed):
            return path
    return None


def _has_columns(ours: np.ndarray, reference: np.ndarray) -> bool:
    """Whether `reference` [rows, width] is a run of columns of `ours` [rows, at least width]."""
    width, tolerance = reference.shape[1], tolerance_for(reference)
    if ours.shape[1] < width:
        return False
    starts = ours[:, : ours.shape[1] - width + 1]
    candidates = np.flatnonzero((np.abs(starts - reference[:, :1]) <= tolerance).all(axis=0))
    return any(bool((np.abs(ours[:, start : start + width] - reference) <= tolerance).all()) for start in candidates)


def failure(what_was_compared: str, comparison: Comparison, where: str) -> SelfCheckFailed:
    """The error for logits that differ."""
    num_wrong, num_rows = int(comparison.wrong_rows.sum()), len(comparison.row_errors)
    num_tokens = int(comparison.wrong_tokens.sum())
    size = f"by up to {comparison.max_abs_error:.3g}" if np.isfinite(comparison.max_abs_error) else "and some are not numbers"
    what = f"{what_was_compared} disagrees with transformers: logits differ {size} (tolerance {comparison.tolerance:.2g})"
    what += f" at {num_wrong} of {num_rows} probe positions" if num_wrong else ", but a layer's output does not agree"
    what += f"; the greedy token differs at {num_tokens}" if num_tokens else ""
    return SelfCheckFailed(what, where=where, hint=HINT)


def not_runnable(what_was_run: str, error: Exception) -> SelfCheckFailed:
    """It cannot be compiled (a twin), or the executor refuses the plan: what cannot be compared has not passed."""
    if isinstance(error, FmoError):
        return SelfCheckFailed(f"{what_was_run} cannot be compiled and run: {error.what}", where=error.where, hint=HINT)
    return SelfCheckFailed(f"{what_was_run} cannot be compiled and run: {error}", where=type(error).__name__, hint=HINT)


def as_rows(output: torch.Tensor, picks: Sequence[tuple[int, int]]) -> np.ndarray:
    """Of a module's output [num_seqs, length, …] the rows (sequence, position) → [len(picks), width]."""
    seqs, positions = [s for s, _ in picks], [p for _, p in picks]
    return output.detach()[seqs, positions].reshape(len(picks), -1).to(torch.float32).numpy().copy()
