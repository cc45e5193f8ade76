"""Offline use: an artifact as a Python object, without a server.

    with LLM("build/stdlib-coder") as llm:
        for output in llm.generate(["def ", "class "], SamplingParams(max_tokens=32)):
            print(output.text)
        for delta in llm.stream("import ", SamplingParams(max_tokens=32)):
            print(delta.text, end="")
        answer = llm.chat([{"role": "user", "content": "weather in Rome?"}], tools=[...]).message       # reasoning and calls taken apart

All prompts of a call run together; the same prompt with the same seed gives the same tokens whatever runs beside it. Several threads may
use one LLM at the same time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from .engine import QueueFull, TokenOutput
from .errors import ConfigError, FmoError
from .loaded_model import EngineOptions, TextOptions, open_model
from .lora.registry import LoadedAdapter
from .sampling import InvalidSamplingParams, SamplingParams
from .tokenizer.chat_template import ChatTemplate
from .tokenizer.sample_text import SampleText, TextDelta, TokenLogprob, prompt_logprobs
from .tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:  # what chats and formats need is imported by the first of them
    from .chat import ChatDelta, ChatReader, PlannedChat
    from .server.answer_plan import AnswerPlanner, AnyConstraint

Prompt = str | Sequence[int]


class GenerationError(FmoError):
    """The engine could not finish a request."""


@dataclass(slots=True)
class CompletionOutput:
    """One sample. `finish_reason`: `stop`, `length` or, of a chat, `tool_calls`. `logprobs` is None unless asked for.

    `message`: of a chat, the assistant's message with `content`, and `reasoning_content` and `tool_calls` where there are any, as it may be
    appended to the conversation; `text` is its content.
    """

    index: int
    text: str
    token_ids: list[int]
    finish_reason: str
    seed: int
    logprobs: list[TokenLogprob] | None = None
    message: dict[str, Any] | None = None


@dataclass(slots=True)
class RequestOutput:
    """One prompt with its `params.n` samples. `prompt` is None when token ids were given.

    `prompt_logprobs`: of the tokens of the prompt from the second on, if asked for.
    """

    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    num_cached_tokens: int = 0
    prompt_logprobs: list[TokenLogprob] | None = None

    @property
    def text(self) -> str:
        """The text of the first sample."""
        return self.outputs[0].text

    @property
    def message(self) -> dict[str, Any] | None:
        """The message of the first sample of a chat."""
        return self.outputs[0].message


@dataclass(slots=True)
class _Sample:
    text: SampleText
    deltas: list[TextDelta] = field(default_factory=list)


@dataclass(slots=True)
class _Request:
    """A prompt on its way; `outputs` arrive on the engine's dispatcher thread."""

    prompt: Prompt
    token_ids: list[int]
    params: SamplingParams
    samples: list[_Sample]
    constraint: AnyConstraint | None = None
    adapter: str | LoadedAdapter | None = None
    reader: ChatReader | None = None
    request_id: int | None = None
    prompt_logprobs: list[TokenLogprob] | None = None

    @property
    def is_finished(self) -> bool:
        return all(sample.text.finished for sample in self.samples)


_Arrivals = SimpleQueue[tuple[int, list[TokenOutput]]]


