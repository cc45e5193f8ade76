"""An engine that costs next to nothing: what is left of the server's CPU time is the front end's.

It has no model and no thread. As with the real one, an eventfd tells the event loop of new outputs, requests are validated, and each step
gives one token to each request; the tokens come from a script, again and again, and `step_s` lies between two steps. What the real engine
gives the core's token streams as structs it gives them as tuples, in one call per step.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Sequence
from itertools import cycle, islice

from friendli_runtime._core import TokenStreams
from friendli_runtime.engine import Sink, TokenOutput
from friendli_runtime.lora.registry import LoadedAdapter
from friendli_runtime.sampling import SamplingParams
from friendli_runtime.structured.mask_feeder import MaskSource


class NullEngine:
    """Implements the server's `TokenEngine` for requests of one sample without constraints. All methods belong to the event loop."""

    adapters = None
    num_queued_requests = num_queued_samples = 0
    embedding_width = 0

    def __init__(self, script: list[int], vocab_size: int, max_context_len: int, step_s: float) -> None:
        self.event_fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.vocab_size, self.max_context_len, self.max_total_len = vocab_size, max_context_len, max_context_len
        self._script, self._step_s = script, step_s
        self._sinks: dict[int, Sink] = {}
        self._tokens: dict[int, Iterator[int | None]] = {}  # of each request, None for the last one
        self._answers: dict[int, tuple[int | None, ...]] = {}  # by their length
        self._next_id = 0
        self._is_stepping = False

    def submit(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        sink: Sink,
        constraint: MaskSource | None = None,
        adapter: LoadedAdapter | None = None,
    ) -> int:
        params.validate(self.vocab_size, self.max_context_len, len(prompt_ids))
        self._next_id += 1
        limit = params.output_limit(self.max_context_len, len(prompt_ids))
        self._sinks[self._next_id] = sink
        if limit not in self._answers:
            self._answers[limit] = (*islice(cycle(self._script), limit - 1), None)
        self._tokens[self._next_id] = iter(self._answers[limit])
        if not self._is_stepping:
            self._is_stepping = True
            self._wake()
        return self._next_id

    def _wake(self) -> None:
        os.eventfd_write(self.event_fd, 1)

    def deliver(self, streams: TokenStreams) -> bool:
        """The tokens of a step: to the streams, and what those leave to the sinks."""
        os.eventfd_read(self.event_fd)
        events = [(request_id, 0, next(tokens)) for request_id, tokens in self._tokens.items()]
        for idx in streams.serve(events):
            request_id, sample_idx, token_id = events[idx]
            sink = self._sinks[request_id]
            if token_id is None:
                self.cancel(request_id)
                sink([TokenOutput(sample_idx, self._script[0], None, None, "length", None, 0)])
            else:
                sink([TokenOutput(sample_idx, token_id, None, None, None, None, 0)])
        self._is_stepping = bool(self._tokens)
        if self._is_stepping:
            asyncio.get_running_loop().call_later(self._step_s, self._wake)
        return True

    def cancel(self, request_id: int) -> None:
        self._tokens.pop(request_id, None)
        self._sinks.pop(request_id, None)

    def cancel_sample(self, request_id: int, sample_idx: int) -> None:
        self.cancel(request_id)

    def stats(self) -> dict[str, float]:
        return {"num_running": len(self._tokens), "num_queued_requests": 0, "heartbeat_age_s": 0.0}

    def retry_after_s(self) -> int:
        return 1

    def start(self) -> None:
        """Nothing is to be started."""

    def shutdown(self, drain_s: float = 0.0) -> None:
        os.close(self.event_fd)
