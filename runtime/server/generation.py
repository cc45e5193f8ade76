"""One HTTP request on the engine: its prompts are submitted, their samples become text, and whatever happens nothing keeps running after
it.

    prompts × n samples ─▶ engine ─▶ bridge ─▶ SampleText per sample ─▶ consume(batch of (choice, TextDelta))

A choice is one sample of one prompt: index = prompt index × n + sample index. The end of a request, by whatever cause (finished, client
gone, deadline, shutdown, error), cancels what is left of it in the engine.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable

import msgspec

from ..engine import EngineStopped, PromptScores, QueueFull, RequestTooLarge, TokenOutput
from ..lora.registry import LoadedAdapter, UnknownAdapter
from ..metrics import Metrics
from ..sampling import SamplingParams
from ..structured.after_reasoning import AfterReasoning
from ..structured.constraint import Constraint
from ..structured.mask_feeder import CONSTRAINT_ERROR
from ..tokenizer.sample_text import SampleText, TextDelta, TokenLogprob, prompt_logprobs
from ..tokenizer.tokenizer import Tokenizer
from ..tools.channel_grammar import ChannelConstraint
from ..tools.constraint import CallConstraint
from ..tools.forms import ReadOptions
from .bridge import Bridge
from .direct_stream import DirectStream
from .errors import ApiError, invalid_value, queue_full, unavailable
from .running import Waiter

_log = logging.getLogger(__name__)


class Prompt(msgspec.Struct):
    """Token ids and what to do with them; of a completion `params.seed` is fixed, one seed per sample.

    `constraint`: what the answers must look like. `reading`: how the answers of a chat are read.
    """

    token_ids: list[int]
    params: SamplingParams
    constraint: Constraint | AfterReasoning | CallConstraint | ChannelConstraint | None = None
    reading: ReadOptions | None = None


class _Choice(msgspec.Struct):
    text: SampleText
    prompt_idx: int
    sample_idx: int
    num_tokens: int = 0


class UsageBody(msgspec.Struct):
    """`usage` of an answer."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: dict[str, int]
    completion_tokens_details: dict[str, int] | msgspec.UnsetType = msgspec.UNSET


class Usage(msgspec.Struct):
    """Tokens of the request so far."""

    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_completion_tokens: int = 0
    num_reasoning_tokens: int | None = None

    def as_json(self) -> UsageBody:
        prompt, completion = self.num_prompt_tokens, self.num_completion_tokens
        body = UsageBody(prompt, completion, prompt + completion, {"cached_tokens": self.num_cached_tokens})
        if self.num_reasoning_tokens is not None:
            body.completion_tokens_details = {"reasoning_tokens": self.num_reasoning_tokens}
        return body


Batch = list[tuple[int, TextDelta]]
"""What an engine step added, as (choice index, delta)."""
Consumer = Callable[[Batch], None]