class LLM:
    """An artifact, opened and running until `close`. Raises ArtifactError and its kinds, ConfigError, AdapterError.

    `adapters`: LoRA adapters in PEFT's format, name → folder or hub id; `adapter` of a call chooses one, None is the base model.
    `chat_template`: a Jinja file in place of the model's own template."""

    def __init__(
        self,
        artifact: str | Path,
        *,
        num_threads: int = 0,
        max_num_seqs: int = 64,
        max_num_tokens: int = 512,
        kv_cache_bytes: int | None = None,
        kv_dtype: str | None = None,
        has_prefix_cache: bool = True,
        ngram_size: int = 3,
        add_special_tokens: bool = True,
        skip_special_tokens: bool = True,
        chat_template: str | Path | None = None,
        adapters: Mapping[str, str | Path] | None = None,
    ) -> None:
        options = EngineOptions(
            num_threads=num_threads,
            max_num_seqs=max_num_seqs,
            max_num_tokens=max_num_tokens,
            kv_cache_bytes=kv_cache_bytes,
            kv_dtype=kv_dtype,
            has_prefix_cache=has_prefix_cache,
            ngram_size=ngram_size,
            adapters={name: str(path) for name, path in (adapters or {}).items()},
        )
        text = TextOptions(
            add_special_tokens=add_special_tokens,
            skip_special_tokens=skip_special_tokens,
            chat_template=Path(chat_template) if chat_template is not None else None,
        )
        self._loaded = open_model(artifact, options, text)
        self._max_in_flight = options.max_queue_len
        self._planners: dict[int, tuple[ChatTemplate | None, AnswerPlanner]] = {}

    @property
    def name(self) -> str:
        return self._loaded.artifact.name

    @property
    def max_context_len(self) -> int:
        """Tokens of prompt and answer together."""
        return self._loaded.engine.max_context_len

    @property
    def tokenizer(self) -> Tokenizer:
        """Raises ConfigError when the artifact has none."""
        if self._loaded.tokenizer is None:
            raise ConfigError(
                "the artifact has no tokenizer", where=str(self._loaded.artifact.folder), hint="give token ids instead of text"
            )
        return self._loaded.tokenizer

    @property
    def has_chat_template(self) -> bool:
        return self._loaded.chat_template is not None

    @property
    def adapters(self) -> list[str]:
        """The names of the loaded ones."""
        return [adapter.name for adapter in self._loaded.engine.adapters.loaded()]

    def load_adapter(self, name: str, path: str | Path) -> None:
        """Loads one beside whatever runs. Raises AdapterError."""
        self._loaded.engine.adapters.load(name, str(path))

    def unload_adapter(self, name: str) -> None:
        """Takes it from later calls; those that run with it end as they would. Raises UnknownAdapter."""
        self._loaded.engine.adapters.unload(name)

    def generate(
        self,
        prompts: Prompt | Sequence[str] | Sequence[Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        adapter: str | Sequence[str | None] | None = None,
    ) -> list[RequestOutput]:
        """One output per prompt, in order. `params`, `adapter`: one for all prompts, or one for each.

        Raises InvalidSamplingParams, RequestTooLarge, GenerationError, UnknownAdapter; then nothing of the call keeps running.
        """
        listed = _prompt_list(prompts)
        each = [params or SamplingParams()] * len(listed) if params is None or isinstance(params, SamplingParams) else list(params)
        if len(each) != len(listed):
            raise ValueError(f"{len(listed)} prompts but {len(each)} SamplingParams; give one, or one per prompt")
        names = [adapter] * len(listed) if adapter is None or isinstance(adapter, str) else list(adapter)
        if len(names) != len(listed):
            raise ValueError(f"{len(listed)} prompts but {len(names)} adapters; give one, or one per prompt")
        requests = [self._request(prompt, one, name) for prompt, one, name in zip(listed, each, names, strict=True)]
        for _ in self._run(requests):
            pass
        return [_output(request) for request in requests]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None, *, adapter: str | None = None) -> Iterator[TextDelta]:
        """What each step adds to the answer. The last delta of a sample has a `finish_reason`; leaving the loop early cancels the rest."""
        for _, delta in self._run([self._request(prompt, params or SamplingParams(), adapter)]):
            yield delta

    def chat(
        self, messages: list[dict[str, Any]], params: SamplingParams | None = None, *, adapter: str | None = None, **fields: Any
    ) -> RequestOutput:
        """The assistant's answer to a conversation of `{"role", "content"}` messages, with reasoning and tool calls taken out of its text.

        `fields`: those of /v1/chat/completions that are not sampling parameters: `tools`, `tool_choice`, `parallel_tool_calls`,
        `parse_reasoning` (default True), `include_reasoning`, `reasoning_effort`, `reasoning_budget`, `chat_template_kwargs`. Raises
        InvalidChat for these and the messages, ConfigError without a template, and what `generate` raises.
        """
        request = self._chat_request(messages, params or SamplingParams(), adapter, fields)
        for _, delta in self._run([request]):
            assert request.reader is not None
            request.reader.read(delta)
        return _output(request)

    def stream_chat(
        self, messages: list[dict[str, Any]], params: SamplingParams | None = None, *, adapter: str | None = None, **fields: Any
    ) -> Iterator[ChatDelta]:
        """As `chat`, what each step adds. The last delta of a sample has a `finish_reason`; leaving the loop early cancels the rest."""
        request = self._chat_request(messages, params or SamplingParams(), adapter, fields)
        for _, delta in self._run([request]):
            assert request.reader is not None
            yield request.reader.read(delta)

    def chat_prompt(self, messages: list[dict[str, Any]], *, adapter: str | None = None, **fields: Any) -> list[int]:
        """Token ids of the conversation, up to the assistant's turn, by the adapter's template where it has one; `fields` as in `chat`."""
        return self._planned_chat(messages, SamplingParams(), self._adapter(adapter), fields)[0].token_ids

    def close(self) -> None:
        """Cancels what runs and ends the engine. A second call does nothing."""
        self._loaded.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _adapter(self, name: str | None) -> LoadedAdapter | None:
        return None if name is None else self._loaded.engine.adapters.get(name)

    def _planned_chat(
        self, messages: list[dict[str, Any]], params: SamplingParams, adapter: LoadedAdapter | None, fields: dict[str, Any]
    ) -> tuple[PlannedChat, AnswerPlanner]:
        from .chat import check_fields, planned_chat

        check_fields(fields)
        template = self._loaded.chat_template_for(adapter)
        if template is None:
            raise ConfigError(
                "the model has no chat template", where=str(self._loaded.artifact.folder), hint="use `generate` with a plain prompt"
            )
        planner = self._planner(template)
        return planned_chat({"messages": messages, **fields}, params, planner, self.tokenizer, template), planner

    def _chat_request(
        self, messages: list[dict[str, Any]], params: SamplingParams, adapter: str | None, fields: dict[str, Any]
    ) -> _Request:
        from .chat import ChatReader

        loaded = self._adapter(adapter)  # prompt and answer are of the same load, whatever gets its name meanwhile
        planned, planner = self._planned_chat(messages, params, loaded, fields)
        params = self._bound(params, len(planned.token_ids))
        constraint, reading = planned.bound(params)
        reader = ChatReader(reading, planner.new_call_id)
        return self._new_request(planned.token_ids, planned.token_ids, params, constraint, loaded, reader)

    def _planner(self, template: ChatTemplate | None) -> AnswerPlanner:
        from .chat import planner_for

        if id(template) not in self._planners:
            loaded = self._loaded
            planner = planner_for(loaded.tokenizer, template, loaded.engine.vocab_size, loaded.eos_token_ids)
            self._planners[id(template)] = template, planner  # with the template, so that its id stays its own
        return self._planners[id(template)][1]

    def _request(self, prompt: Prompt, params: SamplingParams, adapter: str | None = None) -> _Request:
        token_ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        params = self._bound(params, len(token_ids))
        return self._new_request(prompt, token_ids, params, self._constraint(params), adapter)

    def _bound(self, params: SamplingParams, prompt_len: int) -> SamplingParams:
        """`params` with a seed per sample and all that ends an answer, checked."""
        if params.stop and self._loaded.tokenizer is None:
            raise InvalidSamplingParams("stop", params.stop, "no stop strings", "the artifact has no tokenizer; use stop_token_ids")
        eos_ids = tuple(dict.fromkeys((*self._loaded.eos_token_ids, *params.eos_token_ids)))
        params = replace(params, seed=params.sample_seeds(), eos_token_ids=eos_ids)
        engine = self._loaded.engine
        params.validate(engine.vocab_size, self.max_context_len, prompt_len, engine.embedding_width)
        return params

    def _new_request(
        self,
        prompt: Prompt,
        token_ids: list[int],
        params: SamplingParams,
        constraint: AnyConstraint | None,
        adapter: str | LoadedAdapter | None,
        reader: ChatReader | None = None,
    ) -> _Request:
        reading = reader.reading if reader is not None else None
        shown_ids = reading.shown_ids if reading is not None else frozenset()
        accepts = constraint.accepts if constraint is not None else None
        if accepts is None and reading is not None and reading.has_headers:
            accepts = reading.is_in_content
        tokenizer, eos_ids = self._loaded.tokenizer, params.eos_token_ids
        samples = [_Sample(SampleText(tokenizer, token_ids, params, eos_ids, accepts, shown_ids)) for _ in range(params.n)]
        return _Request(prompt, token_ids, params, samples, constraint, adapter, reader)

    def _constraint(self, params: SamplingParams) -> AnyConstraint | None:
        if not params.is_constrained:
            return None
        from .server.errors import ApiError

        try:
            return self._planner(self._loaded.chat_template).plan_format(params)
        except ApiError as error:
            raise InvalidSamplingParams("response_format", params.response_format, "a format that can be followed", error.message) from None

    def _run(self, requests: list[_Request]) -> Iterator[tuple[int, TextDelta]]:
        """Runs `requests`, a window of them at a time; yields (request index, delta) and collects the deltas in the samples."""
        arrivals: _Arrivals = SimpleQueue()
        num_submitted = num_finished = 0
        try:
            while num_finished < len(requests):
                while num_submitted < len(requests) and num_submitted - num_finished < self._max_in_flight:
                    try:
                        self._submit(requests[num_submitted], num_submitted, arrivals)
                    except QueueFull:  # other threads fill the queue: go on with what is in it
                        if num_submitted == num_finished:
                            raise
                        break
                    num_submitted += 1
                request_idx, outputs = arrivals.get()
                request = requests[request_idx]
                was_finished = request.is_finished
                for output in outputs:
                    delta = self._push(request, output)
                    if delta is not None:
                        yield request_idx, delta
                num_finished += request.is_finished and not was_finished
        finally:
            for request in requests[:num_submitted]:
                if request.request_id is not None and not request.is_finished:
                    self._loaded.engine.cancel(request.request_id)

    def _submit(self, request: _Request, request_idx: int, arrivals: _Arrivals) -> None:
        request.request_id = self._loaded.engine.submit(
            request.token_ids, request.params, lambda outputs: arrivals.put((request_idx, outputs)), request.constraint, request.adapter
        )

    def _push(self, request: _Request, output: TokenOutput) -> TextDelta | None:
        sample = request.samples[output.sample_idx]
        delta = sample.text.push(output)
        if delta is None:
            return None
        if delta.finish_reason in ("error", "cancelled"):
            raise GenerationError(delta.error or "the engine was shut down", where=f"a prompt of {len(request.token_ids)} tokens")
        if delta.stopped_by_text and request.request_id is not None:
            self._loaded.engine.cancel_sample(request.request_id, output.sample_idx)
        if output.prompt_logprobs is not None:
            request.prompt_logprobs = prompt_logprobs(self._loaded.tokenizer, request.token_ids, output.prompt_logprobs)
        sample.deltas.append(delta)
        return delta


