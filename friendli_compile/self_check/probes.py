"""What is run through both sides: seeded token sequences, and the steps in which the executor gets them.

Lengths sit on both sides of a KV block (16 tokens) and of an attention tile, and beyond every attention window that is short enough. The
steps mix what a server mixes: packed prefill of several sequences, chunks that continue a prompt, a sequence that joins late,
single-token decoding. transformers gets every sequence whole, so the same logits must come out however a sequence is cut.

    step 0   | seq 0: rows 0-4 | seq 1: rows 0-15 | seq 2: rows 0-62 |
    step 1   | seq 0: 5-16 | seq 1: 16-32 | seq 2: 63-64 | seq 3: 0-… |
    step 2…  | one row of each |
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ..ir.graph import Graph

NUM_DECODE_STEPS = 16
# (rows of the first step, rows of the second): around a KV block of 16, a tile of 64, and across both.
BASE_PARTS = ((5, 12), (16, 17), (63, 2))
LATE_ROWS = 20  # a sequence that joins in the second step
MAX_PROBED_WINDOW = 192  # tokens; a longer window would make the reference slow, the twin has a short one
ROWS_BEYOND_WINDOW = 9


@dataclass(frozen=True)
class ProbeStep:
    """One step of the executor: `rows[i]` is (sequence, first position, number of rows)."""

    rows: tuple[tuple[int, int, int], ...]

    @property
    def num_tokens(self) -> int:
        return sum(count for _, _, count in self.rows)


@dataclass(frozen=True)
class Probes:
    """`tokens[s]` [length of s] i32 and the steps that cover every position of every sequence exactly once."""

    tokens: tuple[np.ndarray, ...]
    steps: tuple[ProbeStep, ...]

    @property
    def lengths(self) -> tuple[int, ...]:
        return tuple(len(sequence) for sequence in self.tokens)

    @property
    def num_tokens(self) -> int:
        return sum(self.lengths)

    def in_one_step(self) -> Probes:
        """The same sequences, all prefilled at once."""
        return Probes(self.tokens, (ProbeStep(tuple((s, 0, length) for s, length in enumerate(self.lengths))),))


def make_probes(vocab_size: int, special_ids: Iterable[int], max_context_len: int, windows: Iterable[int], seed: int = 0) -> Probes:
    """Probes for a model with these attention windows and chunks (0: none)."""
    parts = [*BASE_PARTS, *_window_parts(windows), (0, LATE_ROWS)]
    schedule = [_fitted(first, second, max_context_len) for first, second in parts]
    lengths = [first + second + decode for first, second, decode in schedule]
    return Probes(_random_tokens(lengths, vocab_size, special_ids, seed), _steps(schedule))


def attention_windows(graph: Graph) -> set[int]:
    """Every window and chunk length of the graph's attention."""
    attentions = [node.attrs for node in graph.nodes if node.op == "attn.paged"]
    return {int(attrs[name]) for attrs in attentions for name in ("window", "chunk") if attrs[name]}  # type: ignore[arg-type]


def _window_parts(windows: Iterable[int]) -> list[tuple[int, int]]:
    """For each window that a probe can outgrow: a prompt that ends at its edge, and rows beyond it."""
    return [(window - 1, ROWS_BEYOND_WINDOW) for window in sorted(set(windows)) if 2 <= window <= MAX_PROBED_WINDOW]


def _fitted(first: int, second: int, max_len: int) -> tuple[int, int, int]:
    """(first, second, decode) rows that fit the context: decoding gives way last."""
    decode = min(NUM_DECODE_STEPS, max(max_len - 2, 1))
    second = min(second, max(max_len - decode - 1, 0))
    first = min(first, max_len - decode - second)
    return first, second, decode


def _steps(schedule: Sequence[tuple[int, int, int]]) -> tuple[ProbeStep, ...]:
    done = [0] * len(schedule)
    columns = [[first, second, *[1] * decode] for first, second, decode in schedule]
    steps = []
    for index in range(max(map(len, columns))):
        rows = []
        for s, column in enumerate(columns):
            count = column[index] if index < len(column) else 0
            if count:
                rows.append((s, done[s], count))
                done[s] += count
        if rows:
            steps.append(ProbeStep(tuple(rows)))
    return tuple(steps)


def _random_tokens(lengths: Sequence[int], vocab_size: int, special_ids: Iterable[int], seed: int) -> tuple[np.ndarray, ...]:
    """Uniform over the vocabulary without the special tokens, as long as anything is left."""
    special = {token for token in special_ids if 0 <= token < vocab_size}
    ordinary = np.setdiff1d(np.arange(vocab_size, dtype=np.int32), np.array(sorted(special), np.int32))
    choices = ordinary if len(ordinary) else np.arange(vocab_size, dtype=np.int32)
    rng = np.random.default_rng(seed)
    return tuple(rng.choice(choices, length).astype(np.int32) for length in lengths)