class Generation(msgspec.Struct, eq=False):
    """A request in flight: `run` it once. It is a `bridge.Receiver` and an `exchange.Listener`."""

    bridge: Bridge
    metrics: Metrics
    tokenizer: Tokenizer | None
    prompts: list[Prompt]
    deadline_s: float | None = None
    adapter: LoadedAdapter | None = None  # None: the base model
    usage: Usage = msgspec.field(default_factory=Usage)
    prompt_scores: dict[int, PromptScores] = msgspec.field(default_factory=dict)  # by prompt, for requests that ask for them
    num_open_choices: int = 0
    direct: DirectStream | None = None
    _outputs: list[tuple[int, list[TokenOutput]]] = msgspec.field(default_factory=list)  # with the index of their prompt
    _consume: Consumer = lambda batch: None
    _end: Waiter = msgspec.field(default_factory=Waiter)
    _failure: Exception | None = None
    _is_paused: bool = False
    _choices: list[_Choice] = msgspec.field(default_factory=list)
    _request_ids: list[int] = msgspec.field(default_factory=list)
    _start_time: float = msgspec.field(default_factory=time.monotonic)
    _timer: asyncio.TimerHandle | None = None
    _has_first_token: bool = False

    @property
    def num_samples(self) -> int:
        """Results of each prompt."""
        return self.prompts[0].params.n

    def seed(self, choice_idx: int) -> int:
        """The seed that was used for a choice: with n = 1 it gives that choice again."""
        prompt_idx, sample_idx = divmod(choice_idx, self.num_samples)
        return self.prompts[prompt_idx].params.sample_seeds()[sample_idx]

    def prompt_logprobs(self, choice_idx: int) -> list[TokenLogprob]:
        """Of the tokens of a choice's prompt from the second on, which are known when the choice has its first delta."""
        prompt_idx = choice_idx // self.num_samples
        return prompt_logprobs(self.tokenizer, self.prompts[prompt_idx].token_ids, self.prompt_scores.get(prompt_idx, []))

    def prompt_text(self, choice_idx: int) -> str:
        """The prompt of a choice, as its tokens read."""
        token_ids = self.prompts[choice_idx // self.num_samples].token_ids
        return self.tokenizer.decode(token_ids) if self.tokenizer is not None else " ".join(map(str, token_ids))

    async def run(self, consume: Consumer) -> None:
        """Submits all prompts and gives `consume` what they bring, on the event loop, until every choice is finished.

        Raises ApiError 422, 429 or 503 when they cannot be submitted, ApiError when the engine fails a sample, what `abort` was given, and
        what `consume` raises.
        """
        self._consume = consume
        try:
            self._start()
            if self._failure is None:
                await self._end
            if self._failure is not None:
                raise self._failure
        finally:
            self._close()

    def _start(self) -> None:
        for prompt_idx, prompt in enumerate(self.prompts):
            shown_ids = prompt.reading.shown_ids if prompt.reading is not None else frozenset()
            accepts = prompt.constraint.accepts if prompt.constraint is not None else None
            if accepts is None and prompt.reading is not None and prompt.reading.has_headers:
                accepts = prompt.reading.is_in_content
            params = prompt.params
            for sample_idx in range(params.n):
                text = SampleText(self.tokenizer, prompt.token_ids, params, params.eos_token_ids, accepts, shown_ids)
                self._choices.append(_Choice(text, prompt_idx, sample_idx))
        self.num_open_choices = len(self._choices)
        try:
            for prompt_idx, prompt in enumerate(self.prompts):
                self._request_ids.append(self._submit(prompt, prompt_idx))
                self.usage.num_prompt_tokens += len(prompt.token_ids)
        except QueueFull as error:
            self.metrics.failures_by_reject.add()
            raise queue_full(error.retry_after_s) from None
        except RequestTooLarge as error:
            self.metrics.failures_by_reject.add()
            raise invalid_value(str(error), None, code="request_too_large") from None
        except UnknownAdapter as error:
            raise ApiError(404, str(error.what), param="model", code="model_not_found") from None
        except EngineStopped:
            raise unavailable("the server is shutting down") from None
        if self.deadline_s is not None:
            self._timer = asyncio.get_running_loop().call_later(self.deadline_s, self._expire)

    def _submit(self, prompt: Prompt, prompt_idx: int) -> int:
        return self.bridge.submit(prompt.token_ids, prompt.params, self, prompt_idx, prompt.constraint, self.adapter)

    def abort(self, failure: Exception) -> None:
        """Ends the request: `run` raises `failure`, the first one counts."""
        self._failure = self._failure or failure
        self._end.wake()

    def pause(self) -> None:
        """The client is slow: what the engine gives waits here."""
        self._is_paused = True

    def resume(self) -> None:
        self._is_paused = False
        self.flush()

    def put(self, prompt_idx: int, outputs: list[TokenOutput]) -> None:
        self._outputs.append((prompt_idx, outputs))

    def flush(self) -> None:
        """Hands on what has come in since the last time."""
        if self._is_paused or self._failure is not None or not self._outputs:
            return
        taken, self._outputs = self._outputs, []
        try:
            self._count_direct()
            batch = self._read(taken)
            if batch:
                self._consume(batch)  # what came before a failure is not lost
        except Exception as error:
            self._failure = error
        if self._failure is not None or not self.num_open_choices:
            self._end.wake()
        elif self.direct is not None and not self._is_paused:
            self._arm(self.direct, batch)

    def _arm(self, direct: DirectStream, batch: Batch) -> None:
        """Leaves the next tokens to the core where nobody here need see them."""
        for choice_idx, delta in batch:
            if self._choices[choice_idx].text.is_whole:
                direct.arm(choice_idx, delta.token_ids, self._request_ids, self.num_samples)

    def _count_direct(self) -> None:
        """The tokens that the core has written since the last time."""
        if self.direct is None:
            return
        for choice_idx, num_tokens in self.direct.take_counts():
            self._choices[choice_idx].num_tokens += num_tokens
            self.usage.num_completion_tokens += num_tokens

    def _read(self, taken: list[tuple[int, list[TokenOutput]]]) -> Batch:
        """The outputs as text, up to the first failure."""
        batch: Batch = []
        num_samples = self.prompts[0].params.n
        for prompt_idx, outputs in taken:
            for output in outputs:
                choice_idx = prompt_idx * num_samples + output.sample_idx
                choice = self._choices[choice_idx]
                delta = choice.text.push(output)
                if delta is None:
                    continue
                if choice.num_tokens and delta.finish_reason is None:
                    choice.num_tokens += delta.num_tokens
                    self.usage.num_completion_tokens += delta.num_tokens
                else:
                    if output.prompt_logprobs is not None:
                        self.prompt_scores[prompt_idx] = output.prompt_logprobs
                    self._count(choice, delta)
                if output.finish_reason is not None:
                    self._failure = self._failure_of(output)
                    if self._failure is not None:
                        return batch
                batch.append((choice_idx, delta))
        return batch

    def _close(self) -> None:
        """Cancels whatever still runs and records the request."""
        self._count_direct()
        if self.direct is not None:
            self.direct.close()
        if self._timer is not None:
            self._timer.cancel()
        if self.num_open_choices or len(self._request_ids) < len(self.prompts):
            for request_id in self._request_ids:
                self.bridge.cancel(request_id)
        self.metrics.latencies.observe((time.monotonic() - self._start_time) * 1e9)
        for choice in self._choices:
            self.metrics.output_lengths.observe(choice.num_tokens)
        for prompt in self.prompts:
            self.metrics.input_lengths.observe(len(prompt.token_ids))

    def _count(self, choice: _Choice, delta: TextDelta) -> None:
        """The first delta of a choice, and the last one."""
        choice.num_tokens += delta.num_tokens
        self.usage.num_completion_tokens += delta.num_tokens
        self.num_open_choices -= delta.finish_reason is not None
        if delta.stopped_by_text:
            self.bridge.engine.cancel_sample(self._request_ids[choice.prompt_idx], choice.sample_idx)
        if not self._has_first_token and delta.num_tokens:
            self._has_first_token = True
            self.metrics.ttft.observe((time.monotonic() - self._start_time) * 1e9)
        if choice.sample_idx == 0 and delta.num_tokens == choice.num_tokens == 1:
            self.usage.num_cached_tokens += delta.num_cached_tokens
            self.metrics.cache_hit_ratio.observe(delta.num_cached_tokens / len(self.prompts[choice.prompt_idx].token_ids))

    def _failure_of(self, output: TokenOutput) -> ApiError | None:
        if output.finish_reason == "cancelled":
            return unavailable("the server is shutting down")
        if output.finish_reason == "error":
            if "NaN" in (output.error or ""):
                self.metrics.failures_by_nan_error.add()
                return ApiError(400, "the model computed a NaN for this request", code="nan_error")
            if (output.error or "").startswith(CONSTRAINT_ERROR):
                what = (output.error or "").removeprefix(CONSTRAINT_ERROR)
                return invalid_value(f"the answer cannot follow the format any further: {what}", "response_format", "constraint_failed")
            if "every token is excluded" in (output.error or ""):
                return invalid_value(f"no token may follow: {output.error}", None, "no_token_left")
            incident = secrets.token_hex(8)
            _log.error("engine error %s: %s", incident, output.error)
            return ApiError(500, f"the engine failed on this request ({incident}); the server's log has the details", code="engine_error")
        return None

    def _expire(self) -> None:
        self.metrics.failures_by_timeout.add()
        self.abort(ApiError(504, f"the request took longer than {self.deadline_s:g} s", code="deadline_exceeded"))
