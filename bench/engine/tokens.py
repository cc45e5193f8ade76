"""One request on an engine and when its tokens came: what the measurements of this folder share."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from friendli_runtime.artifact import Artifact
from friendli_runtime.engine import Engine, TokenOutput
from friendli_runtime.executor import load_executor
from friendli_runtime.sampling import SamplingParams

MAX_NUM_TOKENS = 512
MAX_NUM_SEQS = 4
NUM_BLOCKS = 256


def open_engine(artifact: Artifact, num_threads: int, **options: Any) -> Engine:
    """A started engine with an executor of its own."""
    executor = load_executor(
        artifact, num_threads=num_threads, max_num_tokens=MAX_NUM_TOKENS, max_num_logits=4 * MAX_NUM_SEQS, num_blocks=NUM_BLOCKS
    )
    engine = Engine(
        executor,
        max_num_seqs=MAX_NUM_SEQS,
        max_num_tokens=MAX_NUM_TOKENS,
        max_context_len=min(executor.max_context_len, NUM_BLOCKS * 16),
        vocab_size=executor.vocab_size,
        **options,
    )
    engine.start()
    return engine


@dataclass
class Answer:
    """The tokens of one greedy answer and the seconds from its submission to each of them."""

    token_ids: list[int]
    times_s: list[float]
    num_cached_tokens: int = 0

    @property
    def first_token_s(self) -> float:
        return self.times_s[0]

    @property
    def token_s(self) -> float:
        """Mean seconds per token after the first."""
        return (self.times_s[-1] - self.times_s[0]) / (len(self.times_s) - 1)


def answer(engine: Engine, prompt: list[int], num_new_tokens: int, forced: Sequence[int] = ()) -> Answer:
    """Runs one request alone and waits for its end. `forced`: what it must say."""
    arrivals: SimpleQueue[tuple[float, list[TokenOutput]]] = SimpleQueue()
    params = SamplingParams(max_tokens=num_new_tokens, temperature=0.0, ignore_eos=True, forced_output_tokens=tuple(forced))
    started_s = time.perf_counter()
    engine.submit(prompt, params, lambda outputs: arrivals.put((time.perf_counter(), outputs)))
    result = Answer([], [])
    while True:
        now_s, outputs = arrivals.get()
        for output in outputs:
            result.num_cached_tokens = output.num_cached_tokens
            if output.error is not None:
                raise RuntimeError(f"the engine failed during the measurement: {output.error}")
            if output.token_id is not None:
                result.token_ids.append(output.token_id)
                result.times_s.append(now_s - started_s)
            if output.finish_reason is not None:
                return result
