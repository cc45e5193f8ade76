"""The engine of a model that gives embeddings: token ids in, one vector per prompt out. Nothing is sampled and nothing is kept.

    submit(prompts) ─▶ queue ─▶ steps of max_num_tokens rows: [prompt 7, 2nd half | prompt 8 | prompt 9, 1st half] ─▶ pooled ─▶ futures

One thread steps the model. A step takes prompts in the order in which they came, of all requests together; a long one goes on in the next.
A prompt's vector does not depend on what else was in its steps (docs/architecture.md, numerical contract).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .artifact import EmbeddingFacts
from .engine import EngineError, EngineStopped, QueueFull

BLOCK_SIZE = 16


class ModelComputedNaN(EngineError):
    """A hidden state is no number."""


@dataclass(slots=True, eq=False)
class _Job:
    """A prompt on its way. `pooled`: the sum (mean) or the one row (last, first) that was computed so far."""

    prompt: np.ndarray  # [length] i32
    future: Future[np.ndarray]
    blocks: list[int] = field(default_factory=list)
    num_done: int = 0
    pooled: np.ndarray | None = None  # [size] f64

    @property
    def num_blocks(self) -> int:
        return -(-len(self.prompt) // BLOCK_SIZE)


class Embedder:
    """Embeds prompts on an executor until `shutdown`.

    `executor`: bound for `max_num_tokens` rows, for as many logits (mean) or `max_num_seqs` of them, and for `num_blocks_for` blocks.
    `max_queue_len`: prompts that may wait.
    """

    adapters = None
    embedding_width = 0

    def __init__(
        self, executor: Any, facts: EmbeddingFacts, *, max_num_tokens: int, max_num_seqs: int, max_queue_len: int, max_context_len: int
    ) -> None:
        self.facts = facts
        self.max_context_len = self.max_total_len = max_context_len
        self.vocab_size: int = executor.vocab_size
        self._executor = executor
        self._max_num_tokens, self._max_num_seqs, self._max_queue_len = max_num_tokens, max_num_seqs, max_queue_len
        self._free_blocks = list(range(executor.num_blocks))
        self._waiting: deque[_Job] = deque()
        self._running: list[_Job] = []
        self._changed = threading.Condition()
        self._is_closed = False
        self._last_step_time = time.monotonic()
        self._thread = threading.Thread(target=self._loop, name="fmo-embed", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, prompts: Sequence[Sequence[int]]) -> list[Future[np.ndarray]]:
        """One future per prompt, of its embedding `[size]` f32; a future that is cancelled before its prompt runs costs nothing.

        Raises QueueFull, then none of the prompts is queued, or EngineStopped.
        """
        jobs = [_Job(np.array(prompt, np.int32), Future()) for prompt in prompts]
        with self._changed:
            if self._is_closed:
                raise EngineStopped("the engine is shutting down")
            self._waiting = deque(job for job in self._waiting if not job.future.cancelled())
            if self._waiting and len(self._waiting) + len(jobs) > self._max_queue_len:
                raise QueueFull(f"{len(self._waiting)} prompts wait already, and {len(jobs)} more are too many")
            if not self._waiting and not self._running:
                self._last_step_time = time.monotonic()
            self._waiting += jobs
            self._changed.notify()
        return [job.future for job in jobs]

    def stats(self) -> dict[str, Any]:
        is_idle = not self._waiting and not self._running
        age_s = 0.0 if is_idle else time.monotonic() - self._last_step_time
        return {"num_queued_requests": len(self._waiting), "num_running": len(self._running), "heartbeat_age_s": age_s}

    @property
    def num_queued_requests(self) -> int:
        return len(self._waiting)

    num_queued_samples = num_queued_requests

    def shutdown(self) -> None:
        """Ends the thread after its step; what was not finished gets EngineStopped."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    # The thread --------------------------------------------------------------------------------------------------------------------------

    def _loop(self) -> None:
        while self._admit():
            try:
                self._step()
            except Exception as error:  # whatever the core raises is the failure of these prompts, and the next ones go on
                self._end(list(self._running), error)
            self._last_step_time = time.monotonic()
        self._end([*self._running, *self._waiting], EngineStopped("the engine is shutting down"))

    def _admit(self) -> bool:
        """Waits for prompts and starts those that fit; False at the end."""
        with self._changed:
            while not self._is_closed and not self._waiting and not self._running:
                self._changed.wait()
            num_tokens = sum(len(job.prompt) - job.num_done for job in self._running)
            while self._waiting and num_tokens < self._max_num_tokens and len(self._running) < self._max_num_seqs:
                job = self._waiting[0]
                if job.num_blocks > len(self._free_blocks):
                    break
                self._waiting.popleft()
                if job.future.set_running_or_notify_cancel():
                    job.blocks = [self._free_blocks.pop() for _ in range(job.num_blocks)]
                    num_tokens += len(job.prompt)
                    self._running.append(job)
            return not self._is_closed

    def _step(self) -> None:
        """Computes the next rows of the running prompts and ends those that are complete."""
        pieces: list[tuple[_Job, int]] = []
        budget = self._max_num_tokens
        for job in self._running:
            count = min(len(job.prompt) - job.num_done, budget)
            if count:
                pieces.append((job, count))
            budget -= count
        if not pieces:
            return
        wanted = [self._wanted_rows(job, count) for job, count in pieces]
        starts = np.cumsum([0, *(count for _, count in pieces)]).astype(np.int32)
        rows = np.concatenate([start + rows for start, rows in zip(starts, wanted, strict=False)]).astype(np.int32)
        hidden = self._forward(pieces, starts, rows)
        taken = 0
        for (job, count), own in zip(pieces, wanted, strict=True):
            self._pool(job, hidden[taken : taken + len(own)])
            taken += len(own)
            job.num_done += count
        self._end([job for job, _ in pieces if job.num_done == len(job.prompt)], None)

    def _wanted_rows(self, job: _Job, count: int) -> np.ndarray:
        """The rows of this piece whose hidden states are pooled."""
        if self.facts.pooling == "mean":
            return np.arange(count)
        position = 0 if self.facts.pooling == "first" else len(job.prompt) - 1
        return np.array([position - job.num_done] if job.num_done <= position < job.num_done + count else [], np.int64)

    def _forward(self, pieces: list[tuple[_Job, int]], starts: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Hidden states `[len(rows), size]` f32 of one step."""
        tables = np.zeros((len(pieces), max(job.num_blocks for job, _ in pieces)), np.int32)
        for row, (job, _) in enumerate(pieces):
            tables[row, : job.num_blocks] = job.blocks
        spans = [(job, np.arange(job.num_done, job.num_done + count, dtype=np.int32)) for job, count in pieces]
        hidden: np.ndarray = self._executor.forward(
            input_ids=np.concatenate([job.prompt[positions] for job, positions in spans]),
            position_ids=np.concatenate([positions for _, positions in spans]),
            cu_seqlens=starts,
            context_lens=np.array([job.num_done for job, _ in pieces], np.int32),
            block_tables=tables,
            logit_rows=rows,
        )
        return hidden

    def _pool(self, job: _Job, hidden: np.ndarray) -> None:
        if len(hidden):
            rows = hidden.astype(np.float64)  # added one by one, so that the pieces of a prompt do not show in the sum
            job.pooled = (rows if job.pooled is None else np.vstack([job.pooled, rows])).sum(axis=0)

    def _end(self, jobs: list[_Job], failure: Exception | None) -> None:
        for job in jobs:
            with self._changed:
                if job in self._running:
                    self._running.remove(job)
                self._free_blocks += job.blocks
                job.blocks = []
            if failure is not None:
                if not job.future.cancelled():
                    job.future.set_exception(failure)
                continue
            vector = self._vector(job)
            if np.isfinite(vector).all():
                job.future.set_result(vector)
            else:
                job.future.set_exception(ModelComputedNaN("the model computed a NaN"))

    def _vector(self, job: _Job) -> np.ndarray:
        assert job.pooled is not None
        pooled = job.pooled / len(job.prompt) if self.facts.pooling == "mean" else job.pooled
        return (normalized(pooled) if self.facts.is_normalized else pooled).astype(np.float32)


def normalized(vector: np.ndarray) -> np.ndarray:
    """The vector of length 1 in the same direction; zeros stay zeros."""
    length = np.linalg.norm(vector)
    return vector / length if length > 0 else vector


def num_blocks_for(max_context_len: int, max_num_tokens: int, max_num_seqs: int) -> int:
    """KV blocks for the largest step: one prompt of full length that goes on, and the prompts beside it."""
    return -(-max_context_len // BLOCK_SIZE) + -(-max_num_tokens // BLOCK_SIZE) + max_num_seqs
