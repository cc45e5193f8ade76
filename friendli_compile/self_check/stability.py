"""Positions at which transformers itself has no definite answer in float32.

A router that picks k of many experts jumps when two scores are equal up to rounding; from there on two exact programs may differ by far
more than rounding. Such a position is recognised on the reference alone: its embeddings are moved by a few units of rounding, several
times, and if its logits move by more than the tolerance, they say nothing about the artifact.

It is asked only of models that choose, only about positions that disagree, and at most a small share of all may be excused: a real mistake
moves stable positions too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from ..ir.graph import Graph
from .compare import Comparison, row_differences
from .probes import Probes
from .reference import reference_logits_batch

NUM_TRIALS = 5
NOISE = 2e-6  # relative to each embedding: some ten units of float32 rounding, as sums in another order leave behind after a few layers
MAX_UNSTABLE_SHARE = 0.1
CHOOSING_OPS = frozenset({"tensor.topk", "reduce.argmax"})


def chooses(graph: Graph) -> bool:
    """Whether the model picks something by comparing scores."""
    return any(node.op in CHOOSING_OPS for node in graph.nodes)


def excused_rows(model: PreTrainedModel, probes: Probes, expected: Sequence[np.ndarray], comparison: Comparison) -> np.ndarray:
    """The wrong rows [num_tokens] bool at which the reference is unstable; none where they would be too many to believe it.

    `expected[s]` [length of s, vocab_size] are the undisturbed logits."""
    wrong = np.split(comparison.wrong_rows, np.cumsum(probes.lengths)[:-1])
    affected = [s for s, rows in enumerate(wrong) if rows.any()]
    excused = [np.zeros(length, bool) for length in probes.lengths]
    if comparison.wrong_rows.mean() <= MAX_UNSTABLE_SHARE:
        found = unstable_rows(model, [probes.tokens[s] for s in affected], [expected[s] for s in affected], comparison.tolerance)
        for s, is_unstable in zip(affected, found, strict=True):
            excused[s] = is_unstable & wrong[s]
    return np.concatenate(excused)


def unstable_rows(
    model: PreTrainedModel, sequences: Sequence[np.ndarray], expected: Sequence[np.ndarray], tolerance: float, seed: int = 0
) -> list[np.ndarray]:
    """[length] bool for each sequence. All trials are one batch, so that a streamed model is read once."""
    with _noisy_embeddings(model, seed):
        moved = reference_logits_batch(model, [tokens for tokens in sequences for _ in range(NUM_TRIALS)])
    found = []
    for s, logits in enumerate(expected):
        trials = moved[s * NUM_TRIALS : (s + 1) * NUM_TRIALS]
        found.append(np.max([row_differences(trial, logits) for trial in trials], axis=0) > tolerance)
    return found


@contextmanager
def _noisy_embeddings(model: PreTrainedModel, seed: int) -> Iterator[None]:
    generator = torch.Generator().manual_seed(seed)

    def disturb(module: torch.nn.Module, arguments: Any, output: torch.Tensor) -> torch.Tensor:
        return output * (1 + NOISE * torch.randn(output.shape, generator=generator))

    handle = model.get_input_embeddings().register_forward_hook(disturb)
    try:
        yield
    finally:
        handle.remove()
