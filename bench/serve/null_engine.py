"""An engine that costs next to nothing: what is left of the server's CPU time is the front end's.

It has no model and no thread. As with the real one, an eventfd tells the event loop of new outputs, requests are validated, and each step
gives one token to each request; the tokens come from a script, again and again, and `step_s` lies between two steps.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence

from friendli_runtime._core import TokenStreams
from friendli_runtime.engine import Sink, TokenOutput
from friendli_runtime.sampling import SamplingParams
from friendli_runtime.structured.mask_feeder import MaskSource


class _Request:
    def __init__(self, sink: Sink, limit: int) -> None:
        self.sink, self.limit, self.num_done = sink, limit, 0


class NullEngine:
    """Implements the server's `TokenEngine` for requests of one sample without constraints. All methods belong to the event loop."""

    adapters = None
    num_queued_requests = num_queued_samples = 0
    embedding_width = 0

    def __init__(self, script: list[int], vocab_size: int, max_context_len: int, step_s: float) -> None:
        self.event_fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.vocab_size, self.max_context_len, self.max_total_len = vocab_size, max_context_len, max_context_len
        self._script, self._step_s = script, step_s
        self._requests: dict[int, _Request] = {}
        self._next_id = 0
        self._is_stepping = False

    def submit(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        sink: Sink,
        constraint: MaskSource | None = None,
        adapter: str | None = None,
    ) -> int:
        params.validate(self.vocab_size, self.max_context_len, len(prompt_ids))
        self._next_id += 1
        self._requests[self._next_id] = _Request(sink, params.output_limit(self.max_context_len, len(prompt_ids)))
        if not self._is_stepping:
            self._is_stepping = True
            self._wake()
        return self._next_id

    def _wake(self) -> None:
        os.eventfd_write(self.event_fd, 1)

    def deliver(self, streams: TokenStreams) -> bool:
        """A step's tokens, in the order of the requests; what the streams take need not become an object."""
        os.eventfd_read(self.event_fd)
        requests = list(self._requests.items())
        events: list[tuple[int, int, int | None]] = []
        for request_id, request in requests:
            token_id = self._script[request.num_done % len(self._script)]
            request.num_done += 1
            events.append((request_id, 0, token_id if request.num_done < request.limit else None))
        for (request_id, request), is_taken in zip(requests, streams.serve(events), strict=True):
            if not is_taken:
                self._give(request_id, request)
        self._is_stepping = bool(self._requests)
        if self._is_stepping:
            asyncio.get_running_loop().call_later(self._step_s, self._wake)
        return True

    def _give(self, request_id: int, request: _Request) -> None:
        """The newest token, to the sink."""
        is_over = request.num_done >= request.limit
        if is_over:
            del self._requests[request_id]
        token_id = self._script[(request.num_done - 1) % len(self._script)]
        request.sink([TokenOutput(0, token_id, None, None, "length" if is_over else None, None, 0)])

    def cancel(self, request_id: int) -> None:
        self._requests.pop(request_id, None)

    def cancel_sample(self, request_id: int, sample_idx: int) -> None:
        self.cancel(request_id)

    def stats(self) -> dict[str, float]:
        return {"num_running": len(self._requests), "num_queued_requests": 0, "heartbeat_age_s": 0.0}

    def retry_after_s(self) -> int:
        return 1

    def start(self) -> None:
        """Nothing is to be started."""

    def shutdown(self, drain_s: float = 0.0) -> None:
        os.close(self.event_fd)
