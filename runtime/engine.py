"""The Python face of the C++ engine: submit token ids, get tokens back by callback.

One C++ thread steps the model without the GIL. A Python thread (the dispatcher), or an event loop in its place, wakes once per step, takes
all events of the step in one call and hands each request its own as one list. No text here (see `tokenizer`), no HTTP, no artifact loading.

    submit ─▶ C++ queue ─▶ step loop ─▶ outbox + event_fd ─▶ dispatcher, or whoever calls deliver() ─▶ sink(list[TokenOutput]) …
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import logging
import math
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import FmoError
from .lora.registry import AdapterRegistry, LoadedAdapter
from .sampling import InvalidSamplingParams, SamplingParams
from .structured.mask_feeder import MaskFeeder, Masks, MaskSource

if TYPE_CHECKING:
    from ._core import TokenStreams

_log = logging.getLogger(__name__)
_WAIT_MS = 1000
"""How long the dispatcher sleeps at most before it looks whether it should end."""


_MAX_RETRY_AFTER_S = 60


class EngineError(FmoError):
    """The engine did not take a request."""


class QueueFull(EngineError):
    """As many samples wait as the queue holds: try again later (HTTP 429), in about `retry_after_s` seconds."""

    retry_after_s: int = 1


class RequestTooLarge(EngineError, ValueError):
    """The request can never run on this engine: prompt and answer do not fit the context or the KV cache."""


class EngineStopped(EngineError):
    """The engine is shutting down (HTTP 503)."""


PromptScores = list[tuple[float, list[tuple[int, float]]]]
"""(Log-probability, most likely tokens) of the tokens of a prompt from the second on."""


@dataclass(slots=True)
class TokenOutput:
    """One token of one sample, or its end, or both.

    `token_id` is None when a sample ends without a token (cancelled, error). `finish_reason` is None until the last output of the sample,
    then `stop`, `length`, `cancelled` or `error` (with `error` saying what happened). A stop token, and the tokens of a stop sequence, are
    reported like all others. `logprob` and `top_logprobs` are those of the raw logits, if asked for. `num_cached_tokens`: prompt tokens
    that this sample did not have to compute. `prompt_logprobs`: in the first output of a request that asks for them.
    """

    sample_idx: int
    token_id: int | None
    logprob: float | None
    top_logprobs: list[tuple[int, float]] | None
    finish_reason: str | None
    error: str | None
    num_cached_tokens: int
    prompt_logprobs: PromptScores | None = None


Sink = Callable[[list[TokenOutput]], None]


@dataclass(slots=True)
class _Request:
    """`masks`, `num_tokens`: per sample, for constrained requests."""

    sink: Sink
    num_open_samples: int
    masks: list[Masks]
    num_tokens: list[int]
    adapter: LoadedAdapter | None = None


class Engine:
    """Runs requests on an executor until `shutdown`.

    `executor`: `_core.Executor`, or an object that holds one as `.core`; bound for at least `max_num_tokens` rows, `max_num_seqs` logits.
    `max_num_seqs`: samples that run at the same time. `max_num_tokens`: rows of one step. `max_queue_len`: samples that may wait.
    `ignores_nan`: a NaN score is a token that cannot be chosen, and a sample without any score ends with `stop`; else both are errors.
    `ngram_size`: tokens that are guessed ahead from what a sequence has said before, up to half as many again while all come true, and as
    far as the executor is bound for more logits than `max_num_seqs`; 0: none. Guesses change the time, never a token.
    `has_prefix_cache`: requests take the computed blocks of others whose tokens begin alike and whose `cache_salt` is the same.
    `has_dispatcher` False: sinks are called by `deliver` only, which is to be called when `event_fd` is readable, always on one thread.
    """

    def __init__(
        self,
        executor: Any,
        *,
        max_num_seqs: int = 64,
        max_num_tokens: int = 512,
        max_queue_len: int = 1024,
        max_context_len: int,
        vocab_size: int,
        has_prefix_cache: bool = True,
        ignores_nan: bool = False,
        ngram_size: int = 0,
        has_dispatcher: bool = True,
    ) -> None:
        from . import _core  # here, so that importing this module loads no native code

        self._core: Any = _core.Engine(
            getattr(executor, "core", executor),
            max_num_seqs=max_num_seqs,
            max_num_tokens=max_num_tokens,
            max_queue_len=max_queue_len,
            max_context_len=max_context_len,
            vocab_size=vocab_size,
            has_prefix_cache=has_prefix_cache,
            ignores_nan=ignores_nan,
            ngram_size=ngram_size,
        )
        self.adapters = AdapterRegistry(getattr(executor, "core", executor))
        """LoRA adapters that requests may ask for by name."""
        self._scope_key = secrets.token_bytes(16)
        self._open_scope = self._cache_scope("")
        self._queue_full: type[Exception] = _core.QueueFullError
        self._too_large: type[Exception] = _core.RequestTooLargeError
        self._stopped: type[Exception] = _core.EngineStoppedError
        self.max_context_len = max_context_len
        self.embedding_width: int = getattr(getattr(executor, "core", executor), "embedding_width", 0)
        """Numbers of one of `params.replaced_embeddings`; 0: the model takes none."""
        self.vocab_size = vocab_size
        self.max_total_len: int = self._core.max_total_len
        """Prompt + output of the largest request that fits both the context and the KV cache."""
        self._has_dispatcher = has_dispatcher
        self._is_started = False
        self._requests: dict[int, _Request] = {}
        self._lock = threading.Lock()
        self._dispatcher: threading.Thread | None = None
        self._closing = threading.Event()
        self._mask_feeder = MaskFeeder(self._core)

    def start(self) -> None:
        """Starts the step loop and the dispatcher. A second call does nothing; after `shutdown` it raises EngineStopped."""
        if self._is_started:
            return
        try:
            self._core.start()
        except self._stopped as error:
            raise EngineStopped(str(error), hint="make a new engine") from None
        self._is_started = True
        atexit.register(self.shutdown)  # neither thread may outlive the interpreter
        if self._has_dispatcher:
            self._dispatcher = threading.Thread(target=self._dispatch_loop, name="fmo-dispatch", daemon=True)
            self._dispatcher.start()

    @property
    def event_fd(self) -> int:
        """Readable while outputs wait."""
        return self._core.event_fd

    def deliver(self, streams: TokenStreams | None = None) -> bool:
        """Hands the outputs that wait to their sinks; False if there are none. For an engine without a dispatcher.

        What `streams` take goes to no sink: plain tokens of requests without a constraint.
        """
        return self._deliver_events(0, streams)

    def submit(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        sink: Sink,
        constraint: MaskSource | None = None,
        adapter: str | LoadedAdapter | None = None,
    ) -> int:
        """Queues a request, before or after `start`, and returns its id. `sink` gets every output of its samples, as the engine delivers.

        With a `constraint` no token is sampled that it does not allow; `params` that ask for a format are refused without one.
        `adapter`: the name of a loaded one or just that load, None for the base model; it stays in memory until the request has ended.
        Raises InvalidSamplingParams, RequestTooLarge, QueueFull, EngineStopped or UnknownAdapter; then the sink is never called.
        """
        params.validate(self.vocab_size, self.max_context_len, len(prompt_ids), self.embedding_width)
        if params.is_constrained and constraint is None:
            raise InvalidSamplingParams("response_format", params.response_format, "a compiled constraint with it")
        masks = [constraint.sample() for _ in range(params.n)] if constraint is not None else []
        first_mask = constraint.first_mask if constraint is not None else None
        prompt = prompt_ids if type(prompt_ids) is list else list(map(int, prompt_ids))
        used = self.adapters.acquire(adapter) if adapter is not None else None
        try:
            return self._submit(prompt, params, first_mask, _Request(sink, params.n, masks, [0] * len(masks), used))
        except BaseException:
            if used is not None:
                self.adapters.release(used)
            raise

    def _submit(self, prompt: list[int], params: SamplingParams, first_mask: bytes | None, request: _Request) -> int:
        is_open = request.adapter is None and not params.cache_salt
        scope = self._open_scope if is_open else self._cache_scope(params.cache_salt, request.adapter)
        slot = -1 if request.adapter is None else request.adapter.slot
        # Under the lock, so that the dispatcher cannot see an event of a request that is not in the table yet.
        with self._lock:
            try:
                request_id: int = self._core.submit(prompt, params, first_mask, cache_scope=scope, adapter_slot=slot)
            except self._queue_full as error:
                raise self._queue_full_error(str(error)) from None
            except self._too_large as error:
                raise RequestTooLarge(str(error), where="prompt, max_tokens", hint="shorten one of them") from None
            except self._stopped as error:
                raise EngineStopped(str(error), hint="send the request again when the server is ready") from None
            self._requests[request_id] = request
        return request_id

    def cancel(self, request_id: int) -> None:
        """Ends all samples of the request with `cancelled` in the running step. Unknown and finished ids are ignored."""
        self._core.cancel(request_id)

    def cancel_sample(self, request_id: int, sample_idx: int) -> None:
        """Ends one sample, for instance when the text layer has found a stop string. Ids that are over are ignored."""
        self._core.cancel_sample(request_id, sample_idx)

    def stats(self) -> dict[str, int | float | bool]:
        """Counters and gauges of the step loop: the table in docs/engine.md."""
        return self._core.stats()

    def shutdown(self, drain_s: float = 0.0) -> None:
        """Takes no more requests, gives the running ones `drain_s` seconds, cancels what is left and ends both threads."""
        self._core.close()
        deadline = time.monotonic() + drain_s
        while time.monotonic() < deadline and self.num_open_requests() > 0:
            time.sleep(0.005)
        self._core.stop()
        self._closing.set()
        self._core.wake()
        self._mask_feeder.close()
        atexit.unregister(self.shutdown)
        self._is_started = False
        dispatcher, self._dispatcher = self._dispatcher, None
        if dispatcher is not None and dispatcher is not threading.current_thread():
            dispatcher.join()
        while not self._has_dispatcher and self.deliver():
            pass

    @property
    def num_queued_requests(self) -> int:
        """Requests of which no sample has started."""
        return self._core.num_queued_requests

    @property
    def num_queued_samples(self) -> int:
        """Samples that have not started: what `max_queue_len` bounds."""
        return self._core.num_queued_samples

    def num_open_requests(self) -> int:
        """Requests whose last output has not been delivered."""
        with self._lock:
            return len(self._requests)

    def retry_after_s(self) -> int:
        """When half of those that wait now will have been served, at the mean speed so far."""
        stats = self.stats()
        seconds_per_sample = stats["busy_s"] / max(1, stats["num_finished_samples"])
        return min(_MAX_RETRY_AFTER_S, max(1, math.ceil(stats["num_queued_samples"] / 2 * seconds_per_sample)))

    def _queue_full_error(self, message: str) -> QueueFull:
        error = QueueFull(message, where="max_queue_len", hint="send the request again later")
        error.retry_after_s = self.retry_after_s()
        return error

    def _cache_scope(self, cache_salt: str, adapter: LoadedAdapter | None = None) -> tuple[int, int]:
        """128 bits that nobody outside this process can foresee; equal for equal salts with the same load of the same adapter."""
        salt = b"%d:%s" % (0 if adapter is None else adapter.uid, cache_salt.encode(errors="surrogatepass"))
        digest = hashlib.blake2b(salt, digest_size=16, key=self._scope_key, person=b"fmo cache_salt").digest()
        return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")

    def __enter__(self) -> Engine:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    def _dispatch_loop(self) -> None:
        while True:
            closing = self._closing.is_set()  # read before the events: what `stop` emitted is then still delivered
            if not self._deliver_events(0 if closing else _WAIT_MS) and closing:
                return

    def _deliver_events(self, timeout_ms: int, streams: TokenStreams | None = None) -> bool:
        batches = self._core.take_events(timeout_ms, streams)
        for request_id, rows in batches:
            self._deliver(request_id, [TokenOutput(*row) for row in rows])
        return bool(batches)

    def _deliver(self, request_id: int, outputs: list[TokenOutput]) -> None:
        num_finished = sum(output.finish_reason is not None for output in outputs)
        with self._lock:
            request = self._requests.get(request_id)
            if request is None:
                return
            request.num_open_samples -= num_finished
            is_over = request.num_open_samples == 0
            if is_over:
                del self._requests[request_id]
        if is_over and request.adapter is not None:
            self.adapters.release(request.adapter)
        if request.masks:
            self._ask_for_masks(request_id, request, outputs)
        with _logged(f"the sink of request {request_id}"):
            request.sink(outputs)

    def _ask_for_masks(self, request_id: int, request: _Request, outputs: list[TokenOutput]) -> None:
        for output in outputs:
            if output.token_id is None or output.finish_reason is not None:
                continue
            sample_idx = output.sample_idx
            request.num_tokens[sample_idx] += 1
            self._mask_feeder.advance(request_id, sample_idx, request.masks[sample_idx], output.token_id, request.num_tokens[sample_idx])


class _logged(contextlib.AbstractContextManager[None]):
    """Keeps the dispatcher alive when a callback raises: the error goes to the log, other requests go on."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, _: object) -> bool:
        if exc is not None and isinstance(exc, Exception):
            _log.error("%s raised %s", self._what, exc_type.__name__ if exc_type else exc, exc_info=exc)
            return True
        return False
