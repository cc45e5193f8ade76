"""Coroutines without tasks: they start at once, go on when they are woken, and wait for asyncio's futures as tasks do."""

import asyncio
import gc
import weakref
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from friendli_runtime.server.running import Waiter, run


def on_loop(body: Callable[[asyncio.AbstractEventLoop], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        return await body(asyncio.get_running_loop())

    return asyncio.run(main())


def test_a_coroutine_starts_at_once_and_goes_on_within_the_call_that_wakes_it() -> None:
    async def body(loop: asyncio.AbstractEventLoop) -> None:
        seen: list[str] = []
        waiter = Waiter()

        async def request() -> None:
            seen.append("started")
            await waiter
            await waiter  # has happened
            seen.append("woken")

        run(request(), loop)
        assert seen == ["started"]
        waiter.wake()
        assert seen == ["started", "woken"]
        waiter.wake()

    on_loop(body)


def test_futures_results_and_failures_arrive() -> None:
    async def body(loop: asyncio.AbstractEventLoop) -> None:
        seen: list[object] = []
        done = asyncio.Event()

        async def request() -> None:
            with ThreadPoolExecutor(1) as pool:
                seen.append(await loop.run_in_executor(pool, lambda: 7))
                with pytest.raises(ZeroDivisionError):
                    await loop.run_in_executor(pool, lambda: 1 // 0)
            await asyncio.sleep(0)
            await asyncio.sleep(0.001)
            assert not (await asyncio.wait([loop.create_future()], timeout=0.001))[0]
            done.set()

        run(request(), loop)
        await asyncio.wait_for(done.wait(), 10)
        assert seen == [7]

    on_loop(body)


def test_what_has_run_is_gone_without_the_collector() -> None:
    async def body(loop: asyncio.AbstractEventLoop) -> None:
        waiter = Waiter()

        async def request() -> None:
            await waiter

        coroutine = request()
        seen = weakref.ref(coroutine)
        run(coroutine, loop)
        del coroutine
        assert seen() is not None
        waiter.wake()
        assert seen() is None

    gc.disable()
    try:
        on_loop(body)
    finally:
        gc.enable()


def test_a_failure_that_nobody_catches_is_told_to_the_loop() -> None:
    async def body(loop: asyncio.AbstractEventLoop) -> None:
        told: list[dict[str, Any]] = []
        loop.set_exception_handler(lambda _, context: told.append(context))

        async def request() -> None:
            raise ValueError("x")

        run(request(), loop)
        assert isinstance(told[0]["exception"], ValueError)

    on_loop(body)
