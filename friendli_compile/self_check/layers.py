"""The real layers of a model that does not fit in memory: transformers gets one layer's weights at a time, the artifact is mapped.

    embedding ─▶ layer 0 ─▶ layer 1 ─▶ … ─▶ head ─▶ logits          transformers, weights come and go
        ⇕           ⇕          ⇕                ⇕                    hidden states and logits are compared
    the artifact's plan in the C++ executor                          weights are pages of files

One forward pass of all probes on each side, so every weight is read once. A mistake in any layer shows at that layer and in the logits.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..frontend.trace import TracedModel
from .artifact_runner import PackedModel
from .failure import describe_layer, failure, rows_to_look_at
from .layer_outputs import layer_errors
from .probes import Probes
from .reference import ReadParam, StreamedReference
from .result import LayerError
from .whole_model import Outcome, collect_rows, compare_sequences, outcome_of, run_or_fail, without_unstable

Progress = Callable[[str, float], None]
NAME = "the artifact"
NEAR_MISS = 100  # times the tolerance: a hidden state so close, and not equal, is this one computed wrongly and not another


def check_streamed(
    model: PackedModel, traced: TracedModel, read: ReadParam, probes: Probes, progress: Progress
) -> tuple[Outcome, list[LayerError]]:
    """Compares logits and the hidden state behind every layer. Raises SelfCheckFailed naming the first layer that differs."""
    whole = probes.in_one_step()
    rows = rows_to_look_at(whole)

    def on_layer(done: int, num_layers: int) -> None:
        progress(f"layer {done} in transformers", 0.6 * done / num_layers)

    reference = StreamedReference(traced, read, model.rounded_params, on_layer, model.stored_params)
    hidden, expected = collect_rows(reference.model, reference.layers, whole.tokens, _picks(whole, rows))
    progress(NAME, 0.6)
    comparison = compare_sequences(run_or_fail(NAME, model, whole), expected)
    progress("every layer", 0.8)
    errors = layer_errors(model, whole, rows, hidden)
    judged, num_unstable = without_unstable(reference.model, traced.graph, whole, expected, comparison)
    near_miss = any(error.tolerance < error.max_abs_error < NEAR_MISS * error.tolerance for error in errors)
    if judged.wrong_rows.any() or (near_miss and not num_unstable):
        raise failure(NAME, judged, describe_layer(errors))
    return outcome_of(judged, num_unstable), _materialised(errors)


def _materialised(errors: list[LayerError]) -> list[LayerError]:
    """The layers whose hidden state stands in a buffer. Where the logits agree, one that does not was fused away, not computed wrongly."""
    return [error for error in errors if error.max_abs_error <= error.tolerance]


def _picks(probes: Probes, rows: np.ndarray) -> list[tuple[int, int]]:
    """(sequence, position) of packed rows."""
    starts = np.cumsum([0, *probes.lengths])
    seqs = np.searchsorted(starts, rows, side="right") - 1
    return [(int(s), int(row - starts[s])) for s, row in zip(seqs, rows, strict=True)]
