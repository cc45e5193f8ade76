"""What every engine is asked to do, and the timing that is the same for all. Standard library only: it runs in every peer's environment.

An adapter is a module with

    REQUIREMENTS, PRECISIONS                      what pip installs; the precisions it offers
    prepare(model_dir, precision, out) -> None    converts once; `out` is a new folder
    load(path, workload) -> engine                opens what `prepare` left
    engine.generate(prompts, num_new, emit)       greedy, end-of-sequence ignored; emit(sequence, token) as soon as a token is known

Prompts are token ids that differ from round to round, so that no cache of prefixes helps anybody.
"""

from __future__ import annotations

import random
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

Emit = Callable[[int, int], None]
FIRST_ORDINARY_ID = 300  # ids below may be special tokens or bytes


class Engine(Protocol):
    """What an adapter's `load` returns."""

    def generate(self, prompts: list[list[int]], num_new: int, emit: Emit) -> None: ...


@dataclass(frozen=True)
class Workload:
    """Lengths in tokens. `spawned_s`: CLOCK_MONOTONIC when the process was started."""

    vocab_size: int
    num_threads: int
    seed: int
    prefill: int = 512
    prompt: int = 128  # of one sequence alone, and the tokens it generates
    new: int = 128
    batches: tuple[int, ...] = (1, 2, 4, 8, 16)
    batch_prompt: int = 16
    batch_new: int = 48
    spawned_s: float = 0.0

    def prompts(self, num_seqs: int, length: int, salt: int) -> list[list[int]]:
        rng = random.Random(f"{self.seed}/{salt}")
        return [[rng.randrange(FIRST_ORDINARY_ID, self.vocab_size) for _ in range(length)] for _ in range(num_seqs)]

    @property
    def max_len(self) -> int:
        return max(self.prefill + 1, self.prompt + self.new, self.batch_prompt + self.batch_new)


class Timeline:
    """When each of `num_seqs` sequences got each token, in seconds of `time.perf_counter`."""

    def __init__(self, num_seqs: int) -> None:
        self.tokens: list[list[int]] = [[] for _ in range(num_seqs)]
        self.times_s: list[list[float]] = [[] for _ in range(num_seqs)]
        self.started_s = time.perf_counter()

    def emit(self, seq: int, token: int) -> None:
        self.tokens[seq].append(int(token))
        self.times_s[seq].append(time.perf_counter())

    def first_token_s(self) -> float:
        """Seconds until every sequence had a token."""
        return max(times[0] for times in self.times_s) - self.started_s

    def decode_rate(self) -> float:
        """Tokens per second of all sequences together, after each had its first."""
        begin_s = self.first_token_s() + self.started_s
        end_s = max(times[-1] for times in self.times_s)
        return sum(time_s > begin_s for times in self.times_s for time_s in times) / (end_s - begin_s)


def timed(engine: Engine, prompts: list[list[int]], num_new: int) -> Timeline:
    """Raises RuntimeError when a sequence did not get exactly `num_new` tokens: its time would mean nothing."""
    timeline = Timeline(len(prompts))
    engine.generate(prompts, num_new, timeline.emit)
    counts = [len(tokens) for tokens in timeline.tokens]
    if counts != [num_new] * len(prompts):
        raise RuntimeError(f"asked for {num_new} tokens of each sequence, got {counts}")
    return timeline


def measure(load: Callable[[], Engine], work: Workload) -> dict[str, object]:
    """One pass over the workload in this process: figures by name."""
    load_started_s = time.monotonic()
    engine = load()
    loaded_s = time.monotonic()
    timed(engine, work.prompts(1, 16, 1), 1)
    result: dict[str, object] = {
        "load_s": loaded_s - load_started_s,
        "cold_first_token_s": time.monotonic() - work.spawned_s,
        "loaded_rss_mb": peak_rss_mb(),
    }
    timed(engine, work.prompts(1, 32, 2), 4)  # warm up
    result["prefill_tok_s"] = work.prefill / timed(engine, work.prompts(1, work.prefill, 3), 1).first_token_s()
    alone = timed(engine, work.prompts(1, work.prompt, 4), work.new)
    result |= {"decode_tok_s": alone.decode_rate(), "tokens": alone.tokens[0][:16]}
    for num_seqs in work.batches:
        together = timed(engine, work.prompts(num_seqs, work.batch_prompt, 5 + num_seqs), work.batch_new)
        result[f"batch{num_seqs}_tok_s"] = together.decode_rate()
    return result | {"peak_rss_mb": peak_rss_mb()}


def peak_rss_mb() -> float:
    return max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1024
