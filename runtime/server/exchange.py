"""One HTTP request and its answer, whole or in parts. Bytes only: what they mean is for `http` and `app`.

    headers, path ─▶ await body() ─▶ answer(status, body)   or   begin(status) · write(data) … write(data, last=True)

Nothing waits on writing: what the client has not taken stands in the connection's buffer. A listener hears when that is full and when it is
empty again, and when the client is gone; a client that hardly takes anything for `write_stall_s` counts as gone.
"""

from __future__ import annotations

import asyncio
import http
from collections.abc import Iterable
from typing import Protocol

from .errors import ApiError
from .limits import Limits
from .running import Waiter

_REASONS = {status.value: status.phrase.encode() for status in http.HTTPStatus}
Headers = Iterable[tuple[bytes, bytes]]


class ClientGone(Exception):
    """The client closed the connection or stopped reading; there is nobody to answer."""


class Listener(Protocol):
    """Who produces the answer."""

    def abort(self, failure: Exception) -> None: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...


class Connection(Protocol):
    """What an exchange needs of its connection; `protocol.HttpConnection` is one."""

    def write(self, data: bytes) -> None: ...

    def finish(self, exchange: Exchange, *, keeps_alive: bool) -> None: ...

    def abort(self) -> None: ...

    @property
    def has_stalled(self) -> bool: ...

    def date(self) -> bytes: ...


