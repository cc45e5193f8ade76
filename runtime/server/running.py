"""Runs the coroutine of a request on the event loop without a task of its own.

    run(coroutine, loop)   starts it at once; when it awaits a Waiter, it goes on within `Waiter.wake`; an asyncio future wakes it as a task

A task costs an object, two turns of the loop and a future for whatever it waits for; most requests wait for one thing only, the engine.
There is no current task: what needs one (`asyncio.timeout`) cannot be used, and nobody can cancel the coroutine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from typing import Any


class Waiter:
    """Something that happens once. One coroutine may await it."""

    __slots__ = ("_go_on", "is_done")

    def __init__(self) -> None:
        self.is_done = False
        self._go_on: Callable[[], None] | None = None

    def wake(self) -> None:
        """Whoever waits goes on within this call. A second call does nothing."""
        self.is_done = True
        go_on, self._go_on = self._go_on, None
        if go_on is not None:
            go_on()

    def on_wake(self, go_on: Callable[[], None]) -> None:
        self._go_on = go_on

    def __await__(self) -> Generator[Waiter, None, None]:
        if not self.is_done:
            yield self


def run(coroutine: Coroutine[Any, Any, None], loop: asyncio.AbstractEventLoop) -> None:
    """An exception that leaves the coroutine goes to the loop's handler."""
    _Running(coroutine, loop).go_on()


class _Running:
    """Held by what it waits for, and by nothing else: no circle is left to the collector."""

    __slots__ = ("_coroutine", "_loop")

    def __init__(self, coroutine: Coroutine[Any, Any, None], loop: asyncio.AbstractEventLoop) -> None:
        self._coroutine, self._loop = coroutine, loop

    def go_on(self, _: object = None) -> None:
        try:
            awaited = self._coroutine.send(None)
        except StopIteration:
            return
        except Exception as error:
            self._loop.call_exception_handler({"message": "a request failed outside of the application", "exception": error})
            return
        if type(awaited) is Waiter:
            awaited.on_wake(self.go_on)
        elif awaited is None:  # asyncio.sleep(0)
            self._loop.call_soon(self.go_on)
        else:
            assert asyncio.isfuture(awaited), f"a request awaits {awaited!r}, which is neither a Waiter nor a future"
            awaited._asyncio_future_blocking = False  # the answer that a future expects of whoever drives the coroutine
            awaited.add_done_callback(self.go_on)
