"""End to end: a quantized model against its reference on the same tokens, piece by piece on both sides.

    reference ─▶ logits of a piece ─┐
                                    ├─▶ a few numbers per position ─▶ Figures: over all positions, and per part (text, samples)
    quantized ─▶ logits of a piece ─┘

Both sides run in the C++ executor as they would be served: the reference with its weights in the source precision, the quantized side with
its integer kernels, rounded activations and KV cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import QualityGateFailed
from .figures import MIN_BLOCKS, RowFigures, Summary, compare_rows, join, num_blocks_of, summarize
from .packed_run import PackedRun, Runnable, longest
from .probes import ProbeSet

Progress = Callable[[str, float], None]
MAX_REMEMBERED_BYTES = 512 << 20  # of the reference's logits, which several models may be compared with
F32_BYTES = 4


@dataclass(frozen=True, slots=True)
class Figures:
    """End-to-end figures. `parts` has the parts that are large enough for an interval."""

    overall: Summary
    parts: dict[str, Summary]

    def to_json(self) -> dict[str, Any]:
        return {"overall": self.overall.to_json(), "parts": {part: summary.to_json() for part, summary in self.parts.items()}}


class Reference:
    """The logits of a model on these sequences; computed once where they fit in memory, else whenever they are asked for."""

    def __init__(self, model: Runnable, sequences: Sequence[np.ndarray]) -> None:
        self.sequences = tuple(sequences)
        self._run = PackedRun(model, longest(sequences))
        num_bytes = sum(map(len, sequences)) * model.vocab_size * F32_BYTES
        self._remembered: dict[int, list[tuple[int, np.ndarray]]] | None = {} if num_bytes <= MAX_REMEMBERED_BYTES else None

    def pieces(self, index: int) -> Iterator[tuple[int, np.ndarray]]:
        """(first position, logits [rows, vocab_size]) of sequence `index`."""
        if self._remembered is None:
            return self._run.pieces(self.sequences[index])
        if index not in self._remembered:
            self._remembered[index] = list(self._run.pieces(self.sequences[index]))
        return iter(self._remembered[index])


def compare(reference: Reference, quantized: Runnable, probes: ProbeSet, progress: Progress | None = None) -> Figures:
    """The figures of `quantized` on the sequences of the reference, which are those of `probes`.

    Raises QualityGateFailed where its logits are not numbers."""
    rows = compare_sequences(reference, quantized, progress)
    return Figures(summarize(rows), _summaries_of_parts(rows, probes.parts))


def compare_sequences(reference: Reference, quantized: Runnable, progress: Progress | None = None) -> list[RowFigures]:
    """Per sequence the figures of every position that has a next token."""
    sequences = reference.sequences
    ours = PackedRun(quantized, longest(sequences))
    total, done = sum(map(len, sequences)), 0
    results = []
    for number, tokens in enumerate(sequences):
        parts = []
        for (start, expected), (_, logits) in zip(reference.pieces(number), ours.pieces(tokens), strict=True):
            require_numbers(expected, logits, number, start)
            next_tokens = tokens[start + 1 : start + 1 + len(logits)]
            parts.append(compare_rows(expected[: len(next_tokens)], logits[: len(next_tokens)], next_tokens))
            done += len(logits)
            if progress is not None:
                progress(f"{done} of {total} tokens", done / total)
        results.append(join(parts))
    return results


def require_numbers(reference: np.ndarray, quantized: np.ndarray, sequence: int, start: int) -> None:
    """A row must have a largest logit, and no NaN; −∞ is how models exclude tokens, and then both sides do."""
    for name, logits, hint in (
        ("the reference", reference, "the checkpoint itself computes NaN or infinity here; see whether transformers does too"),
        ("the quantized model", quantized, "quantize with more bits, or keep the layer that overflows: --quantize-layer PATTERN=none"),
    ):
        wrong = ~np.isfinite(logits.max(axis=1)) | np.isnan(logits.sum(axis=1))
        if logits is quantized and not np.isfinite(logits.min()):
            wrong |= (np.isneginf(quantized) & ~np.isneginf(reference)).any(axis=1)
        if wrong.any():
            position = start + int(np.argmax(wrong))
            what = f"the logits of {name} are not numbers at {int(wrong.sum())} of {len(logits)} positions"
            raise QualityGateFailed(what, where=f"probe sequence {sequence}, position {position}", hint=hint)


def _summaries_of_parts(rows: Sequence[RowFigures], parts: Sequence[str]) -> dict[str, Summary]:
    found = {}
    for part in dict.fromkeys(parts):
        own = [figures for figures, name in zip(rows, parts, strict=True) if name == part]
        if num_blocks_of([len(figures.kl) for figures in own]) >= MIN_BLOCKS:
            found[part] = summarize(own)
    return found
