"""The engine's dispatcher thread on one side, the event loop on the other: one hop per engine step, however many requests it served.

    dispatcher: sink, sink, … ─▶ pending ─ flush ─▶ (call_soon_threadsafe) ─▶ event loop: every channel gets its outputs

The bridge also tells when requests are first scheduled: the engine starts them in order of arrival and says how many have not been started.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ..engine import Sink, TokenOutput
from ..lora.registry import AdapterRegistry
from ..sampling import SamplingParams
from ..structured.mask_feeder import MaskSource


class TokenEngine(Protocol):
    """What the server needs of an engine; `friendli_runtime.engine.Engine` is one."""

    max_context_len: int
    vocab_size: int
    max_total_len: int

    @property
    def adapters(self) -> AdapterRegistry | None:
        """None where the engine takes no LoRA adapters."""

    def submit(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        sink: Sink,
        constraint: MaskSource | None = None,
        adapter: str | None = None,
    ) -> int: ...

    def cancel(self, request_id: int) -> None: ...

    def cancel_sample(self, request_id: int, sample_idx: int) -> None: ...

    def stats(self) -> dict[str, Any]: ...

    def start(self) -> None: ...

    def shutdown(self, drain_s: float = 0.0) -> None: ...


class Channel:
    """The outputs of all prompts of one HTTP request, in order. One reader."""

    __slots__ = ("_failure", "_outputs", "_ready")

    def __init__(self) -> None:
        self._outputs: list[tuple[int, TokenOutput]] = []
        self._ready = asyncio.Event()
        self._failure: Exception | None = None

    def put(self, prompt_idx: int, outputs: list[TokenOutput]) -> None:
        self._outputs += ((prompt_idx, output) for output in outputs)
        self._ready.set()

    def fail(self, failure: Exception) -> None:
        """The reader's next `take` raises `failure`; the first failure counts."""
        self._failure = self._failure or failure
        self._ready.set()

    async def take(self) -> list[tuple[int, TokenOutput]]:
        """All outputs since the last call, at least one, each with the index of its prompt."""
        await self._ready.wait()
        self._ready.clear()
        if self._failure is not None:
            raise self._failure
        taken, self._outputs = self._outputs, []
        return taken


class Bridge:
    """Give `flush` to the engine as `on_batch_end`, then `attach` it to engine and running loop."""

    def __init__(self, on_first_schedule: Callable[[float], None]) -> None:
        self._on_first_schedule = on_first_schedule
        self._pending: deque[tuple[Channel, int, list[TokenOutput]]] = deque()
        self._unstarted: dict[int, float] = {}  # request id → time of submission, oldest first
        self._loop: asyncio.AbstractEventLoop | None = None
        self._engine: TokenEngine | None = None

    def attach(self, engine: TokenEngine, loop: asyncio.AbstractEventLoop) -> None:
        self._engine, self._loop = engine, loop

    @property
    def engine(self) -> TokenEngine:
        assert self._engine is not None, "the bridge is not attached yet"
        return self._engine

    def flush(self) -> None:
        """Called on the dispatcher thread after the sinks of one step."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._deliver)

    def submit(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        channel: Channel,
        prompt_idx: int,
        constraint: MaskSource | None,
        adapter: str | None = None,
    ) -> int:
        """Queues one prompt; its outputs go to `channel`. Raises what `Engine.submit` raises."""
        request_id = self.engine.submit(
            prompt_ids, params, lambda outputs: self._pending.append((channel, prompt_idx, outputs)), constraint, adapter
        )
        self._unstarted[request_id] = time.monotonic()
        return request_id

    def cancel(self, request_id: int) -> None:
        self._unstarted.pop(request_id, None)
        self.engine.cancel(request_id)

    def _deliver(self) -> None:
        while self._pending:
            channel, prompt_idx, outputs = self._pending.popleft()
            channel.put(prompt_idx, outputs)
        if self._unstarted:
            self._note_started()

    def _note_started(self) -> None:
        """Whatever the engine no longer counts as waiting was started since the last step; what was cancelled may still be counted."""
        num_started = max(0, len(self._unstarted) - int(self.engine.stats()["num_queued_requests"]))
        now = time.monotonic()
        for request_id in list(self._unstarted)[:num_started]:
            self._on_first_schedule(now - self._unstarted.pop(request_id))
