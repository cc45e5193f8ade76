"""One HTTP request and its answer, whole or in parts. Bytes only: what they mean is for `http` and `app`.

    method, path, header() ─▶ await arrival(), body() ─▶ answer(status, body)   or   begin(status) · write(data) … write(data, last=True)

Nothing waits on writing: what the client has not taken stands in the connection's buffer. A listener hears when that is full and when it is
empty again, and when the client is gone; a client that hardly takes anything for `write_stall_s` counts as gone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

from .._core import TokenStream, TokenStreams, header_value
from .errors import ApiError, bad_request, unavailable
from .running import Waiter

if TYPE_CHECKING:
    from .protocol import HttpServer

Headers = Iterable[tuple[bytes, bytes]]


class ClientGone(Exception):
    """The client closed the connection or stopped reading; there is nobody to answer."""


class Listener(Protocol):
    """Who produces the answer."""

    def abort(self, failure: Exception) -> None: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...


class Exchange:
    """`method` and `path` (decoded, without the query) as text. `num_body_bytes`: once there is a `body`."""

    __slots__ = (
        "_body",
        "_failure",
        "_fields",
        "_has_stalled",
        "_id",
        "_is_begun",
        "_listener",
        "_server",
        "_waiter",
        "is_gone",
        "method",
        "num_body_bytes",
        "path",
    )

    def __init__(self, server: HttpServer, request_id: int, method: str, path: str, fields: bytes, body: bytes | str | None) -> None:
        """`fields`: the header, see `header`. `body`: whole, None while it is incomplete, or what is wrong with it."""
        self.method, self.path = method, path
        self._server, self._id = server, request_id
        self._fields = fields
        self._body = body
        self._listener: Listener | None = None
        self._failure: Exception | None = None  # that ends the request
        self._waiter: Waiter | None = None
        self._is_begun = self._has_stalled = self.is_gone = False
        self.num_body_bytes = 0

    def header(self, name: bytes) -> bytes | None:
        """The value of the first header with this lower-case name."""
        return header_value(self._fields, name)

    # The request -------------------------------------------------------------------------------------------------------------------------

    def arrival(self) -> Waiter | None:
        """To be awaited before `body` is asked for; None: it need not be."""
        if self._body is None and self._failure is None:
            self._body = self._server.core.take_body(self._id)
            if self._body is None:
                self._waiter = Waiter()
        return self._waiter

    def body(self) -> bytes:
        """The whole body, once it has arrived. Raises ApiError 400, 408, 413 or 503, ClientGone when the client has left."""
        if self._failure is not None:
            raise self._failure
        if not isinstance(self._body, bytes):
            raise self._body_failure()
        body, self._body = self._body, b""
        self.num_body_bytes = len(body)
        return body

    def _body_failure(self) -> ApiError:
        limits = self._server.limits
        if self._body == "too_large":
            what = f"the body is larger than {limits.max_body_bytes} bytes"
            return ApiError(413, what, code="body_too_large", headers=(("connection", "close"),))
        if self._body == "too_many":
            return unavailable("the bodies of the requests in progress are too large together; send this one again later")
        if self._body == "timed_out":
            return ApiError(408, f"the body did not arrive within {limits.body_timeout_s} s", code="body_timeout")
        return bad_request("the body is not framed as HTTP requires", code="invalid_http")

    def end_body(self, body: bytes | str) -> None:
        """Called by the server with a body that was awaited, or with what is wrong with it."""
        self._body = body
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None:
            self._waiter.wake()

    # The answer --------------------------------------------------------------------------------------------------------------------------

    def answer(self, status: int, body: bytes, content_type: bytes, headers: Headers = ()) -> None:
        """The whole answer at once. One that was begun cannot be answered otherwise any more: the connection is cut off."""
        self._server.core.answer(self._id, status, content_type, body, _lines(headers))
        if not self._is_begun:
            self._end()

    def begin(self, status: int, headers: Headers) -> None:
        """The head of an answer in parts; it goes out with the first part."""
        self._is_begun = True
        self._server.core.begin(self._id, status, _lines(headers))

    def write(self, data: bytes, *, last: bool = False) -> None:
        """The next part of an answer that was begun. Raises ClientGone."""
        if self.is_gone:
            raise ClientGone
        if self._server.core.write(self._id, data, last):
            self.set_stalled(True)
        if last:
            self._end()

    def token_stream(self, streams: TokenStreams, engine_request_ids: list[int], num_samples: int) -> TokenStream:
        """Writes parts of an answer that was begun: tokens of the requests, as an engine gives them to `streams`."""
        return TokenStream(streams, self._server.core, self._id, engine_request_ids, num_samples)

    def _end(self) -> None:
        self._server.exchanges.pop(self._id, None)

    def listen(self, listener: Listener | None) -> None:
        """From now on `listener` hears of the client."""
        self._listener = listener
        if listener is None:
            return
        if self._failure is not None:
            listener.abort(self._failure)
        elif self._has_stalled:
            listener.pause()

    def set_stalled(self, has_stalled: bool) -> None:
        """Called when the buffer of the connection is full, and when it is empty again."""
        self._has_stalled = has_stalled
        if self._listener is not None:
            (self._listener.pause if has_stalled else self._listener.resume)()

    def leave(self) -> None:
        """Called by the server when the client is gone."""
        self.is_gone = True
        self._end()
        self.abort(ClientGone())

    def abort(self, failure: Exception) -> None:
        """Ends the request with `failure`, the first one counts: whoever works for it, now or later, is told."""
        self._failure = self._failure or failure
        self._wake()
        if self._listener is not None:
            self._listener.abort(failure)


def _lines(headers: Headers) -> bytes:
    return b"".join([b"%b: %b\r\n" % field for field in headers]) if headers else b""
