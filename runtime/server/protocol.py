"""HTTP on a listening socket: the connections are C++ (csrc/http/server.h), what is asked on them are exchanges of an app.

    event loop ─readable─▶ core.poll() ─▶ request ─▶ Exchange ─▶ run(app(exchange))        body · resumed · gone ─▶ its Exchange

Receiving, parsing, deadlines, bounds and their refusals, and sending what was left cost one call per turn of the loop, however many
connections they are for. Only HTTP/1.1 and 1.0; TLS and HTTP/2 belong to a proxy in front.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any

import msgspec

from .._core import HttpServer as Connections
from .errors import ApiError, bad_request, unavailable
from .exchange import Exchange
from .limits import Limits
from .running import run

App = Callable[[Exchange], Coroutine[Any, Any, None]]
_BACKLOG = 1024
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


class HttpServer:
    """Serves an app on a socket that is already listening. `refuse` may answer a request in place of the app, and tells whether."""

    def __init__(self, app: App, limits: Limits, sock: socket.socket, refuse: Callable[[Exchange], bool] = lambda exchange: False) -> None:
        self.app, self.limits = app, limits
        self.refuse = refuse
        self.exchanges: dict[int, Exchange] = {}
        """Those whose answer is not complete, by request id."""
        sock.setblocking(False)
        sock.listen(_BACKLOG)
        self._socket = sock
        self.core = Connections(sock.fileno(), limits, {error.status: _answer_of(error) for error in _REFUSALS})
        self._is_stopping = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopped = asyncio.Event()

    async def run_on_socket(self) -> None:
        """Until `stop`."""
        self._loop = asyncio.get_running_loop()
        if self._is_stopping:
            return
        self._loop.add_reader(self.core.fd, self._poll)
        await self._stopped.wait()
        self.core.stop()
        self._socket.close()
        deadline = self._loop.time() + _CLOSING_S
        while self.core.num_connections and self._loop.time() < deadline:
            await asyncio.sleep(_CLOSING_S / 10)
        self._loop.remove_reader(self.core.fd)

    def stop(self) -> None:
        """Takes no more connections and closes the idle ones. From any thread."""
        self._is_stopping = True
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stopped.set)

    def _poll(self) -> None:
        for kind, request_id, value in self.core.poll():
            try:
                self._handle(kind, request_id, value)
            except Exception as error:  # of one request; the others of this turn go on
                assert self._loop is not None
                self._loop.call_exception_handler({"message": "a request failed outside of the application", "exception": error})
                self.core.abort(request_id)

    def _handle(self, kind: str, request_id: int, value: Any) -> None:
        if kind == "request":
            exchange = self.exchanges[request_id] = Exchange(self, request_id, *value)
            if not self.refuse(exchange):
                assert self._loop is not None
                run(self.app(exchange), self._loop)
        elif (known := self.exchanges.get(request_id)) is not None:
            if kind == "body":
                known.end_body(value)
            elif kind == "gone":
                known.leave()
            else:
                known.set_stalled(False)
