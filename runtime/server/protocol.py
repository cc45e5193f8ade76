"""The HTTP/1.1 protocol of the ASGI server, with bounds on what comes before the body.

A head (request line and headers) has a size, a number of fields and a time to arrive; a connection that sends nothing is closed. What
exceeds a bound gets 431 or 408 and the connection is closed. Head and body of an answer go out in one system call.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Any

from uvicorn import Config, Server
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .limits import Limits

_ANSWERS = {408: b"the request head did not arrive in time", 431: b"the request head is too large"}
_HEAD_BEGIN = b"HTTP/1.1 "
_REASONS = {408: b"Request Timeout", 431: b"Request Header Fields Too Large"}


def bounded_protocol(limits: Limits) -> type[asyncio.Protocol]:
    """The protocol class for `uvicorn.Config(http=…)`."""

    class BoundedHttpProtocol(HttpToolsProtocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(_GatheringTransport(transport, self.loop))  # type: ignore[arg-type]
            self._head_bytes = 0
            self._in_head = True
            self._head_timer: asyncio.TimerHandle | None = self.loop.call_later(limits.header_timeout_s, self._refuse, 408)

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timer()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            self._head_bytes += len(data)
            if self.parser is not None:
                super().data_received(data)
            if self._in_head and self._head_bytes > limits.max_header_bytes:
                self._refuse(431)

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._in_head = True
            if self._head_timer is None:
                self._head_timer = self.loop.call_later(limits.header_timeout_s, self._refuse, 408)

        def on_headers_complete(self) -> None:
            self._stop_timer()
            self._in_head = False
            self._head_bytes = 0
            num_bytes = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
            if len(self.headers) > limits.max_headers or num_bytes > limits.max_header_bytes:
                self._refuse(431)
            else:
                super().on_headers_complete()

        def on_message_complete(self) -> None:
            self._head_bytes = 0
            if not self.transport.is_closing():
                super().on_message_complete()

        def on_body(self, body: bytes) -> None:
            if not self.transport.is_closing():
                super().on_body(body)

        def _stop_timer(self) -> None:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None

        def _refuse(self, status: int) -> None:
            self._stop_timer()
            if not self.transport.is_closing():
                body = _ANSWERS[status]
                head = b"HTTP/1.1 %d %s\r\ncontent-type: text/plain\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
                self.transport.write(head % (status, _REASONS[status], len(body)) + body)
                self.transport.close()

    return BoundedHttpProtocol


class _GatheringTransport:
    """A transport that holds the head of an answer back until its body comes, in the same turn of the event loop."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._head = b""

    def write(self, data: bytes) -> None:
        if data.startswith(_HEAD_BEGIN) and not self._head:
            self._head = data
            self._loop.call_soon(self._flush)
        else:
            head, self._head = self._head, b""
            self._transport.write(head + data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._head:
            head, self._head = self._head, b""
            self._transport.write(head)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class HttpServer(Server):
    """Serves an app on a socket that is already listening. Leaves signals to the caller."""

    def __init__(self, app: Any, limits: Limits, sock: socket.socket) -> None:
        super().__init__(_config(app, limits))
        self._socket = sock

    async def run_on_socket(self) -> None:
        """Until `stop`."""
        await self.serve([self._socket])

    def stop(self) -> None:
        self.should_exit = self.force_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _config(app: Any, limits: Limits) -> Config:
    """A configuration that adds nothing of its own: no logging set-up, no proxy headers, no lifespan."""
    return Config(
        app,
        http=bounded_protocol(limits),
        ws="none",
        lifespan="off",
        loop="asyncio",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=limits.max_connections,
        timeout_keep_alive=limits.keep_alive_s,
        backlog=1024,
    )
