"""What makes the front end cheap changes nothing that clients see."""

import asyncio
import json
from typing import Any

import httpx
import pytest
from friendli_runtime.server.http import within
from friendli_runtime.server.protocol import _GatheringTransport

from .conftest import TestServer
from .test_completions import frames


class Transport:
    """Keeps what is written, in pieces."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.is_closed = False

    def write(self, data: bytes) -> None:
        assert not self.is_closed
        self.pieces.append(data)

    def close(self) -> None:
        self.is_closed = True

    def get_extra_info(self, name: str) -> str:
        return name


def pieces_of(*writes: bytes, closes: bool = False) -> list[bytes]:
    async def scenario() -> list[bytes]:
        inner = Transport()
        transport: Any = _GatheringTransport(inner, asyncio.get_running_loop())  # type: ignore[arg-type]
        for data in writes:
            transport.write(data)
        if closes:
            transport.close()
        else:
            await asyncio.sleep(0)
        assert transport.get_extra_info("x") == "x" and inner.is_closed == closes
        return inner.pieces

    return asyncio.run(scenario())


HEAD = b"HTTP/1.1 200 OK\r\n\r\n"


def test_head_and_body_go_out_together_and_nothing_is_lost() -> None:
    assert pieces_of(HEAD, b"body", b"more") == [HEAD + b"body", b"more"]
    assert pieces_of(b"body", HEAD) == [b"body", HEAD]
    assert pieces_of(HEAD, HEAD) == [HEAD + HEAD]
    assert pieces_of(HEAD, closes=True) == [HEAD]
    assert pieces_of(HEAD, b"body", HEAD, closes=True) == [HEAD + b"body", HEAD]


def test_a_bounded_step_gives_its_result_and_its_errors() -> None:
    async def step(delay_s: float | None, error: Exception | None = None) -> int:
        if delay_s is not None:
            await asyncio.sleep(delay_s)
            await asyncio.sleep(0.001)
        if error is not None:
            raise error
        return 7

    async def scenario() -> None:
        assert [await within(30, step(delay_s)) for delay_s in (None, 0, 0.001)] == [7, 7, 7]
        for delay_s in (None, 0, 0.001):
            with pytest.raises(KeyError):
                await within(30, step(delay_s, KeyError()))
        with pytest.raises(TimeoutError):
            await within(0.001, step(30))

    asyncio.run(scenario())


def test_a_bounded_step_that_is_cancelled_ends() -> None:
    ended: list[str] = []

    async def step() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("step")

    async def scenario() -> None:
        task = asyncio.create_task(within(30, step()))
        await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())
    assert ended == ["step"]


def test_every_chunk_of_a_stream_has_the_same_fields(server: TestServer) -> None:
    text = 'quotes " and \\ and \n and 🙂 and \u2028 stay'
    response = server.post("/v1/chat/completions", messages=[{"role": "user", "content": f"[[{text}]]"}], stream=True, n=3)
    chunks = frames(response)
    for choice_idx in range(3):
        own = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == choice_idx]
        assert "".join(choice["delta"].get("content", "") for choice in own) == text
        assert all(set(choice) == {"index", "delta", "finish_reason", "logprobs"} for choice in own)
        assert own[0]["delta"]["role"] == "assistant" and own[-1]["finish_reason"] == "stop"
    assert len({json.dumps({**chunk, "choices": []}) for chunk in chunks}) == 1


def test_answers_on_one_connection_stay_apart(server: TestServer) -> None:
    with httpx.Client(base_url=server.url, limits=httpx.Limits(max_connections=1)) as client:
        for word in ("a", "bb", "ccc"):
            answer = client.post("/v1/completions", json={"prompt": f"[[{word}]]"})
            assert answer.json()["choices"][0]["text"] == word
            assert client.get("/nothing").status_code == 404
            streamed = client.post("/v1/completions", json={"prompt": f"[[{word}]]", "stream": True})
            assert "".join(frame["choices"][0]["text"] for frame in frames(streamed)) == word
