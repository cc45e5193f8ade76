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
from .failure import as_rows, describe_layer, failure, rows_to_look_at
from .layer_outputs import layer_errors
from .probes import Probes
from .reference import ReadParam, StreamedReference, observed, reference_logits_batch
from .result import LayerError
from .whole_model import Outcome, compare_sequences, outcome_of, run_or_fail

Progress = Callable[[str, float], None]
NAME = "the artifact"


def check_streamed(
    model: PackedModel, traced: TracedModel, read: ReadParam, probes: Probes, progress: Progress
) -> tuple[Outcome, list[LayerError]]:
    """Compares logits and the hidden state behind every layer. Raises SelfCheckFailed naming the first layer that differs."""
    whole = probes.in_one_step()
    rows = rows_to_look_at(whole)

    def on_layer(done: int, num_layers: int) -> None:
        progress(f"layer {done} in transformers", 0.6 * done / num_layers)

    reference = StreamedReference(traced, read, model.rounded_params, on_layer)
    hidden: dict[str, np.ndarray] = {}
    picks = _picks(whole, rows)
    with observed(reference.model, reference.layers, lambda path, output: hidden.update({path: as_rows(output, picks)})):
        expected = reference_logits_batch(reference.model, whole.tokens)
    progress(NAME, 0.6)
    comparison = compare_sequences(run_or_fail(NAME, model, whole), expected)
    progress("every layer", 0.8)
    errors = layer_errors(model, whole, rows, hidden)
    if comparison.wrong_rows.any():
        raise failure(NAME, comparison, describe_layer(errors))
    return outcome_of(comparison), _materialised(errors)


def _materialised(errors: list[LayerError]) -> list[LayerError]:
    """The layers whose hidden state stands in a buffer. Where the logits agree, one that does not was fused away, not computed wrongly."""
    return [error for error in errors if error.max_abs_error <= error.tolerance]


def _picks(probes: Probes, rows: np.ndarray) -> list[tuple[int, int]]:
    """(sequence, position) of packed rows."""
    starts = np.cumsum([0, *probes.lengths])
    seqs = np.searchsorted(starts, rows, side="right") - 1
    return [(int(s), int(row - starts[s])) for s, row in zip(seqs, rows, strict=True)]
