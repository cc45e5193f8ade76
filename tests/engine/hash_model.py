"""A model whose logits are a pure hash of the token history that it finds in the KV blocks, and the answer it must give.

A block that was mixed up, freed too early, shared wrongly or filled at the wrong place changes the history and so every later token. The
expected answer uses no engine: one sequence, one token at a time, with the sampler called directly.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from friendli_runtime import _core
from friendli_runtime.sampling import SamplingParams

EMPTY = -1


def logits_of(history: tuple[int, ...], vocab_size: int) -> np.ndarray:
    """f32 [vocab_size], different for every history."""
    seed = zlib.crc32(np.asarray(history, np.int32).tobytes())
    return np.random.Generator(np.random.SFC64(seed)).standard_normal(vocab_size, dtype=np.float32) * 3


@dataclass
class HashModel:
    """Stores token ids in blocks as a model stores keys and values. `block_size` may be small to make the engine work.

    Strict where a real model may be lucky: a sequence must not read what another one writes in the same step. `during_forward` is called in
    every step, to disturb the engine while it waits for the model.
    """

    num_blocks: int
    block_size: int = 4
    vocab_size: int = 24
    num_forwards: int = 0
    num_rows: int = 0
    during_forward: Callable[[], None] | None = None
    cells: np.ndarray = field(init=False)
    steps: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.cells = np.full((self.num_blocks, self.block_size), EMPTY, np.int32)
        self.steps = np.zeros_like(self.cells)

    def forward(self, input_ids, position_ids, cu_seqlens, context_lens, block_tables, logit_rows) -> np.ndarray:
        self.num_forwards += 1
        if self.during_forward:
            self.during_forward()
        self.num_rows += len(input_ids)
        assert len(input_ids) == len(position_ids) == cu_seqlens[-1] and cu_seqlens[0] == 0
        assert (np.diff(cu_seqlens) > 0).all()
        history_of_row = {}
        for seq, context_len in enumerate(context_lens):
            rows = range(cu_seqlens[seq], cu_seqlens[seq + 1])
            for row in rows:
                position = context_len + row - rows[0]
                assert position_ids[row] == position
                cell = block_tables[seq, position // self.block_size], position % self.block_size
                self.cells[cell], self.steps[cell] = input_ids[row], self.num_forwards
            num_tokens = context_len + len(rows)
            blocks = block_tables[seq, : -(-num_tokens // self.block_size)]
            history = self.cells[blocks].reshape(-1)[:num_tokens]
            assert EMPTY not in history and (self.steps[blocks].reshape(-1)[:context_len] < self.num_forwards).all()
            for row in rows:
                history_of_row[row] = tuple(history[: context_len + row - rows[0] + 1])
        logits = [self.logits(history_of_row[row]) for row in logit_rows]
        return np.stack(logits) if logits else np.zeros((0, self.vocab_size), np.float32)

    def copy_block(self, source_block: int, target_block: int) -> None:
        self.cells[target_block], self.steps[target_block] = self.cells[source_block], self.steps[source_block]

    def logits(self, history: tuple[int, ...]) -> np.ndarray:
        return logits_of(history, self.vocab_size)


@dataclass
class Answer:
    """What one sample gave: tokens in order and how it ended (None: still open)."""

    tokens: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    error: str | None = None
    num_cached_tokens: int = 0
    rows: list[tuple] = field(default_factory=list)

    def add(self, row: tuple) -> None:
        _, token_id, _, _, finish_reason, error, self.num_cached_tokens, _ = row
        assert self.finish_reason is None, "a sample gave something after its end"
        if token_id is not None:
            self.tokens.append(token_id)
        self.finish_reason, self.error = finish_reason, error
        self.rows.append(row)


class ManualEngine:
    """`_core.Engine` stepped by hand, with the answers collected and the invariants checked after every step."""

    def __init__(self, model: HashModel, *, max_num_seqs=4, max_num_tokens=8, max_queue_len=100, max_context_len=64, **options) -> None:
        self.model = model
        self.core = _core.Engine(
            model,
            max_num_seqs=max_num_seqs,
            max_num_tokens=max_num_tokens,
            max_queue_len=max_queue_len,
            max_context_len=max_context_len,
            vocab_size=model.vocab_size,
            **options,
        )
        self.answers: dict[tuple[int, int], Answer] = {}
        self.prompt_logprobs: dict[int, list] = {}

    def submit(self, prompt: list[int], params: SamplingParams, cache_scope: tuple[int, int] = (0, 0)) -> int:
        request_id = self.core.submit(prompt, params, cache_scope=cache_scope)
        for sample_idx in range(params.n):
            self.answers[request_id, sample_idx] = Answer()
        return request_id

    def step(self) -> bool:
        has_stepped = self.core.step()
        self.core.check_invariants()
        for request_id, rows in self.core.take_events(0):
            for row in rows:
                if row[-1] is not None:
                    assert request_id not in self.prompt_logprobs, "the scores of a prompt come twice"
                    assert not any(answer.tokens for (other_id, _), answer in self.answers.items() if other_id == request_id)
                    self.prompt_logprobs[request_id] = row[-1]
                self.answers[request_id, row[0]].add(row)
        return has_stepped

    def run(self, max_steps: int = 5000) -> None:
        for _ in range(max_steps):
            if not self.step():
                return
        raise AssertionError(f"still busy after {max_steps} steps")

    def stat(self, name: str) -> int:
        return self.core.stats()[name]


def expected_prompt_logprobs(prompt: list[int], num_logprobs: int, vocab_size: int) -> list:
    """Of each token after the first, as if it were the only one to be sampled."""
    scores = []
    for idx in range(1, len(prompt)):
        params = SamplingParams(forced_output_tokens=(prompt[idx],), logprobs=num_logprobs)
        _, logprob, top = _core.sample_token(logits_of(tuple(prompt[:idx]), vocab_size), prompt[:idx], [], params, 0)
        scores.append((logprob, top))
    return scores


def expected_answer(prompt: list[int], params: SamplingParams, sample_idx: int, *, vocab_size: int, max_total_len: int) -> Answer:
    """The answer of one sample alone. Knows EOS, stop tokens, stop sequences and limits, not the engine."""
    seed = params.sample_seeds()[sample_idx]
    alone = replace(params, seed=seed, n=1)
    answer = Answer()
    limit = alone.output_limit(max_total_len, len(prompt))
    while answer.finish_reason is None:
        history = (*prompt, *answer.tokens)
        token_id, _, _ = _core.sample_token(logits_of(history, vocab_size), prompt, answer.tokens, alone, seed)
        answer.tokens.append(token_id)
        is_end = (token_id in alone.eos_token_ids and not alone.ignore_eos) or token_id in alone.stop_token_ids
        is_end |= any(tuple(answer.tokens[-len(tail) :]) == tail for tail in alone.stop_token_sequences)
        if is_end and len(answer.tokens) >= len(alone.forced_output_tokens):
            answer.finish_reason = "stop"
        elif len(answer.tokens) == limit:
            answer.finish_reason = "length"
    return answer
