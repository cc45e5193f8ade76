"""Runs several sequences through an artifact as the engine does: packed steps, paged KV cache, chunked prefill, then one token each.

step 1   |5 of seq 0|17 of seq 1|first 20 of seq 2|
step 2   |1|1|the other 13 of seq 2|
step 3…  |1|1|1|
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class Sequence_:
    """Tokens so far, how many of them are in the cache, and the logits of those."""

    tokens: list[int]
    block_ids: list[int]
    num_cached: int = 0
    logits: list[np.ndarray] = field(default_factory=list)


def run_greedy(executor: Any, prompts: Sequence[Sequence[int]], num_decode_steps: int, first_chunks: Sequence[int]) -> list[Sequence_]:
    """Prefills the prompts (the first step takes `first_chunks` tokens of each), then decodes greedily; keeps all logits."""
    blocks_per_seq = executor.num_blocks // len(prompts)
    order = np.random.default_rng(0).permutation(executor.num_blocks)
    seqs = [Sequence_(list(p), order[i * blocks_per_seq : (i + 1) * blocks_per_seq].tolist()) for i, p in enumerate(prompts)]
    ends = [len(prompt) + num_decode_steps for prompt in prompts]
    _step(executor, seqs, list(first_chunks))
    while any(len(seq.logits) < end for seq, end in zip(seqs, ends, strict=True)):
        for seq, end in zip(seqs, ends, strict=True):
            if len(seq.logits) == len(seq.tokens) < end:
                seq.tokens.append(int(np.argmax(seq.logits[-1])))
        _step(executor, seqs, [len(seq.tokens) - seq.num_cached for seq in seqs])
    return seqs


def _step(executor: Any, seqs: list[Sequence_], counts: list[int]) -> None:
    """One packed step that brings `counts[i]` tokens of sequence i."""
    rows = [(seq, count) for seq, count in zip(seqs, counts, strict=True) if count]
    ids = np.concatenate([seq.tokens[seq.num_cached : seq.num_cached + count] for seq, count in rows]).astype(np.int32)
    positions = np.concatenate([np.arange(seq.num_cached, seq.num_cached + count) for seq, count in rows]).astype(np.int32)
    cu_seqlens = np.concatenate([[0], np.cumsum([count for _, count in rows])]).astype(np.int32)
    context_lens = np.array([seq.num_cached for seq, _ in rows], np.int32)
    tables = np.array([seq.block_ids for seq, _ in rows], np.int32)
    logits = executor.forward(ids, positions, cu_seqlens, context_lens, tables, np.arange(len(ids), dtype=np.int32))
    row = 0
    for seq, count in rows:
        seq.logits.extend(logits[row : row + count])
        seq.num_cached += count
        row += count