def _prompt_list(prompts: Prompt | Sequence[str] | Sequence[Sequence[int]]) -> list[Prompt]:
    """One prompt or several as a list of prompts."""
    if isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], int)):
        return [prompts]  # type: ignore[list-item]
    return list(prompts)  # type: ignore[arg-type]


def _output(request: _Request) -> RequestOutput:
    seeds = request.params.sample_seeds()
    outputs = []
    for idx, sample in enumerate(request.samples):
        logprobs = [entry for delta in sample.deltas for entry in delta.logprobs] if request.params.logprobs is not None else None
        text = "".join(delta.text for delta in sample.deltas)
        token_ids = [token_id for delta in sample.deltas for token_id in delta.token_ids]
        reason = sample.deltas[-1].finish_reason or "stop"
        outputs.append(CompletionOutput(idx, text, token_ids, reason, seeds[idx], logprobs))
        if request.reader is not None:
            choice = request.reader.choice(idx)
            outputs[-1].message, outputs[-1].text = choice.message(), "".join(choice.content)
            outputs[-1].finish_reason = choice.finish_reason or reason
    prompt = request.prompt if isinstance(request.prompt, str) else None
    num_cached_tokens = request.samples[0].deltas[0].num_cached_tokens
    return RequestOutput(prompt, request.token_ids, outputs, num_cached_tokens, request.prompt_logprobs)
