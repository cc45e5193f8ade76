"""Failures as HTTP answers: a status, and a body that every client of this API reads.

    {"type": "error", "error": {"message", "type", "param", "code"}, "message": …, "detail": [{"loc", "msg", "type"}]}

`error` is OpenAI's form, the top-level `message` and the `detail` list are what other clients of container APIs look for. The text comes
from here and from values that the client sent; it never holds paths, addresses or tracebacks.

    400 not JSON, a missing, unknown or mistyped field      413 body too large       429 queue full (Retry-After)
    404 no such route or model                              422 value out of bounds  503 starting, draining (Retry-After)
"""

from __future__ import annotations

from typing import Any

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "unavailable_error",
    504: "timeout_error",
}


class ApiError(Exception):
    """Ends a request with `status`. `param` is the request field to blame, `code` a stable word for programs."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, headers: tuple[tuple[str, str], ...] = ()
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = headers

    def body(self) -> dict[str, Any]:
        kind = _TYPES.get(self.status, "invalid_request_error")
        body: dict[str, Any] = {
            "type": "error",
            "error": {"message": self.message, "type": kind, "param": self.param, "code": self.code},
            "message": self.message,
        }
        if self.param is not None:
            body["detail"] = [{"loc": ["body", self.param], "msg": self.message, "type": self.code or kind}]
        return body


def bad_request(message: str, param: str | None = None, code: str = "invalid_request") -> ApiError:
    return ApiError(400, message, param=param, code=code)


def invalid_value(message: str, param: str | None, code: str = "invalid_value") -> ApiError:
    return ApiError(422, message, param=param, code=code)


def queue_full(retry_after_s: int) -> ApiError:
    return ApiError(
        429,
        "the server is busy: as many requests wait as the queue holds; send the request again later",
        code="queue_full",
        headers=(("retry-after", str(retry_after_s)),),
    )


def unavailable(message: str, retry_after_s: int = 1) -> ApiError:
    return ApiError(503, message, code="unavailable", headers=(("retry-after", str(retry_after_s)),))
