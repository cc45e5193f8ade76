"""Small HTTP clients: one on asyncio that holds thousands of streams in one process and can leave in the middle of an answer, and one on
plain sockets that is quick enough to time a server."""

from __future__ import annotations

import asyncio
import json
import selectors
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit


@dataclass
class Answer:
    """Of one request. `body` is what came until the end, or until the client left; times are of `time.monotonic`."""

    status: int
    body: bytes
    left: bool
    sent_s: float
    ended_s: float = field(default_factory=time.monotonic)

    @property
    def took_s(self) -> float:
        return self.ended_s - self.sent_s

    def events(self) -> list[dict[str, Any]]:
        """The JSON of each server-sent event. Raises AssertionError when the stream does not end in [DONE]."""
        frames = self.body.split(b"\n\n")
        assert frames[-2:] == [b"data: [DONE]", b""], f"the stream ends in {self.body[-200:]!r}"
        return [json.loads(frame.removeprefix(b"data: ")) for frame in frames[:-2]]

    def text(self) -> str:
        return "".join(choice["text"] for event in self.events() for choice in event["choices"])


async def post(url: str, path: str, body: dict[str, Any], *, leave_after_bytes: int | None = None) -> Answer:
    """One request on a connection of its own. The client closes it once it has `leave_after_bytes` of the answer's body."""
    async with _connection(url) as (reader, writer):
        sent_s = time.monotonic()
        writer.write(_request(path, body))
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        received = bytearray()
        async for part in _body_parts(reader, is_chunked="transfer-encoding: chunked" in head):
            received += part
            if leave_after_bytes is not None and len(received) >= leave_after_bytes:
                return Answer(_status(head), bytes(received), True, sent_s)
    return Answer(_status(head), bytes(received), False, sent_s)


def send(url: str, path: str, body: dict[str, Any]) -> socket.socket:
    """A connection that has sent a request and reads nothing yet."""
    address = urlsplit(url)
    sock = socket.create_connection((address.hostname, address.port))
    sock.sendall(_request(path, body))
    return sock


def refusal_times_s(url: str, path: str, body: dict[str, Any], num_clients: int) -> list[float]:
    """Seconds from each of `num_clients` requests, sent at once on connections of their own, to the 429 that must be its answer."""
    sent_s: dict[socket.socket, float] = {}
    times_s = []
    with selectors.DefaultSelector() as selector:
        for _ in range(num_clients):
            sock = send(url, path, body)
            sent_s[sock] = time.monotonic()
            selector.register(sock, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select():
                assert isinstance(key.fileobj, socket.socket)
                times_s.append(time.monotonic() - sent_s[key.fileobj])
                assert key.fileobj.recv(1 << 16).startswith(b"HTTP/1.1 429 "), "the server was not full"
                selector.unregister(key.fileobj)
                key.fileobj.close()
    return times_s


def _request(path: str, body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    return f"POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(data)}\r\n\r\n".encode() + data


def _status(head: str) -> int:
    return int(head.split(" ", 2)[1])


@asynccontextmanager
async def _connection(url: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def _body_parts(reader: asyncio.StreamReader, *, is_chunked: bool) -> AsyncIterator[bytes]:
    if not is_chunked:
        while part := await reader.read(1 << 16):
            yield part
        return
    while size := int(await reader.readline(), 16):
        yield (await reader.readexactly(size + 2))[:-2]
