"""Requests with formats wait in bounds, small ones pass large ones, and no schema takes long."""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from friendli_runtime.server.errors import ApiError
from friendli_runtime.server.grammar_queue import SMALL_BYTES, GrammarQueue

from .conftest import TestServer

LARGE = SMALL_BYTES + 1


class Jobs:
    """Jobs that run until they are released, and the order in which they began."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self._released = threading.Event()

    def run(self, name: str) -> str:
        self.begun.append(name)
        assert self._released.wait(30)
        return name

    def release(self) -> None:
        self._released.set()

    async def wait_begun(self, num_jobs: int) -> None:
        while len(self.begun) < num_jobs:
            await asyncio.sleep(0.001)


def test_a_small_request_passes_large_ones() -> None:
    async def scenario() -> None:
        queue, jobs = GrammarQueue(10, 30), Jobs()
        tasks = [asyncio.create_task(queue.run(LARGE, jobs.run, f"large {i}")) for i in range(3)]
        await jobs.wait_begun(1)
        tasks.append(asyncio.create_task(queue.run(100, jobs.run, "small")))
        await jobs.wait_begun(2)
        assert jobs.begun == ["large 0", "small"]
        jobs.release()
        assert await asyncio.gather(*tasks) == ["large 0", "large 1", "large 2", "small"]

    asyncio.run(scenario())


def test_one_too_many_is_told_to_come_back() -> None:
    async def scenario() -> None:
        queue, jobs = GrammarQueue(2, 30), Jobs()
        tasks = [asyncio.create_task(queue.run(LARGE, jobs.run, "x")) for _ in range(3)]
        await jobs.wait_begun(1)
        with pytest.raises(ApiError) as caught:
            await queue.run(LARGE, jobs.run, "x")
        assert (caught.value.status, caught.value.code) == (429, "grammar_queue_full")
        assert dict(caught.value.headers)["retry-after"] == "1"
        jobs.release()
        assert len(await asyncio.gather(*tasks)) == 3

    asyncio.run(scenario())


def test_who_waits_too_long_or_leaves_holds_up_nobody() -> None:
    async def scenario() -> None:
        queue, jobs = GrammarQueue(10, 0.02), Jobs()
        first = asyncio.create_task(queue.run(LARGE, jobs.run, "first"))
        await jobs.wait_begun(1)
        leaving = asyncio.create_task(queue.run(LARGE, jobs.run, "leaving"))
        await asyncio.sleep(0)
        leaving.cancel()
        with pytest.raises(ApiError) as caught:
            await queue.run(LARGE, jobs.run, "late")
        assert caught.value.status == 503
        jobs.release()
        assert await first == "first" and await queue.run(LARGE, jobs.run, "next") == "next"
        assert jobs.begun == ["first", "next"]

    asyncio.run(scenario())


def test_a_failing_job_gives_its_thread_back() -> None:
    async def scenario() -> None:
        queue = GrammarQueue(10, 30)
        for _ in range(5):
            with pytest.raises(ValueError, match="x"):
                await queue.run(LARGE, int, "x")
        assert await queue.run(LARGE, int, "3") == 3

    asyncio.run(scenario())


def format_of(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"schema": schema}}


COSTLY = [
    {"type": "object", "patternProperties": {f"^x{i}": {} for i in range(65)}},
    {"anyOf": [{"type": "object", "patternProperties": {f"^{c}{i}": {} for i in range(60)}} for c in "abcde"]},
    {"type": "object", "properties": {f"k{i}": {"type": "string", "format": "uri"} for i in range(257)}},
    {"type": "object", "properties": {f"k{i}": {"type": "string", "pattern": "a+"} for i in range(257)}},
]


@pytest.mark.parametrize("schema", COSTLY)
def test_a_schema_that_would_take_long_is_a_400(server: TestServer, schema: dict[str, Any]) -> None:
    response = server.post("/v1/completions", prompt="x", response_format=format_of(schema))
    assert response.status_code == 400 and "patterns" in response.json()["message"]


def test_patterns_of_all_tools_count_together(make_server: Callable[..., TestServer]) -> None:
    from tools.templates import HERMES

    server = make_server(template=HERMES.replace("<|im_end|>", "<|end|>"), max_context_len=100_000)
    properties = {f"k{i}": {"type": "string", "pattern": "a+"} for i in range(100)}
    tools = [{"type": "function", "function": {"name": f"f{i}", "parameters": {"properties": properties}}} for i in range(3)]
    response = server.post("/v1/chat/completions", messages=[{"role": "user", "content": "x"}], tools=tools)
    assert response.status_code == 400 and "256 patterns" in response.json()["message"]


def test_costly_schemas_do_not_hold_up_plain_requests(server: TestServer) -> None:
    properties = {f"k{i}" * 20: {"type": "string", "format": "uri"} for i in range(250)}
    body = {"prompt": "[[x]]", "max_tokens": 1, "response_format": format_of({"type": "object", "properties": properties})}
    answers: list[int] = []
    posts = [threading.Thread(target=lambda: answers.append(server.post("/v1/completions", **body).status_code)) for _ in range(4)]
    started = time.monotonic()
    for post in posts:
        post.start()
    assert server.post("/v1/completions", prompt="[[hello]]").json()["choices"][0]["text"] == "hello"
    plain_s = time.monotonic() - started
    for post in posts:
        post.join()
    assert answers == [200] * 4 and plain_s <= time.monotonic() - started


def test_the_vocabulary_of_grammars_is_ready_before_the_first_request(make_server: Callable[..., TestServer]) -> None:
    server = make_server()
    compiler = server.app._targets.base.planner._compiler
    assert compiler is not None and "_ll_tokenizer" not in vars(compiler)
    server.app.warm_up()
    while "_ll_tokenizer" not in vars(compiler):
        time.sleep(0.001)
    make_server(with_tokenizer=False).app.warm_up()
