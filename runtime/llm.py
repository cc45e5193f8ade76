"""Offline use: an artifact as a Python object, without a server.

    with LLM("build/stdlib-coder") as llm:
        for output in llm.generate(["def ", "class "], SamplingParams(max_tokens=32)):
            print(output.text)
        for delta in llm.stream("import ", SamplingParams(max_tokens=32)):
            print(delta.text, end="")

All prompts of a call run together; the same prompt with the same seed gives the same tokens whatever runs beside it. Several threads may
use one LLM at the same time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from .engine import QueueFull, TokenOutput
from .errors import ConfigError, FmoError
from .loaded_model import EngineOptions, TextOptions, open_model
from .sampling import InvalidSamplingParams, SamplingParams
from .structured.constraint import Constraint, ConstraintCompiler
from .structured.errors import InvalidConstraint
from .structured.response_format import ConstraintLimits, grammar_of
from .tokenizer.sample_text import SampleText, TextDelta, TokenLogprob
from .tokenizer.tokenizer import Tokenizer

Prompt = str | Sequence[int]


class GenerationError(FmoError):
    """The engine could not finish a request."""


@dataclass(slots=True)
class CompletionOutput:
    """One sample. `finish_reason`: `stop` or `length`. `logprobs` is None unless asked for."""

    index: int
    text: str
    token_ids: list[int]
    finish_reason: str
    seed: int
    logprobs: list[TokenLogprob] | None = None


@dataclass(slots=True)
class RequestOutput:
    """One prompt with its `params.n` samples. `prompt` is None when token ids were given."""

    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    num_cached_tokens: int = 0

    @property
    def text(self) -> str:
        """The text of the first sample."""
        return self.outputs[0].text


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
    constraint: Constraint | None = None
    adapter: str | None = None
    request_id: int | None = None

    @property
    def is_finished(self) -> bool:
        return all(sample.text.finished for sample in self.samples)


_Arrivals = SimpleQueue[tuple[int, list[TokenOutput]]]


class LLM:
    """An artifact, opened and running until `close`. Raises ArtifactError and its kinds, ConfigError, AdapterError.

    `adapters`: LoRA adapters in PEFT's format, name → folder or hub id; `adapter` of a call chooses one, None is the base model."""

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
        text = TextOptions(add_special_tokens=add_special_tokens, skip_special_tokens=skip_special_tokens)
        self._loaded = open_model(artifact, options, text)
        self._max_in_flight = options.max_queue_len
        self._constraints: ConstraintCompiler | None = None

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
        self,
        messages: list[dict[str, Any]],
        params: SamplingParams | None = None,
        *,
        template_variables: dict[str, Any] | None = None,
        adapter: str | None = None,
    ) -> RequestOutput:
        """The assistant's answer to a conversation of `{"role", "content"}` messages."""
        prompt = self.chat_prompt(messages, template_variables=template_variables, adapter=adapter)
        return self.generate(prompt, params, adapter=adapter)[0]

    def chat_prompt(
        self, messages: list[dict[str, Any]], *, template_variables: dict[str, Any] | None = None, adapter: str | None = None
    ) -> list[int]:
        """Token ids of the conversation, up to the assistant's turn, by the adapter's template where it has one.

        Raises ConfigError without a template, ChatTemplateError, UnknownAdapter."""
        from .tokenizer.chat_template import encode_chat

        template = self._loaded.chat_template_for(None if adapter is None else self._loaded.engine.adapters.get(adapter))
        if template is None:
            raise ConfigError(
                "the model has no chat template", where=str(self._loaded.artifact.folder), hint="use `generate` with a plain prompt"
            )
        return encode_chat(template, self.tokenizer, messages, variables=template_variables)

    def close(self) -> None:
        """Cancels what runs and ends the engine. A second call does nothing."""
        self._loaded.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _request(self, prompt: Prompt, params: SamplingParams, adapter: str | None = None) -> _Request:
        token_ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        if params.stop and self._loaded.tokenizer is None:
            raise InvalidSamplingParams("stop", params.stop, "no stop strings", "the artifact has no tokenizer; use stop_token_ids")
        eos_ids = tuple(dict.fromkeys((*self._loaded.eos_token_ids, *params.eos_token_ids)))
        params = replace(params, seed=params.sample_seeds(), eos_token_ids=eos_ids)
        engine = self._loaded.engine
        params.validate(engine.vocab_size, self.max_context_len, len(token_ids), engine.embedding_width)
        constraint = self._constraint(params)
        accepts = constraint.accepts if constraint is not None else None
        samples = [_Sample(SampleText(self._loaded.tokenizer, token_ids, params, eos_ids, accepts)) for _ in range(params.n)]
        return _Request(prompt, token_ids, params, samples, constraint, adapter)

    def _constraint(self, params: SamplingParams) -> Constraint | None:
        try:
            grammar = grammar_of(params.response_format, ConstraintLimits())
            if grammar is None:
                return None
            if self._constraints is None:
                self._constraints = ConstraintCompiler(self.tokenizer, self._loaded.engine.vocab_size, self._loaded.eos_token_ids)
            return self._constraints.compile(grammar, (*params.eos_token_ids, *params.stop_token_ids))
        except InvalidConstraint as error:
            raise InvalidSamplingParams("response_format", params.response_format, "a format that can be followed", str(error)) from None

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
    prompt = request.prompt if isinstance(request.prompt, str) else None
    return RequestOutput(prompt, request.token_ids, outputs, request.samples[0].deltas[0].num_cached_tokens)
