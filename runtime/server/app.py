"""The application: one table of routes, and for each request read → check → generate → answer.

Every route but health needs the API key, if there is one. A failure of ours is answered with an opaque id that the log explains; a
failure of the client with a message that names the field. No request outlives its client: a closed connection cancels what runs for it.

    read_request ─▶ prompts + SamplingParams ─▶ Generation ─▶ ChatAnswer | CompletionAnswer ─▶ JSON | event stream
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from os import urandom
from pathlib import Path
from typing import Any

from ..lora.registry import AdapterRegistry, UnknownAdapter
from ..metrics import CONTENT_TYPE, Metrics
from ..sampling import InvalidSamplingParams, SamplingParams
from ..tokenizer.chat_template import ChatTemplate
from ..tokenizer.tokenizer import Tokenizer
from . import messages, openapi, responses
from .adapters import Target, Targets, card, load_from
from .answer_plan import AnswerPlanner, ChatPlan
from .auth import ApiKeys
from .bad_stop import BadStop
from .bridge import Bridge
from .chat import ChatAnswer, chat_prompt
from .completions import CompletionAnswer, check_prompt_logprobs, completion_prompts, encode_prompts, encode_text, no_tokenizer
from .direct_stream import DirectStream, Framed, TokenTexts
from .embeddings import EmbeddingsRequest, embedded, embedding_prompts, embeddings_answer, refuse_generation, required_embedder
from .errors import ApiError, bad_request, invalid_value, queue_full, unavailable
from .exchange import ClientGone, Exchange
from .fields import AdapterRequest, ChatRequest, CompletionRequest, DetokenizeRequest, GenerationRequest, TokenizeRequest
from .generation import Batch, Consumer, Generation, Prompt
from .grammar_queue import GrammarQueue
from .http import JSON, EventStream, encode_json, read_request, send_body, send_error, send_json
from .limits import Limits
from .params import as_api_error, chat_params, check_prompt, check_stream, completion_params, params_for_prompt

MAX_HEARTBEAT_AGE_S = 30.0
_INLINE_BODY_BYTES = 4096
"""A request this small is tokenized on the event loop; a larger one in a thread."""
_MAX_TIMEOUT_US = 10**15
"""Thirty years: no limit at all, as a number that fits into a float."""
_QUEUED_ROUTES = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"})
_MODEL_ROUTE, _ADAPTER_ROUTE = "/v1/models/", "/v1/adapters/"
_log = logging.getLogger(__name__)
Handler = Callable[[Exchange], Awaitable[None]]
PromptMaker = Callable[[Any, Target], list[Prompt]]


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What the server knows about the model it serves."""

    name: str
    tokenizer: Tokenizer | None
    chat_template: ChatTemplate | None
    eos_token_ids: tuple[int, ...]
    created: int = field(default_factory=lambda: int(time.time()))


@dataclass(frozen=True, slots=True)
class Route:
    """Who answers the requests of a path.

    `is_tracked`: refused while draining; until it is answered, the server does not stop of its own accord. `is_counted`: in the metrics,
    where an error answer is a response and a client that left gets none. `is_open`: it needs no API key.
    """

    method: str
    handler: Handler
    is_tracked: bool = False
    is_counted: bool = False
    is_open: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AppOptions:
    """`request_timeout_s` 0: none. `api_keys` None: no authentication. `parse_reasoning`: unless a request says otherwise.

    `bad_stop`: holds for every request. `adapter_dir`: clients may load and unload the adapters in it; None: they may not.
    """

    limits: Limits = field(default_factory=Limits)
    api_keys: ApiKeys | None = None
    request_timeout_s: float = 0.0
    num_request_threads: int = 4
    max_queue_len: int = 1024
    parse_reasoning: bool = False
    bad_stop: BadStop = field(default_factory=BadStop)
    adapter_dir: Path | None = None


