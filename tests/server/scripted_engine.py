"""An engine for tests and benchmarks of the server: real threads and real callbacks, with a script in place of a model.

Unless another script is given, a sample answers with the tokens of the text between `[[` and `]]` in its prompt (again and again if
`ignore_eos`), then ends with EOS. Each step gives one token to each running sample; at most `max_num_seqs` run, the others wait in order.
At a ☢ the "model" computes a NaN. Where a constraint does not allow the script's token, the first allowed one comes instead.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from friendli_runtime._core import TokenStreams
from friendli_runtime.engine import EngineStopped, PromptScores, QueueFull, Sink, TokenOutput
from friendli_runtime.lora.registry import LoadedAdapter
from friendli_runtime.sampling import SamplingParams
from friendli_runtime.structured.errors import ConstraintFailed
from friendli_runtime.structured.mask_feeder import CONSTRAINT_ERROR, Masks, MaskSource
from friendli_runtime.tokenizer.tokenizer import Tokenizer

NAN = -1
"""In a script: here the model fails."""


@dataclass
class _Sample:
    request_id: int
    sample_idx: int
    tokens: list[int]
    params: SamplingParams
    limit: int
    sink: Sink
    prompt_ids: Sequence[int]
    masks: Masks | None = None
    mask: bytes = b""
    num_done: int = 0
    is_cancelled: bool = False

    def __post_init__(self) -> None:
        params = self.params
        self.end_ids = frozenset(params.stop_token_ids) | frozenset(() if params.ignore_eos else params.eos_token_ids)


class ScriptedEngine:
    """Implements the server's `TokenEngine`."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        eos_id: int,
        *,
        max_num_seqs: int = 64,
        max_queue_len: int = 1024,
        max_context_len: int = 512,
        step_s: float = 0.0,
        script: Callable[[Sequence[int], SamplingParams], list[int]] | None = None,
        is_direct: bool = True,
    ) -> None:
        """`step_s`: what a step of a model would take. `script`: the answer to a prompt. `is_direct`: streams may take tokens."""
        self.is_direct = is_direct
        self.num_direct_tokens = 0
        self.max_context_len = self.max_total_len = max_context_len
        self.vocab_size = tokenizer.backend.num_tokens
        self.step_s = step_s
        self.num_cancelled = 0
        self.event_fd = os.eventfd(0, os.EFD_NONBLOCK)
        self._outbox: deque[tuple[_Sample, TokenOutput]] = deque()
        self._tokenizer, self._eos_id = tokenizer, eos_id
        self._max_num_seqs, self._max_queue_len = max_num_seqs, max_queue_len
        self._script = script if script is not None else self._bracketed
        self._samples: list[_Sample] = []
        self._changed = threading.Condition()
        self._next_id = 0
        self._is_closed = False
        self._thread = threading.Thread(target=self._loop, daemon=True)

    def start(self) -> None:
        self._thread.start()

    adapters = None
    embedding_width = 0

    def submit(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        sink: Sink,
        constraint: MaskSource | None = None,
        adapter: LoadedAdapter | None = None,
    ) -> int:
        assert adapter is None, "the scripted engine has no adapters"
        assert not params.is_constrained or constraint is not None
        params.validate(self.vocab_size, self.max_context_len, len(prompt_ids))
        with self._changed:
            if self._is_closed:
                raise EngineStopped("stopped")
            if self.stats()["num_queued_requests"] >= self._max_queue_len:
                raise QueueFull(f"{self._max_queue_len} requests wait already")
            self._next_id += 1
            limit = params.output_limit(self.max_context_len, len(prompt_ids))
            for sample_idx in range(params.n):
                masks = (constraint.sample(), constraint.first_mask) if constraint is not None else (None, b"")
                self._samples.append(
                    _Sample(self._next_id, sample_idx, self._script(prompt_ids, params), params, limit, sink, prompt_ids, *masks)
                )
            self._changed.notify()
            return self._next_id

    def cancel(self, request_id: int) -> None:
        self._cancel(lambda sample: sample.request_id == request_id)

    def cancel_sample(self, request_id: int, sample_idx: int) -> None:
        self._cancel(lambda sample: (sample.request_id, sample.sample_idx) == (request_id, sample_idx))

    def deliver(self, streams: TokenStreams | None = None) -> bool:
        os.eventfd_read(self.event_fd)
        waiting = [self._outbox.popleft() for _ in range(len(self._outbox))]
        left = waiting
        if streams is not None and self.is_direct:
            events = [(sample.request_id, sample.sample_idx, _plain_token(output)) for sample, output in waiting]
            left = [waiting[idx] for idx in streams.serve(events)]
        self.num_direct_tokens += len(waiting) - len(left)
        for sample, output in left:
            sample.sink([output])
        return bool(waiting)

    @property
    def num_queued_requests(self) -> int:
        return int(self.stats()["num_queued_requests"])

    @property
    def num_queued_samples(self) -> int:
        return max(0, len(self._samples) - self._max_num_seqs)

    def stats(self) -> dict[str, Any]:
        started = {sample.request_id for sample in self._samples[: self._max_num_seqs]}
        waiting = {sample.request_id for sample in self._samples} - started
        return {"num_queued_requests": len(waiting), "num_running": min(len(self._samples), self._max_num_seqs), "heartbeat_age_s": 0.0}

    def retry_after_s(self) -> int:
        return 1

    def shutdown(self, drain_s: float = 0.0) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()
        os.close(self.event_fd)

    def _bracketed(self, prompt_ids: Sequence[int], params: SamplingParams) -> list[int]:
        if params.forced_output_tokens:
            return list(params.forced_output_tokens)
        text = self._tokenizer.decode(prompt_ids)
        answer, nan, _ = text.partition("[[")[2].partition("]]")[0].partition("☢")
        return self._tokenizer.encode(answer, add_special_tokens=False) + ([NAN] if nan else [])

    def _cancel(self, matches: Callable[[_Sample], bool]) -> None:
        with self._changed:
            for sample in self._samples:
                if matches(sample) and not sample.is_cancelled:
                    sample.is_cancelled = True
                    self.num_cancelled += 1
            self._changed.notify()

    def _loop(self) -> None:
        while True:
            with self._changed:
                while not self._samples and not self._is_closed:
                    self._changed.wait()
                if self._is_closed:
                    return
                running = self._samples[: self._max_num_seqs]
                stepping = running + [sample for sample in self._samples[self._max_num_seqs :] if sample.is_cancelled]
                done = [(sample, self._step(sample)) for sample in stepping]
                if any(output.finish_reason for _, output in done):
                    ended = {id(sample) for sample, output in done if output.finish_reason is not None}
                    self._samples = [sample for sample in self._samples if id(sample) not in ended]
            self._outbox += done
            os.eventfd_write(self.event_fd, 1)
            if self._samples:
                time.sleep(self.step_s)

    def _step(self, sample: _Sample) -> TokenOutput:
        if sample.is_cancelled:
            return TokenOutput(sample.sample_idx, None, None, None, "cancelled", None, 0)
        tokens = sample.tokens
        if sample.params.ignore_eos and tokens:
            token_id = tokens[sample.num_done % len(tokens)]
        else:
            token_id = tokens[sample.num_done] if sample.num_done < len(tokens) else self._eos_id
        if token_id == NAN:
            return TokenOutput(sample.sample_idx, None, None, None, "error", "the model computed a NaN for this token", 0)
        if sample.masks is not None:
            token_id = self._allowed(sample, token_id)
        sample.num_done += 1
        reason = "stop" if token_id in sample.end_ids else "length" if sample.num_done >= sample.limit else None
        if sample.masks is not None and reason is None:
            try:
                sample.mask = sample.masks.advance(token_id)
            except ConstraintFailed as error:
                return TokenOutput(sample.sample_idx, None, None, None, "error", f"{CONSTRAINT_ERROR}{error}", 0)
        asked = sample.params.logprobs
        top = None if asked is None else [(token_id, -0.5), ((token_id + 1) % self.vocab_size, -1.5)][:asked]
        scores = self._prompt_scores(sample) if sample.sample_idx == 0 and sample.num_done == 1 else None
        return TokenOutput(sample.sample_idx, token_id, None if asked is None else -0.5, top, reason, None, 0, scores)

    def _prompt_scores(self, sample: _Sample) -> PromptScores | None:
        """Every token of the prompt was expected."""
        asked = sample.params.prompt_logprobs
        return None if asked is None else [(-0.25, [(token_id, -0.25)][:asked]) for token_id in sample.prompt_ids[1:]]

    def _allowed(self, sample: _Sample, token_id: int) -> int:
        bits = int.from_bytes(sample.mask, "little")
        return token_id if bits >> token_id & 1 else (bits & -bits).bit_length() - 1


def _plain_token(output: TokenOutput) -> int | None:
    return output.token_id if output.finish_reason is None and output.logprob is None and output.prompt_logprobs is None else None
