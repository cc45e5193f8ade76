"""Runs packed models over whole sequences, a piece at a time, so that logits never pile up.

    PackedRun(model, lengths…).logits(sequences)   ─▶  (sequence, first position, logits [rows, vocab_size])  piece by piece

A piece is a step of the executor with a logit row per token; the numerical contract says that pieces change nothing. The weights are
mapped from files, so a model needs not fit in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..self_check.artifact_runner import BLOCK_SIZE, PackedModel, WeightFiles

MAX_PIECE_LEN = 128  # tokens of one step
MAX_PIECE_LOGITS = 1 << 23  # elements: 64 MiB in float64


@dataclass(frozen=True)
class Runnable:
    """A plan as parsed and where the bytes of its weights are; what `PackedModel` has, and what is put together from several of them."""

    plan: Mapping[str, Any]
    weights: WeightFiles

    @classmethod
    def open(cls, folder: Path) -> Runnable:
        """A folder with plan.json and weight files."""
        model = PackedModel(folder)
        return cls(model.plan, model.weights)

    @property
    def vocab_size(self) -> int:
        return int(self.plan["vocab_size"])


def piece_len_of(width: int) -> int:
    """Tokens of a step whose output has `width` columns."""
    return max(1, min(MAX_PIECE_LEN, MAX_PIECE_LOGITS // max(width, 1)))


class PackedRun:
    """An executor for sequences of at most `max_len` tokens, up to `num_seqs` of them at the same time."""

    def __init__(self, model: Runnable, max_len: int, num_seqs: int = 1, width: int | None = None) -> None:
        from friendli_runtime._core import Executor

        self.piece_len = max(piece_len_of(width or model.vocab_size), num_seqs)
        self._blocks_per_seq = -(-max_len // BLOCK_SIZE)
        num_blocks = self._blocks_per_seq * num_seqs
        self._tables = np.arange(num_blocks, dtype=np.int32).reshape(num_seqs, self._blocks_per_seq)
        self._executor = Executor(
            dict(model.plan),
            dict(model.weights),
            max_num_tokens=self.piece_len,
            max_num_logits=self.piece_len,
            num_blocks=num_blocks,
            kv_dtype=str(model.plan["kv_dtype"]),
        )

    def pieces(self, sequence: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """(first position, output [rows, width] f32) for every token of `sequence`, in order; the output is a copy."""
        for start in range(0, len(sequence), self.piece_len):
            tokens = sequence[start : start + self.piece_len]
            yield start, self._forward(tokens[None], start)

    def step(self, tokens: np.ndarray, position: int) -> np.ndarray:
        """One token of every sequence, all at the same position: tokens [num_seqs] → logits [num_seqs, vocab_size]."""
        return self._forward(tokens[:, None], position)

    def _forward(self, tokens: np.ndarray, start: int) -> np.ndarray:
        """tokens [num_seqs, num_rows] at positions `start` … → [num_seqs · num_rows, width] f32."""
        num_seqs, num_rows = tokens.shape
        positions = np.arange(start, start + num_rows, dtype=np.int32)
        return np.array(
            self._executor.forward(
                input_ids=np.ascontiguousarray(tokens.reshape(-1), np.int32),
                position_ids=np.tile(positions, num_seqs),
                cu_seqlens=np.arange(0, tokens.size + 1, num_rows, dtype=np.int32),
                context_lens=np.full(num_seqs, start, np.int32),
                block_tables=np.ascontiguousarray(self._tables[:num_seqs]),
                logit_rows=np.arange(tokens.size, dtype=np.int32),
            )
        )


def longest(sequences: Sequence[np.ndarray]) -> int:
    return max(map(len, sequences))