class App:
    """Answers the web port. `attach` it to the engine's bridge first."""

    def __init__(self, model: ServedModel, bridge: Bridge, metrics: Metrics, options: AppOptions) -> None:
        self.model = model
        self.bridge = bridge
        self.metrics = metrics
        self.options = options
        self.active: set[Generation] = set()
        self.in_flight: set[Exchange] = set()
        self.is_draining = False
        self._pool = ThreadPoolExecutor(options.num_request_threads, "fmo-request")
        self._token_texts = TokenTexts(bridge.streams, model.tokenizer) if model.tokenizer is not None else None
        self._grammars = GrammarQueue(options.limits.max_waiting_grammars, options.limits.grammar_wait_s)
        self._routes = {
            "/v1/chat/completions": Route("POST", self._chat, is_tracked=True, is_counted=True),
            "/v1/completions": Route("POST", self._completions, is_tracked=True, is_counted=True),
            "/v1/messages": Route("POST", self._messages, is_tracked=True, is_counted=True),
            "/v1/messages/count_tokens": Route("POST", self._count_tokens, is_tracked=True),
            "/v1/responses": Route("POST", self._responses, is_tracked=True, is_counted=True),
            "/v1/embeddings": Route("POST", self._embeddings, is_tracked=True, is_counted=True),
            "/v1/tokenize": Route("POST", self._tokenize, is_tracked=True),
            "/v1/detokenize": Route("POST", self._detokenize, is_tracked=True),
            "/v1/models": Route("GET", self._models),
            "/openapi.json": Route("GET", self._openapi),
            "/docs": Route("GET", self._docs),
            "/v1/adapters": Route("POST", self._load_adapter, is_tracked=True),
            "/health": Route("GET", self._ready, is_open=True),
            "/health/ready": Route("GET", self._ready, is_open=True),
            "/health/live": Route("GET", self._live, is_open=True),
        }

    async def __call__(self, exchange: Exchange) -> None:
        is_tracked = is_counted = False
        try:
            route = self._route(exchange)
            if route.is_tracked:
                if self.is_draining:
                    raise unavailable("the server is shutting down")
                is_tracked = True
                self.in_flight.add(exchange)
            if route.is_counted:
                is_counted = True
                self.metrics.requests.add()
            await route.handler(exchange)
        except ClientGone:
            is_counted = False
            self.metrics.failures_by_cancel.add()
        except ApiError as error:
            send_error(exchange, error)
        except Exception:
            incident = secrets.token_hex(8)
            _log.exception("internal error %s in %s", incident, exchange.path)
            send_error(exchange, ApiError(500, f"internal error {incident}; the server's log has the details", code="internal_error"))
        finally:
            if is_tracked:
                self.in_flight.discard(exchange)
                self._targets.release(exchange)
            if is_counted:
                self.metrics.responses.add()

    def refuse(self, exchange: Exchange) -> bool:
        """Answers 429 at once, before the body and without a task, to what would wait in a full queue; False: it is not refused.

        To refuse a request must cost much less than to serve one.
        """
        if exchange.path not in _QUEUED_ROUTES or exchange.method != "POST" or self.is_draining or not self._is_full():
            return False
        try:
            self._authenticate(exchange)
        except ApiError:
            return False
        for counter in (self.metrics.requests, self.metrics.failures_by_reject, self.metrics.responses):
            counter.add()
        send_error(exchange, queue_full(self.bridge.engine.retry_after_s()))
        return True

    def gauges(self) -> Mapping[str, float]:
        """The values of the moment for /metrics."""
        num_items = sum(generation.num_open_choices for generation in self.active)
        stats = self.bridge.engine.stats()
        num_assigned = min(int(stats["num_running"]), num_items)
        return {
            "current_requests": len(self.active),
            "current_items": num_items,
            "current_assigned_items": num_assigned,
            "current_waiting_items": num_items - num_assigned,
            "current_used_blocks": int(stats.get("num_used_blocks", 0)),  # an Embedder has none
        }

    def warm_up(self) -> None:
        """Does now what the first requests would wait for; the vocabulary of grammars on a thread. Call it once the bridge is attached."""
        self._grammars.warm_up(self._targets.base.planner.warm_up)
        self._pool.submit(self._targets.all)

    def abort_all(self, failure: ApiError) -> None:
        """Ends every request in flight with `failure`: an error answer, or an error as the last event of a stream."""
        for exchange in list(self.in_flight):
            exchange.abort(failure)

    @cached_property
    def _targets(self) -> Targets:
        """Made by the first request: the vocabulary is the engine's, which the bridge knows once it is attached."""
        model = self.model
        base = Target(model.name, None, model.chat_template, self._new_planner(model.chat_template), model.created)
        return Targets(base, self.bridge.engine.adapters, self._new_planner)

    def _new_planner(self, template: ChatTemplate | None) -> AnswerPlanner:
        model, options = self.model, self.options
        vocab_size = self.bridge.engine.vocab_size
        return AnswerPlanner(
            model.tokenizer, template, vocab_size, model.eos_token_ids, options.limits, parse_reasoning=options.parse_reasoning
        )

    def _route(self, exchange: Exchange) -> Route:
        path = exchange.path
        route = self._routes.get(path) or self._named_route(path)
        if route is None or not route.is_open:
            self._authenticate(exchange)
        if route is None:
            raise ApiError(404, f"there is no '{path[:128]}' here; the API is under /v1/", code="not_found")
        if exchange.method != route.method:
            what = f"{path} takes {route.method}, not {exchange.method}"
            raise ApiError(405, what, code="method_not_allowed", headers=(("allow", route.method),))
        return route

    def _named_route(self, path: str) -> Route | None:
        """Routes that end in the name of a model."""
        if path.startswith(_MODEL_ROUTE) and len(path) > len(_MODEL_ROUTE):
            return Route("GET", self._model)
        if path.startswith(_ADAPTER_ROUTE) and len(path) > len(_ADAPTER_ROUTE):
            return Route("DELETE", self._unload_adapter, is_tracked=True)
        return None

    def _authenticate(self, exchange: Exchange) -> None:
        if self.options.api_keys is None:
            return
        given = exchange.header(b"x-api-key") or (exchange.header(b"authorization") or b"").removeprefix(b"Bearer ")
        if not self.options.api_keys.accepts(given):
            raise ApiError(
                401,
                "the API key is missing or wrong; send 'Authorization: Bearer KEY'",
                code="invalid_api_key",
                headers=(("www-authenticate", "Bearer"),),
            )

    # Generation --------------------------------------------------------------------------------------------------------------------------

    async def _chat(self, exchange: Exchange) -> None:
        request, target, prompts = await self._prepared(exchange, ChatRequest, self._chat_prompts)
        generation = self._generation(request, target, prompts)
        assert self.model.tokenizer is not None
        answer = ChatAnswer(
            generation,
            urandom(16).hex(),
            target.name,
            self.model.tokenizer,
            with_logprobs=bool(request.logprobs),
            new_call_id=target.planner.new_call_id,
        )
        await self._answer(request, generation, answer, exchange)

    async def _messages(self, exchange: Exchange) -> None:
        _, chat, target, prompts = await self._translated(exchange, messages.MessagesRequest, _chat_of_messages, messages.RENAMED)
        generation = self._generation(chat, target, prompts)
        answer = messages.MessagesAnswer(generation, secrets.token_hex(12), target.name, target.planner.new_call_id)
        await self._answer_in_events(chat, generation, answer, exchange)

    async def _responses(self, exchange: Exchange) -> None:
        def translate(request: responses.ResponsesRequest, target: Target) -> ChatRequest:
            return responses.chat_request(request)

        kind = responses.ResponsesRequest
        request, chat, target, prompts = await self._translated(exchange, kind, translate, responses.RENAMED)
        generation = self._generation(chat, target, prompts)
        answer = responses.ResponsesAnswer(generation, urandom(16).hex(), target.name, request, target.planner.new_call_id)
        await self._answer_in_events(chat, generation, answer, exchange)

    async def _translated(
        self, exchange: Exchange, kind: type[Any], translate: Callable[[Any, Target], ChatRequest], renamed: Mapping[str, str]
    ) -> tuple[Any, ChatRequest, Target, list[Prompt]]:
        """A request of another API as one of chat. Raises ApiError, with fields named as that API does."""
        request = await read_request(exchange, self.options.limits, kind)
        refuse_generation(self.bridge.engine, exchange.path)
        target = self._targets.hold(request.model, exchange)
        try:
            chat = translate(request, target)
            prompts = await self._made(exchange, chat, target, self._chat_prompts)
        except ApiError as error:
            raise _with_names(error, renamed) from None
        return request, chat, target, prompts

    async def _completions(self, exchange: Exchange) -> None:
        request, target, prompts = await self._prepared(exchange, CompletionRequest, self._completion_prompts)
        generation = self._generation(request, target, prompts)
        answer = CompletionAnswer(
            generation,
            urandom(16).hex(),
            target.name,
            self.model.tokenizer,
            request,
        )
        await self._answer(request, generation, answer, exchange)

    async def _prepared(self, exchange: Exchange, kind: type[Any], make_prompts: PromptMaker) -> Any:
        """The checked request, who answers it and its prompts. Raises ApiError."""
        request = await read_request(exchange, self.options.limits, kind)
        refuse_generation(self.bridge.engine, exchange.path)
        target = self._targets.hold(request.model, exchange)
        return request, target, await self._made(exchange, request, target, make_prompts)

    async def _made(self, exchange: Exchange, request: Any, target: Target, make_prompts: PromptMaker) -> list[Prompt]:
        """The prompts of a request, made on the thread that its size and its grammar call for."""
        if _may_compile(request):
            prompts = await self._grammars.run(exchange.num_body_bytes, lambda asked: make_prompts(asked, target), request)
        elif exchange.num_body_bytes <= _INLINE_BODY_BYTES:
            prompts = make_prompts(request, target)
        else:
            prompts = await asyncio.get_running_loop().run_in_executor(self._pool, make_prompts, request, target)
        self.metrics.items.add(len(prompts) * prompts[0].params.n)
        return prompts

    def _chat_prompts(self, request: ChatRequest, target: Target) -> list[Prompt]:
        params, plan, token_ids, tail = self._chat_ids(request, target)
        prompt = self._prompt(request, token_ids, params, "messages")
        prompt.constraint, prompt.reading = target.planner.plan_answer(plan, request, prompt.params, tail)
        return [prompt]

    def _chat_ids(self, request: ChatRequest, target: Target) -> tuple[SamplingParams, ChatPlan, list[int], str]:
        """With what is answered, the token ids of the conversation and the end of its text. Raises ApiError."""
        check_stream(request)
        tokenizer, template = self.model.tokenizer, target.chat_template
        if tokenizer is None:
            raise no_tokenizer("messages")
        if template is None:
            raise bad_request("this model has no chat template; use /v1/completions", "messages", "chat_template_missing")
        params, plan = target.planner.params_and_plan(request, self._chat_params)
        return params, plan, *chat_prompt(request, tokenizer, template, self.options.limits, plan, target.planner.forms)

    def _chat_params(self, request: ChatRequest) -> SamplingParams:
        return self.options.bad_stop.added_to(chat_params(request, self.options.limits, self.model.eos_token_ids))

    def _completion_prompts(self, request: CompletionRequest, target: Target) -> list[Prompt]:
        given, name = completion_prompts(request, self.options.limits)
        check_stream(request)
        params = self.options.bad_stop.added_to(completion_params(request, self.model.tokenizer, self.options.limits))
        if len(given) > 1 and len(given) * params.n > self.options.max_queue_len:
            what = f"{len(given)} prompts of {params.n} results each are more than the {self.options.max_queue_len} that may wait"
            raise invalid_value(f"{what}; send them in several requests", name)
        prompts = [
            self._prompt(request, token_ids, params_for_prompt(params, request, len(token_ids), self.model.eos_token_ids), name)
            for token_ids in encode_prompts(given, self.model.tokenizer, self.bridge.engine.max_context_len, name)
        ]
        check_prompt_logprobs(prompts, self.options.limits)
        for prompt in prompts:
            prompt.constraint = self._targets.base.planner.plan_format(prompt.params)
        return prompts

    def _prompt(self, request: GenerationRequest, token_ids: list[int], params: SamplingParams, name: str) -> Prompt:
        engine, tokenizer = self.bridge.engine, self.model.tokenizer
        is_encoded = name == "messages"  # 'prompt' may be token ids
        if not (is_encoded and tokenizer is not None and tokenizer.max_token_id < engine.vocab_size):
            check_prompt(token_ids, engine.vocab_size, name)
        try:
            params.validate(engine.vocab_size, engine.max_context_len, len(token_ids), engine.embedding_width)
        except InvalidSamplingParams as error:
            raise as_api_error(error, name, request) from None
        return Prompt(token_ids, params)

    def _generation(self, request: GenerationRequest, target: Target, prompts: list[Prompt]) -> Generation:
        deadline_s: float | None = self.options.request_timeout_s or None
        if request.timeout_microseconds:
            wanted_s = min(request.timeout_microseconds, _MAX_TIMEOUT_US) * 1e-6
            deadline_s = wanted_s if deadline_s is None else min(wanted_s, deadline_s)
        return Generation(self.bridge, self.metrics, self.model.tokenizer, prompts, deadline_s, target.adapter)

    async def _answer(
        self, request: GenerationRequest, generation: Generation, answer: ChatAnswer | CompletionAnswer, exchange: Exchange
    ) -> None:
        if not request.stream:
            await self._run(generation, exchange, _collector(answer))
            exchange.answer(200, encode_json(answer.whole()), JSON)
            return
        stream = EventStream(exchange)
        generation.direct = self._direct_stream(exchange, generation, answer)

        def send_chunks(batch: Batch) -> None:
            frames = [frame for choice_idx, delta in batch for frame in answer.chunks(choice_idx, delta)]
            if frames:
                stream.send(frames)

        with _failing_in(stream):
            await self._run(generation, exchange, send_chunks)
            if request.stream_options is not None and request.stream_options.include_usage:
                stream.send([answer.usage_chunk()])
            stream.finish()

    async def _answer_in_events(
        self,
        request: GenerationRequest,
        generation: Generation,
        answer: messages.MessagesAnswer | responses.ResponsesAnswer,
        exchange: Exchange,
    ) -> None:
        """As `_answer`, for APIs whose streams have named events."""
        if not request.stream:
            await self._run(generation, exchange, _collector(answer))
            exchange.answer(200, encode_json(answer.whole()), JSON)
            return
        stream = EventStream(exchange)
        if isinstance(answer, messages.MessagesAnswer):  # those of responses are numbered
            generation.direct = self._direct_stream(exchange, generation, answer)

        def send_events(batch: Batch) -> None:
            for choice_idx, delta in batch:
                if events := answer.events(choice_idx, delta):
                    stream.send_named(events)

        with _failing_in(stream, named=True):
            await self._run(generation, exchange, send_events)
            stream.finish(with_done=False)

    def _direct_stream(self, exchange: Exchange, generation: Generation, answer: Framed) -> DirectStream | None:
        """None where every token is to be seen: those of constrained answers move their masks on."""
        if self._token_texts is None or any(prompt.constraint is not None for prompt in generation.prompts):
            return None
        return DirectStream(self._token_texts, exchange, answer)

    async def _run(self, generation: Generation, exchange: Exchange, consume: Consumer) -> None:
        """Until the answer is complete, or nobody is there to get it."""
        self.active.add(generation)
        exchange.listen(generation)
        try:
            await generation.run(consume)
        finally:
            exchange.listen(None)
            self.active.discard(generation)

    async def _embeddings(self, exchange: Exchange) -> None:
        request = await read_request(exchange, self.options.limits, EmbeddingsRequest)
        embedder = required_embedder(self.bridge.engine)
        target = self._targets.find(request.model)
        run = asyncio.get_running_loop().run_in_executor
        prompts = await run(self._pool, embedding_prompts, request, embedder, self.model.tokenizer, self.options.limits)
        self.metrics.items.add(len(prompts))
        num_tokens = sum(map(len, prompts))
        vectors = await embedded(embedder, prompts, exchange, self.options.request_timeout_s)
        answer = embeddings_answer(request, vectors, is_normalized=embedder.facts.is_normalized, num_tokens=num_tokens, model=target.name)
        send_json(exchange, answer)

    async def _count_tokens(self, exchange: Exchange) -> None:
        request = (await read_request(exchange, self.options.limits, messages.CountTokensRequest)).as_messages_request()
        refuse_generation(self.bridge.engine, exchange.path)
        target = self._targets.hold(request.model, exchange)

        def count() -> int:
            try:
                return len(self._chat_ids(_chat_of_messages(request, target), target)[2])
            except ApiError as error:
                raise _with_names(error, messages.RENAMED) from None

        send_json(exchange, {"input_tokens": await asyncio.get_running_loop().run_in_executor(self._pool, count)})

    # Text and information ----------------------------------------------------------------------------------------------------------------

    async def _tokenize(self, exchange: Exchange) -> None:
        request = await read_request(exchange, self.options.limits, TokenizeRequest)
        self._targets.find(request.model)
        run = asyncio.get_running_loop().run_in_executor
        most = self.options.limits.max_body_bytes
        send_json(exchange, {"tokens": await run(self._pool, encode_text, request.prompt, self.model.tokenizer, most, "prompt")})

    async def _detokenize(self, exchange: Exchange) -> None:
        request = await read_request(exchange, self.options.limits, DetokenizeRequest)
        self._targets.find(request.model)
        tokenizer = self.model.tokenizer
        if tokenizer is None:
            raise no_tokenizer("tokens")
        check_prompt(request.tokens, self.bridge.engine.vocab_size, "tokens")
        run = asyncio.get_running_loop().run_in_executor
        send_json(exchange, {"text": await run(self._pool, tokenizer.decode, request.tokens)})

    async def _openapi(self, exchange: Exchange) -> None:
        send_json(exchange, openapi.openapi(self.model.name))

    async def _docs(self, exchange: Exchange) -> None:
        send_body(exchange, 200, openapi.page(self.model.name), b"text/html; charset=utf-8")

    async def _models(self, exchange: Exchange) -> None:
        send_json(exchange, {"object": "list", "data": [self._model_card(target) for target in self._targets.all()]})

    async def _model(self, exchange: Exchange) -> None:
        send_json(exchange, self._model_card(self._targets.find(exchange.path.removeprefix(_MODEL_ROUTE))))

    def _model_card(self, target: Target) -> dict[str, Any]:
        return card(target, self._targets.base, self.bridge.engine.max_total_len)

    async def _load_adapter(self, exchange: Exchange) -> None:
        request = await read_request(exchange, self.options.limits, AdapterRequest)
        root, registry = self._adapter_admin()

        def load() -> Target:
            load_from(root, registry, request.name, request.folder)
            return self._targets.find(request.name)  # what its template calls for is derived here, not by its first request

        send_json(exchange, self._model_card(await asyncio.get_running_loop().run_in_executor(self._pool, load)))

    async def _unload_adapter(self, exchange: Exchange) -> None:
        name = exchange.path.removeprefix(_ADAPTER_ROUTE)
        _, registry = self._adapter_admin()
        try:
            await asyncio.get_running_loop().run_in_executor(self._pool, registry.unload, name)
        except UnknownAdapter:
            raise ApiError(404, f"there is no adapter '{name[:128]}'", code="model_not_found") from None
        self._targets.forget_unloaded()
        send_json(exchange, {"id": name, "object": "model", "deleted": True})

    def _adapter_admin(self) -> tuple[Path, AdapterRegistry]:
        """Where adapters may be loaded from. Raises ApiError 403 where the operator does not allow it."""
        registry = self.bridge.engine.adapters
        if self.options.adapter_dir is None or registry is None:
            raise ApiError(403, "adapters are not loaded at run time here; start the server with --adapter-dir", code="not_allowed")
        return self.options.adapter_dir, registry

    def _is_full(self) -> bool:
        return self.bridge.engine.num_queued_samples >= self.options.max_queue_len

    async def _ready(self, exchange: Exchange) -> None:
        if self.is_draining or self._is_full():
            raise unavailable("the server is shutting down" if self.is_draining else "the queue is full")
        send_json(exchange, {"status": "ready"})

    async def _live(self, exchange: Exchange) -> None:
        age_s = float(self.bridge.engine.stats()["heartbeat_age_s"])
        if age_s > MAX_HEARTBEAT_AGE_S:
            raise unavailable(f"the engine has not made a step for {age_s:.0f} s")
        send_json(exchange, {"status": "live"})


