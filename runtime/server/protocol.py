"""HTTP/1.1 on a socket: connections, their requests in order, and bounds on what comes before a body.

    bytes ─httptools─▶ head ─▶ Exchange ─▶ run(app(exchange))           a second request on a connection waits for the first one's answer

A head (request line and headers) has a size, a number of fields and a time to arrive; a connection that sends nothing is closed, as is one
that the client half-closes. What exceeds a bound gets 431 or 408, what is not HTTP 400, and the connection is closed. One connection too
many closes the one that is idle longest, or gets 503 when a request runs on each. Nothing is upgraded.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable, Coroutine
from email.utils import formatdate
from http import HTTPStatus
from math import inf
from time import time
from typing import Any, cast
from urllib.parse import unquote

import httptools
import msgspec

from .errors import ApiError, bad_request, unavailable
from .exchange import Exchange
from .limits import Limits
from .running import run

App = Callable[[Exchange], Coroutine[Any, Any, None]]
_BACKLOG = 1024
_ACCEPTED_AT_ONCE = 16
"""Connections, before those that are there already get their turn again: a burst of new ones does not hold up the others."""
_BUFFER_BYTES = 64 * 2**10
_MIN_PROGRESS_BYTES = 16 * 2**10
"""What a client has to take in `write_stall_s` when the buffer of its connection is full."""
_CLOSING_S = 0.1
"""What connections get to send the rest of their answers when the server stops."""
_REFUSALS = (
    bad_request("this is not an HTTP request", code="invalid_http"),
    ApiError(408, "the request head did not arrive in time", code="head_timeout"),
    ApiError(431, "the request head is too large", code="head_too_large"),
    unavailable("too many connections"),
)


def _answer_of(error: ApiError) -> bytes:
    """An answer after which the connection is closed."""
    body = msgspec.json.encode(error.body())
    fields = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close", **dict(error.headers)}
    head = f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\n" + "".join(
        f"{name}: {value}\r\n" for name, value in fields.items()
    )
    return head.encode() + b"\r\n" + body


_ANSWERS = {error.status: _answer_of(error) for error in _REFUSALS}


class HttpServer:
    """Serves an app on a socket that is already listening. `refuse` may answer a request in place of the app, and tells whether."""

    def __init__(self, app: App, limits: Limits, sock: socket.socket, refuse: Callable[[Exchange], bool] = lambda exchange: False) -> None:
        self.app, self.limits = app, limits
        self.refuse = refuse
        self.connections: set[HttpConnection] = set()
        self.idle: dict[HttpConnection, None] = {}  # those without a request; the longest first
        self.buffer = memoryview(bytearray(_BUFFER_BYTES))
        """Where every connection receives: what is in it is parsed at once."""
        self.is_stopping = False
        self._socket = sock
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopped = asyncio.Event()
        self._date_s, self._date = 0, b""

    async def run_on_socket(self) -> None:
        """Until `stop`."""
        self._loop = asyncio.get_running_loop()
        if self.is_stopping:
            return
        listener = await self._loop.create_server(lambda: HttpConnection(self), sock=self._socket, backlog=_ACCEPTED_AT_ONCE)
        self._socket.listen(_BACKLOG)  # asyncio has one number for both
        await self._stopped.wait()
        listener.close()
        for connection in list(self.connections):
            connection.close_when_idle()
        deadline = self._loop.time() + _CLOSING_S
        while self.connections and self._loop.time() < deadline:
            await asyncio.sleep(_CLOSING_S / 10)

    def stop(self) -> None:
        """Takes no more connections and closes the idle ones. From any thread."""
        self.is_stopping = True
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stopped.set)

    def add(self, connection: HttpConnection) -> None:
        """A new one; when they are too many, in place of another."""
        if len(self.connections) >= self.limits.max_connections and self.idle:
            oldest = next(iter(self.idle))
            del self.idle[oldest]
            oldest.give_way()
        self.connections.add(connection)
        self.idle[connection] = None

    def date(self) -> bytes:
        """Now, as the header has it."""
        now_s = int(time())
        if now_s != self._date_s:
            self._date_s, self._date = now_s, formatdate(now_s, usegmt=True).encode()
        return self._date

    def start(self, exchange: Exchange) -> None:
        assert self._loop is not None
        run(self.app(exchange), self._loop)


class HttpConnection(asyncio.BufferedProtocol):
    """One connection. The parser calls the `on_` methods; the public rest is for the Exchange and the server."""

    def __init__(self, server: HttpServer) -> None:
        self._server, self._limits = server, server.limits
        self._loop = asyncio.get_running_loop()
        self._parser: httptools.HttpRequestParser | None = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._is_fresh = True  # no request so far
        self._in_head = False
        self._num_head_bytes = self._num_packet_bytes = 0
        self._new: Exchange | None = None  # starts when the bytes at hand are parsed
        self._reading: Exchange | None = None
        self._answering: Exchange | None = None
        self._waiting: deque[Exchange] = deque()
        self._deadline = inf
        self._timer: asyncio.TimerHandle | None = None
        self._has_stalled = False
        self._num_seen_bytes = 0  # that were unsent when the buffer was looked at last

    # The transport -----------------------------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._server.add(self)
        self._set_deadline(self._limits.header_timeout_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        self._server.idle.pop(self, None)
        self._transport = self._parser = None
        if self._timer is not None:
            self._timer.cancel()
        if self._answering is not None:
            self._answering.leave()
        self._answering = self._reading = self._new = None
        self._waiting.clear()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._server.buffer

    def buffer_updated(self, num_bytes: int) -> None:
        if self._parser is None:
            return
        self._num_head_bytes += num_bytes
        self._num_packet_bytes = num_bytes
        reading = self._reading
        try:
            self._parser.feed_data(self._server.buffer[:num_bytes])
        except httptools.HttpParserUpgrade:
            self._parser = None  # answered as an ordinary request; what follows is another protocol
        except httptools.HttpParserError:
            self._read_no_more(400)
        else:
            self._check_head()
        if reading is not None:
            reading.wake()
        if self._new is not None:
            exchange, self._new = self._new, None
            self._server.start(exchange)

    def _check_head(self) -> None:
        if self._num_head_bytes > self._limits.max_header_bytes:
            self._read_no_more(431)
        elif self._in_head and self._answering is None and self._deadline == inf:
            self._set_deadline(self._limits.header_timeout_s)

    def pause_writing(self) -> None:
        self._has_stalled = True
        self._num_seen_bytes = self.num_unsent_bytes
        self._set_deadline(self._limits.write_stall_s)
        if self._answering is not None:
            self._answering.set_stalled(True)

    def resume_writing(self) -> None:
        self._has_stalled = False
        self._deadline = inf
        if self._answering is None:
            self._go_on()
        else:
            self._answering.set_stalled(False)

    # The parser --------------------------------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._url, self._headers, self._in_head = b"", [], True
        if self._answering is None and not self._is_fresh and not self._has_stalled:
            self._deadline = inf  # was that of an idle connection; `_check_head` sets one if the head is not whole

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # else it is a trailer, which nobody reads
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self._parser is None:
            return
        self._in_head = self._is_fresh = False
        num_bytes, self._num_head_bytes = self._num_head_bytes, 0
        if len(self._headers) > self._limits.max_headers or self._is_head_too_large(num_bytes + self._num_packet_bytes):
            self._read_no_more(431)
            return
        if len(self._server.connections) > self._limits.max_connections:
            self._read_no_more(503)
            return
        is_current = self._parser.get_http_version() == "1.1"
        keeps_alive = is_current and self._parser.should_keep_alive() and not self._parser.should_upgrade()
        method = self._parser.get_method().decode("ascii")
        self._reading = Exchange(self, self._limits, method, self._path(), self._headers, keeps_alive=keeps_alive, is_chunked=is_current)
        if self._parser.should_upgrade() and self._has_body():
            self._reading.fail_body(bad_request("a request for another protocol has a body; leave out 'upgrade'", code="invalid_http"))
        if self._answering is None and not self._has_stalled:
            self._deadline = inf
            self._answering = self._reading
            self._server.idle.pop(self, None)
            if not self._server.refuse(self._reading):
                self._new = self._reading
        else:
            self._waiting.append(self._reading)
            if self._transport is not None:
                self._transport.pause_reading()

    def on_body(self, body: bytes) -> None:
        self._num_head_bytes = 0
        if self._reading is not None:
            self._reading.add_body(body)

    def on_message_complete(self) -> None:
        self._num_head_bytes = 0
        if self._reading is not None:
            self._reading.end_body()
            self._reading = None

    def _is_head_too_large(self, num_bytes: int) -> bool:
        """`num_bytes`: no less than the head has; most often enough to know."""
        most = self._limits.max_header_bytes
        return num_bytes > most and len(self._url) + sum([len(name) + len(value) for name, value in self._headers]) > most

    def _has_body(self) -> bool:
        return any(name == b"transfer-encoding" or (name == b"content-length" and value != b"0") for name, value in self._headers)

    def _path(self) -> str:
        """The decoded path; a URL with a host, as proxies get it, has one as well."""
        path = httptools.parse_url(self._url).path or b"/"
        return unquote(path.decode("ascii", "replace")) if b"%" in path else path.decode("ascii", "replace")

    # The exchange ------------------------------------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def finish(self, exchange: Exchange, *, keeps_alive: bool) -> None:
        """The answer is written: the next request, if there is one, or the end."""
        self._answering = None
        if self._transport is None or not keeps_alive or self._server.is_stopping or (self._parser is None and not self._waiting):
            self._close()
        else:
            self._go_on()

    @property
    def num_unsent_bytes(self) -> int:
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    @property
    def has_stalled(self) -> bool:
        return self._has_stalled

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def date(self) -> bytes:
        return self._server.date()

    def close_when_idle(self) -> None:
        """For a server that stops; an answer in progress is the last one."""
        if self._answering is None:
            self._close()

    def give_way(self) -> None:
        """To a new connection. No request is lost: who has begun to send one is told."""
        if self._in_head:
            self._refuse(503)
        else:
            self._close()

    # Bounds ------------------------------------------------------------------------------------------------------------------------------

    def _go_on(self) -> None:
        """Nothing is being answered. Without a request that waits, the client has a limited time, also for a body that nobody wants."""
        if self._transport is None or self._transport.is_closing():
            return
        if self._has_stalled:  # who does not read gets no further answer
            self._transport.pause_reading()
        elif self._waiting:
            self._deadline = inf
            self._answering = self._waiting.popleft()
            if not self._waiting:
                self._transport.resume_reading()
            self._loop.call_soon(self._server.start, self._answering)  # not at once: many short requests would nest
        else:
            self._transport.resume_reading()
            self._server.idle[self] = None
            self._set_deadline(self._limits.header_timeout_s if self._in_head else self._limits.keep_alive_s)

    def _read_no_more(self, status: int) -> None:
        """The rest of what the client sends cannot be read; what it has asked before is still answered, else it gets `status`."""
        self._parser = None
        if self._reading is not None and not self._reading.is_body_whole:
            self._reading.fail_body(bad_request("the body is not framed as HTTP requires", code="invalid_http"))
        if self._answering is None:
            self._refuse(status)

    def _refuse(self, status: int) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        self._transport.write(_ANSWERS[status])
        self._close()

    def _close(self) -> None:
        """After what is written has gone out, or could not for `write_stall_s`."""
        self._parser = None
        if self._transport is not None:
            self._transport.close()
            self._num_seen_bytes = self.num_unsent_bytes
            self._set_deadline(self._limits.write_stall_s)

    def _set_deadline(self, seconds: float) -> None:
        """One timer for a connection: it is moved only to an earlier time; when it comes too early it is set again."""
        self._deadline = self._loop.time() + seconds
        if self._timer is None or self._timer.when() > self._deadline:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(self._deadline, self._on_timer)

    def _check_progress(self) -> None:
        """A client that reads slowly is waited for, one that hardly reads is not."""
        if self.num_unsent_bytes + _MIN_PROGRESS_BYTES > self._num_seen_bytes:
            self.abort()
            return
        self._num_seen_bytes = self.num_unsent_bytes
        self._set_deadline(self._limits.write_stall_s)

    def _on_timer(self) -> None:
        self._timer = None
        if self._loop.time() < self._deadline:
            if self._deadline != inf:
                self._timer = self._loop.call_at(self._deadline, self._on_timer)
        elif self._transport is None:
            return
        elif self._has_stalled or self._transport.is_closing():
            self._check_progress()
        elif self._in_head or self._is_fresh:
            self._refuse(408)
        else:
            self._close()
