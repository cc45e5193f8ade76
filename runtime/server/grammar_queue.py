"""Where requests wait whose grammar may have to be compiled: few threads, small requests first, a bound on how many wait and how long.

    large ─▶ ┐ heap by size ┌─▶ thread 1: any request
    small ─▶ ┘              └─▶ thread 2: requests of at most SMALL_BYTES

So schemas that are made to take long hold up each other, not the schemas that everybody else sends. What one grammar may cost is bounded
where it is checked (structured.json_schema, structured.constraint). All methods belong to the event loop.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import TypeVar

from .errors import ApiError, unavailable

NUM_THREADS = 2
SMALL_BYTES = 16 * 2**10
Argument = TypeVar("Argument")
Result = TypeVar("Result")


class GrammarQueue:
    """`max_waiting`: requests that may wait for a thread. `max_wait_s`: for how long."""

    def __init__(self, max_waiting: int, max_wait_s: float) -> None:
        self._max_waiting = max_waiting
        self._max_wait_s = max_wait_s
        self._pool = ThreadPoolExecutor(NUM_THREADS, "fmo-constraint")
        self._num_running = 0
        self._num_large_running = 0
        self._arrivals = count()
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []  # (bytes, number of arrival, turn)

    async def run(self, num_bytes: int, function: Callable[[Argument], Result], argument: Argument) -> Result:
        """`function(argument)` on a thread, when its turn comes. `num_bytes`: size of the request. Raises ApiError 429 or 503."""
        await self._turn(num_bytes)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, function, argument)
        finally:
            self._end(num_bytes)

    def warm_up(self, function: Callable[[], None]) -> None:
        """Runs `function` on a thread of the queue; nobody waits for it, and its errors come again where they matter."""
        self._pool.submit(function)

    async def _turn(self, num_bytes: int) -> None:
        """Returns when the request may run; it is counted as running then."""
        if not self._waiting and self._may_start(num_bytes):
            self._count(num_bytes)
            return
        if len(self._waiting) >= self._max_waiting:
            what = f"{len(self._waiting)} requests wait for their format or tools to be compiled already; send the request again later"
            raise ApiError(429, what, code="grammar_queue_full", headers=(("retry-after", "1"),))
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (num_bytes, next(self._arrivals), turn))
        self._start_next()
        try:
            await asyncio.wait([turn], timeout=self._max_wait_s)
        except asyncio.CancelledError:
            self._leave(num_bytes, turn)
            raise
        if not turn.done():
            self._leave(num_bytes, turn)
            what = f"the format or the tools of the request waited {self._max_wait_s:g} s to be compiled; send the request again later"
            raise unavailable(what)

    def _leave(self, num_bytes: int, turn: asyncio.Future[None]) -> None:
        """Gives up the place in the queue, or the turn."""
        if turn.done():
            self._end(num_bytes)
            return
        self._waiting = [entry for entry in self._waiting if entry[2] is not turn]
        heapq.heapify(self._waiting)
        self._start_next()

    def _may_start(self, num_bytes: int) -> bool:
        if num_bytes > SMALL_BYTES and self._num_large_running >= NUM_THREADS - 1:
            return False
        return self._num_running < NUM_THREADS

    def _count(self, num_bytes: int) -> None:
        self._num_running += 1
        self._num_large_running += num_bytes > SMALL_BYTES

    def _end(self, num_bytes: int) -> None:
        self._num_running -= 1
        self._num_large_running -= num_bytes > SMALL_BYTES
        self._start_next()

    def _start_next(self) -> None:
        while self._waiting and self._may_start(self._waiting[0][0]):
            num_bytes, _, turn = heapq.heappop(self._waiting)
            self._count(num_bytes)
            turn.set_result(None)