class MetricsApp:
    """Answers the metrics port."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def __call__(self, exchange: Exchange) -> None:
        if exchange.path != "/metrics" or exchange.method != "GET":
            send_error(exchange, ApiError(404, "this port has only GET /metrics", code="not_found"))
            return
        send_body(exchange, 200, self._metrics.render().encode(), CONTENT_TYPE.encode())


def _collector(answer: ChatAnswer | CompletionAnswer | messages.MessagesAnswer | responses.ResponsesAnswer) -> Consumer:
    """For answers that are wanted as a whole."""

    def collect(batch: Batch) -> None:
        for choice_idx, delta in batch:
            answer.add(choice_idx, delta)

    return collect


@contextmanager
def _failing_in(stream: EventStream, *, named: bool = False) -> Iterator[None]:
    """What fails once the stream has begun is its last event."""
    try:
        yield
    except ApiError as error:
        if not stream.is_open:
            raise
        stream.fail(error, named=named)


def _chat_of_messages(request: messages.MessagesRequest, target: Target) -> ChatRequest:
    forms = target.planner.forms
    return messages.chat_request(request, has_reasoning=forms is not None and forms.reasoning is not None)


def _with_names(error: ApiError, renamed: Mapping[str, str]) -> ApiError:
    """The same error, about the field as the client wrote it."""
    if error.param is None or error.param not in renamed:
        return error
    name = renamed[error.param]
    message = error.message.replace(f"'{error.param}", f"'{name}")
    return ApiError(error.status, message, param=name, code=error.code, headers=error.headers)


def _may_compile(request: GenerationRequest) -> bool:
    """Whether a grammar may have to be compiled, which can take long."""
    if request.response_format is not None:
        return True
    return isinstance(request, ChatRequest) and (bool(request.tools) or request.reasoning_budget is not None)
