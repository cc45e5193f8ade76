"""The engine's dispatcher thread on one side, the event loop on the other: one hop per engine step, however many requests it served.

    dispatcher: sink, sink, … ─▶ pending ─ flush ─▶ (call_soon_threadsafe) ─▶ event loop: every receiver gets its outputs

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

    def retry_after_s(self) -> int: ...

    def start(self) -> None: ...

    def shutdown(self, drain_s: float = 0.0) -> None: ...


class Receiver(Protocol):
    """Who takes the outputs of an HTTP request. Called on the event loop."""

    def put(self, prompt_idx: int, outputs: list[TokenOutput]) -> None:
        """Outputs of one prompt, in order."""

    def flush(self) -> None:
        """That was all for now."""


class Bridge:
    """Give `flush` to the engine as `on_batch_end`, then `attach` it to engine and running loop."""

    def __init__(self, on_first_schedule: Callable[[float], None]) -> None:
        self._on_first_schedule = on_first_schedule
        self._pending: deque[tuple[Receiver, int, list[TokenOutput]]] = deque()
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
        receiver: Receiver,
        prompt_idx: int,
        constraint: MaskSource | None,
        adapter: str | None = None,
    ) -> int:
        """Queues one prompt; its outputs go to `receiver`. Raises what `Engine.submit` raises."""
        request_id = self.engine.submit(
            prompt_ids, params, lambda outputs: self._pending.append((receiver, prompt_idx, outputs)), constraint, adapter
        )
        self._unstarted[request_id] = time.monotonic()
        return request_id

    def cancel(self, request_id: int) -> None:
        self._unstarted.pop(request_id, None)
        self.engine.cancel(request_id)

    def _deliver(self) -> None:
        """What several steps gave while the loop was busy reaches each receiver in one go."""
        pending = self._pending
        receivers: dict[Receiver, None] = {}
        while pending:
            receiver, prompt_idx, outputs = pending.popleft()
            receiver.put(prompt_idx, outputs)
            receivers[receiver] = None
        for receiver in receivers:
            receiver.flush()
        if self._unstarted:
            self._note_started()

    def _note_started(self) -> None:
        """Whatever the engine no longer counts as waiting was started since the last step; what was cancelled may still be counted."""
        num_started = max(0, len(self._unstarted) - int(self.engine.stats()["num_queued_requests"]))
        now = time.monotonic()
        for request_id in list(self._unstarted)[:num_started]:
            self._on_first_schedule(now - self._unstarted.pop(request_id))
