"""An HTTP client on plain sockets that asks hundreds of things at once, can leave in the middle of an answer, and is quick enough to time a
server with which it shares its cores."""

from __future__ import annotations

import json
import selectors
import socket
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit


@dataclass
class Answer:
    """Of one request: what came until the end, or until the client left. Times are of `time.monotonic`."""

    sent_s: float
    left: bool = False
    first_byte_s: float | None = None
    received: bytearray = field(default_factory=bytearray)

    @property
    def status(self) -> int:
        """0 when the server was gone before it answered."""
        return int(self.received[9:12]) if self.received else 0

    @property
    def body(self) -> bytes:
        head, _, rest = bytes(self.received).partition(b"\r\n\r\n")
        return b"".join(_chunks(rest)) if b"\r\ntransfer-encoding: chunked" in head.lower() else rest

    def events(self) -> list[dict[str, Any]]:
        """The JSON of each server-sent event. Raises AssertionError when the stream does not end in [DONE]."""
        frames = self.body.split(b"\n\n")
        assert frames[-2:] == [b"data: [DONE]", b""], f"the stream ends in {self.body[-200:]!r}"
        return [json.loads(frame.removeprefix(b"data: ")) for frame in frames[:-2]]

    def text(self) -> str:
        return "".join(choice["text"] for event in self.events() for choice in event["choices"])


def ask(
    url: str, path: str, bodies: Iterable[dict[str, Any]], leave_after: Sequence[int | None] = (), *, interval_s: float = 0
) -> list[Answer]:
    """All requests, `interval_s` after each other or at once, each on a connection of its own; the answers in the same order.

    `leave_after`: for each request the bytes of its answer after which the client closes the connection, None to stay.
    Raises OSError when the server is gone.
    """
    data = [_request(path, body) for body in bodies]
    answers: list[Answer] = []
    with selectors.DefaultSelector() as selector:
        try:
            next_s = time.monotonic()
            for request, limit in zip(data, leave_after or [None] * len(data), strict=True):
                _receive_ready(selector, 0)  # or an early answer would seem as late as the last request
                while (wait_s := next_s - time.monotonic()) > 0:
                    _receive_ready(selector, wait_s)
                sock = _sent(url, request)
                answers.append(Answer(time.monotonic()))
                selector.register(sock, selectors.EVENT_READ, (answers[-1], limit))
                next_s += interval_s
            while selector.get_map():
                _receive_ready(selector)
        finally:
            for key in list(selector.get_map().values()):
                key.fileobj.close()  # type: ignore[union-attr]
    return answers


def send(url: str, path: str, body: dict[str, Any]) -> socket.socket:
    """A connection that has sent a request and reads nothing yet."""
    return _sent(url, _request(path, body))


def _receive_ready(selector: selectors.BaseSelector, timeout_s: float | None = None) -> None:
    for key, _ in selector.select(timeout_s):
        if not _receive(key):
            selector.unregister(key.fileobj)
            key.fileobj.close()  # type: ignore[union-attr]


def _receive(key: selectors.SelectorKey) -> bool:
    """Whether more is wanted."""
    answer, limit = key.data
    part = key.fileobj.recv(1 << 16)  # type: ignore[union-attr]
    answer.first_byte_s = answer.first_byte_s or time.monotonic()
    answer.received += part
    answer.left = bool(part) and limit is not None and len(answer.received) >= limit
    return bool(part) and not answer.left


def _sent(url: str, request: bytes) -> socket.socket:
    address = urlsplit(url)
    sock = socket.create_connection((address.hostname, address.port))
    sock.sendall(request)
    return sock


def _request(path: str, body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    return f"POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(data)}\r\n\r\n".encode() + data


def _chunks(data: bytes) -> Iterable[bytes]:
    """Those of a chunked body that are whole."""
    start = 0
    while (end := data.find(b"\r\n", start)) >= 0 and (size := int(data[start:end], 16)):
        yield data[end + 2 : end + 2 + size]
        start = end + 2 + size + 2
