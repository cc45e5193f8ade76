"""A model that babbles: the hardest one to keep to a format. Real engine, real sampler, logits at random from the last token and its place.

Closing characters and the end of the sequence are a little likelier than the rest, so that most answers end.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from friendli_runtime.engine import Engine, TokenOutput
from friendli_runtime.sampling import SamplingParams
from friendli_runtime.structured.constraint import Constraint, ConstraintCompiler
from friendli_runtime.structured.response_format import ConstraintLimits, grammar_of
from friendli_runtime.tokenizer.sample_text import SampleText
from friendli_runtime.tokenizer.tokenizer import Tokenizer
from tokenizer.tokenizers_made_here import backend_json

NUM_ROWS = 251
CLOSING = b'"}],'


class RandomModel:
    """What `_core.Engine` needs of a model in Python."""

    block_size = 16

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_id: int, *, num_blocks: int = 512, closing_bias: float = 3.0) -> None:
        self.num_blocks = num_blocks
        rng = np.random.default_rng(7)
        self._rows = rng.standard_normal((NUM_ROWS, vocab_size), dtype=np.float32) * 2
        for token_id in range(tokenizer.backend.num_tokens):
            data = tokenizer.token_bytes(token_id)
            if len(data) == 1 and data in CLOSING:
                self._rows[:, token_id] += closing_bias
        self._rows[:, eos_id] += closing_bias

    def forward(self, input_ids, position_ids, cu_seqlens, context_lens, block_tables, logit_rows) -> np.ndarray:
        return self._rows[(input_ids[logit_rows] * 31 + position_ids[logit_rows] * 17) % NUM_ROWS]

    def copy_block(self, source_block: int, target_block: int) -> None:
        """The scores depend on the last token alone: nothing is kept in blocks."""


@cache
def tokenizer_of(kind: str) -> Tokenizer:
    return Tokenizer.from_json(backend_json(kind), {})


def eos_of(kind: str) -> int:
    text = "<|end|>" if kind == "byte_level" else "</s>"
    token_id = tokenizer_of(kind).backend.token_to_id(text)
    assert token_id is not None
    return token_id


@dataclass
class Answer:
    text: str
    token_ids: list[int]
    finish_reason: str
    error: str | None


class Babbler:
    """An engine on a RandomModel that takes constrained requests. `vocab_size` is that of a padded model."""

    def __init__(self, kind: str = "byte_level", **options: Any) -> None:
        self.tokenizer, self.eos_id = tokenizer_of(kind), eos_of(kind)
        self.vocab_size = self.tokenizer.backend.num_tokens + 5
        model = RandomModel(self.tokenizer, self.vocab_size, self.eos_id, **options)
        self.engine = Engine(model, max_num_seqs=16, max_num_tokens=256, max_context_len=1024, vocab_size=self.vocab_size)
        self.compiler = ConstraintCompiler(self.tokenizer, self.vocab_size, (self.eos_id,))
        self.engine.start()

    def constraint(self, response_format: dict[str, Any]) -> Constraint:
        grammar = grammar_of(response_format, ConstraintLimits())
        assert grammar is not None
        return self.compiler.compile(grammar, (self.eos_id,))

    def answers(self, requests: Sequence[tuple[dict[str, Any], SamplingParams]]) -> list[list[Answer]]:
        """All requests at the same time; one list of samples each."""
        done = threading.Semaphore(0)
        running = [self._start(response_format, params, done) for response_format, params in requests]
        for samples in running:
            for _ in samples:
                assert done.acquire(timeout=60)
        return running

    def answer(self, response_format: dict[str, Any], **params: Any) -> Answer:
        given = SamplingParams(**{"max_tokens": 200, "temperature": 1.5, "seed": 1, **params})
        return self.answers([(response_format, given)])[0][0]

    def _start(self, response_format: dict[str, Any], params: SamplingParams, done: threading.Semaphore) -> list[Answer]:
        constraint = self.constraint(response_format)
        params = replace(params, response_format=response_format, eos_token_ids=(self.eos_id,))
        prompt = [3, 4]
        texts = [SampleText(self.tokenizer, prompt, params, (self.eos_id,), constraint.accepts) for _ in range(params.n)]
        answers = [Answer("", [], "", None) for _ in range(params.n)]

        def sink(outputs: list[TokenOutput]) -> None:
            for output in outputs:
                delta = texts[output.sample_idx].push(output)
                if delta is None:
                    continue
                answer = answers[output.sample_idx]
                answer.text += delta.text
                answer.token_ids += delta.token_ids
                if delta.finish_reason is not None:
                    answer.finish_reason, answer.error = delta.finish_reason, delta.error
                    if delta.stopped_by_text:
                        self.engine.cancel_sample(request_id, output.sample_idx)
                    done.release()

        request_id = self.engine.submit(prompt, params, sink, constraint)
        return answers

    def close(self) -> None:
        self.engine.shutdown()
