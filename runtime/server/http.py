"""What exchanges carry: a JSON object in, with its limits, JSON or a stream of server-sent events out.

Nothing here knows what the values mean; which fields a request has is said in `fields`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import msgspec

from .._core import has_unique_names
from .errors import ApiError, bad_request
from .exchange import Exchange
from .fields import Request, decode_request, strict_decoder
from .limits import Limits

JSON = b"application/json"
_EVENT_STREAM = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)
encode_json = msgspec.json.Encoder().encode
_STRINGS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"\s*+(:?)', re.DOTALL)
"""Every string of a JSON text; the group is the colon behind those that are names."""
_STRUCTURE = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[\]{}]', re.DOTALL)


async def read_request(exchange: Exchange, limits: Limits, kind: type[Request]) -> Request:
    """The body as a request. Raises ApiError 400, 408, 413, 415 or 422, ClientGone when the client leaves."""
    if exchange.header(b"content-encoding") not in (None, b"identity"):
        raise ApiError(415, "compressed bodies are not accepted; send the JSON as it is", code="unsupported_encoding")
    if (arrival := exchange.arrival()) is not None:
        await arrival
    return parse_request(exchange.body(), limits, kind)


def parse_request(body: bytes, limits: Limits, kind: type[Request]) -> Request:
    """`body` as a request, in one step if nothing is odd about it, else in steps that find out what is. Raises ApiError 400 or 422."""
    if has_unique_names(body, limits.max_json_depth, limits.max_json_containers):
        try:
            request: Request = strict_decoder(kind).decode(body)
            return request
        except (msgspec.DecodeError, UnicodeDecodeError):
            pass
    return decode_request(parse_json_object(body, limits), kind)


def parse_json_object(body: bytes, limits: Limits) -> dict[str, Any]:
    """`body` as a JSON object. Raises ApiError 400."""
    value = parse_json(body, limits, "the body")
    if not isinstance(value, dict):
        raise bad_request("the body is not a JSON object", code="invalid_json")
    is_unique = has_unique_names(body, limits.max_json_depth, limits.max_json_containers)
    if not is_unique and _STRINGS.findall(body).count(b":") != _num_names(value):
        raise bad_request("an object of the body has two fields of the same name", code="duplicate_field")
    return value


def parse_json(text: bytes, limits: Limits, what: str, param: str | None = None) -> Any:
    """`text`, which is called `what`. Strict: no NaN, no infinities, bounded depth. Raises ApiError 400."""
    _check_structure(text, limits, what, param)
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise bad_request(f"{what} is not valid JSON: {error}", param, code="invalid_json") from None


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


def _check_structure(body: bytes, limits: Limits, what: str, param: str | None) -> None:
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
                raise bad_request(f"{what} nests deeper than {limits.max_json_depth} levels", param, code="invalid_json")
        elif char in b"]}":
            depth -= 1
        if num_containers > limits.max_json_containers:
            raise bad_request(f"{what} holds more than {limits.max_json_containers} arrays and objects", param, code="invalid_json")


def send_body(exchange: Exchange, status: int, body: bytes, content_type: bytes = JSON, headers: Iterable[tuple[str, str]] = ()) -> None:
    """A whole answer at once."""
    exchange.answer(status, body, content_type, [(name.encode(), value.encode()) for name, value in headers])


def send_json(exchange: Exchange, value: Any, status: int = 200, headers: Iterable[tuple[str, str]] = ()) -> None:
    send_body(exchange, status, encode_json(value), headers=headers)


def send_error(exchange: Exchange, error: ApiError) -> None:
    send_json(exchange, error.body(), error.status, error.headers)


def named_event(value: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (value["type"].encode(), encode_json(value))


def event_around(text: str, value: dict[str, Any], *, named: bool = False) -> tuple[bytes, bytes]:
    """What stands before and after the string `text`, which `value` holds once, where `value` is sent as an event."""
    event = named_event(value) if named else b"data: %b\n\n" % encode_json(value)
    before, _, after = event.partition(encode_json(text))
    return before, after


class EventStream:
    """Server-sent events. Headers go out with the first event, so that what fails before it is still an ordinary error answer.

    Every method raises ClientGone when nobody reads any more.
    """

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self.is_open = False

    def send(self, values: list[Any]) -> None:
        """Each value as one `data:` frame, all in one write; bytes are frames already."""
        self._write(b"".join([value if type(value) is bytes else b"data: %b\n\n" % encode_json(value) for value in values]))

    def send_named(self, values: Iterable[dict[str, Any]]) -> None:
        """Each value as an event named by its `type`."""
        self._write(b"".join([named_event(value) for value in values]))

    def finish(self, *, with_done: bool = True) -> None:
        self._write(b"data: [DONE]\n\n" if with_done else b"", last=True)

    def fail(self, error: ApiError, *, named: bool = False) -> None:
        """The error as the last frame; no [DONE] follows, so that no client takes the answer for complete."""
        self._write((b"event: error\n" if named else b"") + b"data: " + encode_json(error.body()) + b"\n\n", last=True)

    def _write(self, data: bytes, *, last: bool = False) -> None:
        if not self.is_open:
            self.is_open = True
            self._exchange.begin(200, _EVENT_STREAM)
        self._exchange.write(data, last=last)
