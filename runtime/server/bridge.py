"""The engine's outputs on the event loop, which wakes once per step, however many requests the step served.

    step thread ─▶ event_fd ─▶ event loop: deliver ─▶ put, put, … of every receiver that got outputs ─▶ flush of each
                                                   └▶ tokens that nobody here need see: from the core to their clients (`direct_stream`)

The bridge also tells when requests are first scheduled: the engine starts them in order of arrival and says how many have not been started.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

from .._core import TokenStreams
from ..engine import Sink, TokenOutput
from ..lora.registry import AdapterRegistry, LoadedAdapter
from ..sampling import SamplingParams
from ..structured.mask_feeder import MaskSource


class TokenEngine(Protocol):
    """What the server needs of an engine; `friendli_runtime.engine.Engine` without a dispatcher is one."""

    max_context_len: int
    vocab_size: int
    max_total_len: int
    embedding_width: int

    @property
    def adapters(self) -> AdapterRegistry | None:
        """None where the engine takes no LoRA adapters."""

    @property
    def event_fd(self) -> int: ...

    @property
    def num_queued_requests(self) -> int: ...

    @property
    def num_queued_samples(self) -> int: ...

    def deliver(self, streams: TokenStreams | None = None) -> bool: ...

    def submit(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        sink: Sink,
        constraint: MaskSource | None = None,
        adapter: LoadedAdapter | None = None,
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
    """`attach` it to engine and running loop."""

    def __init__(self, on_first_schedule: Callable[[float], None]) -> None:
        self._on_first_schedule = on_first_schedule
        self._served: dict[Receiver, None] = {}  # those that got outputs since the last flush
        self._unstarted: dict[int, float] = {}  # request id → time of submission, oldest first
        self.engine: TokenEngine
        self.streams = TokenStreams()
        """Answers that get their tokens from the core, see `direct_stream`."""

    def attach(self, engine: TokenEngine, loop: asyncio.AbstractEventLoop | None) -> None:
        """`loop` None: of an engine that gives no tokens."""
        self.engine = engine
        if loop is not None:
            loop.add_reader(engine.event_fd, self._deliver)

    def submit(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        receiver: Receiver,
        prompt_idx: int,
        constraint: MaskSource | None,
        adapter: LoadedAdapter | None = None,
    ) -> int:
        """Queues one prompt; its outputs go to `receiver`. Raises what `Engine.submit` raises."""
        request_id = self.engine.submit(prompt_ids, params, partial(self._put, receiver, prompt_idx), constraint, adapter)
        self._unstarted[request_id] = time.monotonic()
        return request_id

    def cancel(self, request_id: int) -> None:
        self._unstarted.pop(request_id, None)
        self.engine.cancel(request_id)

    def _put(self, receiver: Receiver, prompt_idx: int, outputs: list[TokenOutput]) -> None:
        receiver.put(prompt_idx, outputs)
        self._served[receiver] = None

    def _deliver(self) -> None:
        """What several steps gave while the loop was busy reaches each receiver in one go."""
        self.engine.deliver(self.streams)
        served, self._served = self._served, {}
        for receiver in served:
            receiver.flush()
        if self._unstarted:
            self._note_started()

    def _note_started(self) -> None:
        """Whatever the engine no longer counts as waiting was started since the last step; what was cancelled may still be counted."""
        unstarted, num_queued, now = self._unstarted, self.engine.num_queued_requests, time.monotonic()
        while len(unstarted) > num_queued:
            self._on_first_schedule(now - unstarted.pop(next(iter(unstarted))))
