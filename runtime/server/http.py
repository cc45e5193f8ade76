"""HTTP at the level of ASGI messages: a body in with its limits, JSON or a stream of server-sent events out.

Nothing here knows what the bytes mean. A reader that does not take its bytes for `write_stall_s` counts as gone.
"""

from __future__ import annotations

import asyncio
import re
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable
from typing import Any, TypeVar

import msgspec

from .errors import ApiError, bad_request
from .limits import Limits

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Scope = dict[str, Any]
Result = TypeVar("Result")

JSON = b"application/json"
encode_json = msgspec.json.Encoder().encode
_STRINGS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"\s*+(:?)', re.DOTALL)
"""Every string of a JSON text; the group is the colon behind those that are names."""
_STRUCTURE = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[\]{}]', re.DOTALL)


class ClientGone(Exception):
    """The client closed the connection or stopped reading; there is nobody to answer."""


def header(scope: Scope, name: bytes) -> bytes | None:
    """The value of a header by its lower-case name."""
    return next((value for key, value in scope["headers"] if key == name), None)


async def within(seconds: float, step: Coroutine[Any, Any, Result]) -> Result:
    """`await step`, for at most `seconds`. A step that need not wait costs no timer. Raises TimeoutError."""
    try:
        waits_for = step.send(None)
    except StopIteration as done:
        return done.value
    try:
        async with asyncio.timeout(seconds):
            return await _resumed(step, waits_for)
    finally:
        step.close()


@types.coroutine
def _resumed(step: Coroutine[Any, Any, Result], waits_for: Any) -> Generator[Any, Any, Result]:
    """Goes on with a coroutine that waits for `waits_for`."""
    yield waits_for
    return (yield from step)


async def read_json(scope: Scope, receive: Receive, limits: Limits) -> dict[str, Any]:
    """The JSON object of the body. Raises ApiError 400, 408, 413 or 415, ClientGone when the client leaves."""
    if header(scope, b"content-encoding") not in (None, b"identity"):
        raise ApiError(415, "compressed bodies are not accepted; send the JSON as it is", code="unsupported_encoding")
    try:
        body = await within(limits.body_timeout_s, _read_body(scope, receive, limits.max_body_bytes))
    except TimeoutError:
        raise ApiError(408, f"the body did not arrive within {limits.body_timeout_s} s", code="body_timeout") from None
    return parse_json_object(body, limits)


async def _read_body(scope: Scope, receive: Receive, max_bytes: int) -> bytes:
    too_large = ApiError(413, f"the body is larger than {max_bytes} bytes", code="body_too_large", headers=(("connection", "close"),))
    declared = header(scope, b"content-length")
    if declared is not None and declared.isdigit() and int(declared) > max_bytes:
        raise too_large
    parts: list[bytes] = []
    num_bytes = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        part = message.get("body", b"")
        num_bytes += len(part)
        if num_bytes > max_bytes:
            raise too_large
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


def parse_json_object(body: bytes, limits: Limits) -> dict[str, Any]:
    """`body` as a JSON object. Strict: no NaN, no infinities, bounded depth. Raises ApiError 400."""
    _check_structure(body, limits)
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise bad_request(f"the body is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(value, dict):
        raise bad_request("the body is not a JSON object", code="invalid_json")
    num_names = _STRINGS.findall(body).count(b":")
    if num_names != _num_names(value):
        raise bad_request("an object of the body has two fields of the same name", code="duplicate_field")
    return value


def _num_names(value: Any) -> int:
    """Fields of all objects in `value`; fewer than its text has names when a name came twice."""
    total = 0
    stack = [value]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            total += len(node)
            stack += node.values()
        elif isinstance(node, list) and node and not isinstance(node[0], int):
            stack += node
        elif isinstance(node, list):
            stack += (item for item in node if isinstance(item, dict | list))
    return total


def _check_structure(body: bytes, limits: Limits) -> None:
    """Bounds the depth and the number of arrays and objects before anything is built from them."""
    if body.count(b"[") + body.count(b"{") <= limits.max_json_depth:
        return
    depth = num_containers = 0
    for match in _STRUCTURE.finditer(body):
        char = match[0]
        if char in b"[{":
            depth += 1
            num_containers += 1
            if depth > limits.max_json_depth:
                raise bad_request(f"the body nests deeper than {limits.max_json_depth} levels", code="invalid_json")
        elif char in b"]}":
            depth -= 1
        if num_containers > limits.max_json_containers:
            raise bad_request(f"the body holds more than {limits.max_json_containers} arrays and objects", code="invalid_json")


async def send_body(send: Send, status: int, body: bytes, content_type: bytes = JSON, headers: Iterable[tuple[str, str]] = ()) -> None:
    """A whole answer at once."""
    fields = [(b"content-type", content_type), (b"content-length", str(len(body)).encode())]
    fields += [(name.encode(), value.encode()) for name, value in headers]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": body})


async def send_json(send: Send, value: Any, status: int = 200, headers: Iterable[tuple[str, str]] = ()) -> None:
    await send_body(send, status, encode_json(value), headers=headers)


async def send_error(send: Send, error: ApiError) -> None:
    await send_json(send, error.body(), error.status, error.headers)


class EventStream:
    """Server-sent events. Headers go out with the first event, so that what fails before it is still an ordinary error answer."""

    def __init__(self, send: Send, limits: Limits) -> None:
        self._send = send
        self._stall_s = limits.write_stall_s
        self.is_open = False

    async def send(self, values: Iterable[Any]) -> None:
        """Each value as one `data:` frame, all in one write; bytes are JSON already. Raises ClientGone when the client does not take it."""
        texts = [value if type(value) is bytes else encode_json(value) for value in values]
        await self._write(b"data: " + b"\n\ndata: ".join(texts) + b"\n\n")

    async def send_named(self, values: Iterable[dict[str, Any]]) -> None:
        """Each value as an event named by its `type`."""
        await self._write(b"".join(b"event: " + value["type"].encode() + b"\ndata: " + encode_json(value) + b"\n\n" for value in values))

    async def finish(self, *, with_done: bool = True) -> None:
        await self._write(b"data: [DONE]\n\n" if with_done else b"", last=True)

    async def fail(self, error: ApiError, *, named: bool = False) -> None:
        """The error as the last frame; no [DONE] follows, so that no client takes the answer for complete."""
        await self._write((b"event: error\n" if named else b"") + b"data: " + encode_json(error.body()) + b"\n\n", last=True)

    async def _write(self, data: bytes, *, last: bool = False) -> None:
        try:
            await within(self._stall_s, self._send_part(data, last=last))
        except (TimeoutError, OSError):
            raise ClientGone from None

    async def _send_part(self, data: bytes, *, last: bool) -> None:
        if not self.is_open:
            self.is_open = True
            headers = [
                (b"content-type", b"text/event-stream; charset=utf-8"),
                (b"cache-control", b"no-cache"),
                (b"x-accel-buffering", b"no"),
            ]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        await self._send({"type": "http.response.body", "body": data, "more_body": not last})