class Exchange:
    """`method` and `path` (decoded, without the query) as text; header names in lower case."""

    __slots__ = (
        "_body_failure",
        "_connection",
        "_failure",
        "_head",
        "_is_begun",
        "_is_body_whole",
        "_is_chunked",
        "_keeps_alive",
        "_limits",
        "_listener",
        "_num_body_bytes",
        "_parts",
        "_waiter",
        "headers",
        "is_answered",
        "is_gone",
        "method",
        "path",
    )

    def __init__(
        self,
        connection: Connection,
        limits: Limits,
        method: str,
        path: str,
        headers: list[tuple[bytes, bytes]],
        *,
        keeps_alive: bool,
        is_chunked: bool,
    ) -> None:
        """`keeps_alive`: whether another request may follow. `is_chunked`: whether the client understands chunks (HTTP/1.1)."""
        self.method, self.path, self.headers = method, path, headers
        self._listener: Listener | None = None
        self._failure: Exception | None = None  # that ends the request
        self.is_answered = self.is_gone = False
        self._connection, self._limits = connection, limits
        self._keeps_alive, self._is_chunked = keeps_alive, is_chunked
        self._parts: list[bytes] = []
        self._num_body_bytes = 0
        self._is_body_whole = False
        self._body_failure: Exception | None = None
        self._waiter: Waiter | None = None
        self._is_begun = False
        self._head = b""

    def header(self, name: bytes) -> bytes | None:
        """The value of a header by its lower-case name."""
        for key, value in self.headers:
            if key == name:
                return value
        return None

    # The request -------------------------------------------------------------------------------------------------------------------------

    async def body(self) -> bytes:
        """The whole body. Raises ApiError 400, 408 or 413, ClientGone when the client leaves."""
        declared = self.header(b"content-length")
        if declared is not None and int(declared) > self._limits.max_body_bytes:
            raise self._too_large()
        if not self._is_body_whole and self._body_failure is None:
            await self._wait_for_body()
        if self._body_failure is not None:
            raise self._body_failure
        parts, self._parts = self._parts, []
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _wait_for_body(self) -> None:
        if (self.header(b"expect") or b"").lower() == b"100-continue":
            self._connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        timer = asyncio.get_running_loop().call_later(self._limits.body_timeout_s, self._expire)
        self._waiter = Waiter()
        await self._waiter
        timer.cancel()

    def _expire(self) -> None:
        self.fail_body(ApiError(408, f"the body did not arrive within {self._limits.body_timeout_s} s", code="body_timeout"))
        self.wake()

    def add_body(self, part: bytes) -> None:
        """Called by the connection. What nobody will read is dropped."""
        if self.is_answered or self._body_failure is not None:
            return
        self._num_body_bytes += len(part)
        if self._num_body_bytes > self._limits.max_body_bytes:
            self.fail_body(self._too_large())
        else:
            self._parts.append(part)

    def end_body(self) -> None:
        """Called by the connection."""
        self._is_body_whole = True

    def fail_body(self, failure: Exception) -> None:
        """Called by the connection: the rest of the body will not come."""
        self._parts.clear()
        self._body_failure = self._body_failure or failure

    def wake(self) -> None:
        """Called by the connection when the bytes at hand are parsed: who waits for the body goes on if it is whole or will never be."""
        if self._waiter is not None and (self._is_body_whole or self._body_failure is not None):
            self._waiter.wake()

    @property
    def is_body_whole(self) -> bool:
        return self._is_body_whole

    def _too_large(self) -> ApiError:
        what = f"the body is larger than {self._limits.max_body_bytes} bytes"
        return ApiError(413, what, code="body_too_large", headers=(("connection", "close"),))

    # The answer --------------------------------------------------------------------------------------------------------------------------

    def answer(self, status: int, body: bytes, content_type: bytes, headers: Headers = ()) -> None:
        """The whole answer at once. One that was begun cannot be answered otherwise any more: the connection is cut off."""
        if self._is_begun:
            self._connection.abort()
            return
        fields = [(b"content-type", content_type), (b"content-length", b"%d" % len(body)), *headers]
        self._is_begun = True
        self._finish(self._head_of(status, fields) + (b"" if self.method == "HEAD" else body))

    def begin(self, status: int, headers: Headers) -> None:
        """The head of an answer in parts; it goes out with the first part."""
        self._is_begun = True
        fields = list(headers)
        if self._is_chunked:
            fields.append((b"transfer-encoding", b"chunked"))
        else:
            self._keeps_alive = False  # the end of the connection is the end of the answer
        self._head = self._head_of(status, fields)

    def write(self, data: bytes, *, last: bool = False) -> None:
        """The next part of an answer that was begun. Raises ClientGone."""
        if self.is_gone:
            raise ClientGone
        if self._is_chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data) if data else b""
            if last:
                data += b"0\r\n\r\n"
        if self._head:
            data, self._head = self._head + data, b""
        if last:
            self._finish(data)
        else:
            self._connection.write(data)

    def listen(self, listener: Listener | None) -> None:
        """From now on `listener` hears of the client."""
        self._listener = listener
        if listener is None:
            return
        if self._failure is not None:
            listener.abort(self._failure)
        elif self._connection.has_stalled:
            listener.pause()

    def set_stalled(self, has_stalled: bool) -> None:
        """Called by the connection when its buffer is full, and when it is empty again."""
        if self._listener is not None:
            (self._listener.pause if has_stalled else self._listener.resume)()

    def leave(self) -> None:
        """Called by the connection when it is lost."""
        self.is_gone = True
        self.abort(ClientGone())

    def abort(self, failure: Exception) -> None:
        """Ends the request with `failure`, the first one counts: whoever works for it, now or later, is told."""
        self._failure = self._failure or failure
        self.fail_body(failure)
        self.wake()
        if self._listener is not None:
            self._listener.abort(failure)

    def _head_of(self, status: int, fields: list[tuple[bytes, bytes]]) -> bytes:
        if not self._keeps_alive:
            fields.append((b"connection", b"close"))
        lines = b"".join([b"%b: %b\r\n" % field for field in fields])
        self._keeps_alive = self._keeps_alive and (b"connection", b"close") not in fields
        return b"HTTP/1.1 %d %b\r\ndate: %b\r\n%b\r\n" % (status, _REASONS[status], self._connection.date(), lines)

    def _finish(self, data: bytes) -> None:
        self.is_answered = True
        if not self.is_gone:
            self._connection.write(data)
            self._connection.finish(self, keeps_alive=self._keeps_alive)
