"""Positions at which transformers itself has no definite answer in float32.

A router that picks k of many experts, or a comparison, jumps when two scores are equal up to rounding; from there on two exact
programs may differ by far more than rounding. Such a position is recognised on the reference alone: its embeddings are moved by a few
units of rounding, several times, and if its logits move by more than the tolerance, they say nothing about the artifact.

It is asked only about positions that disagree, and at most a small share of all may be excused: a real mistake moves stable positions too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from .compare import row_differences
from .reference import reference_logits

NUM_TRIALS = 6
NOISE = 2e-6  # relative to each embedding: some ten units of float32 rounding, as sums in another order leave behind after a few layers
MAX_UNSTABLE_SHARE = 0.1


def unstable_rows(model: PreTrainedModel, tokens: np.ndarray, logits: np.ndarray, tolerance: float) -> np.ndarray:
    """[length] bool for one sequence, whose undisturbed reference is `logits` [length, vocab_size]."""
    unstable = np.zeros(len(tokens), bool)
    for trial in range(NUM_TRIALS):
        with _noisy_embeddings(model, seed=trial):
            moved = reference_logits(model, tokens)
        unstable |= row_differences(moved, logits) > tolerance
    return unstable


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
