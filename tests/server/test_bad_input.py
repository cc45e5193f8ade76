"""Every kind of bad request gets its status and a message that names the field, and the server goes on."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from .conftest import TestServer

USER = [{"role": "user", "content": "hi"}]


def message(content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}]}


def check(response: httpx.Response, status: int, param: str | None) -> None:
    assert response.status_code == status, response.text
    body = response.json()
    assert body["error"]["param"] == param and body["error"]["message"] == body["message"] and body["error"]["type"]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[1]", b'"x"', b'{"prompt": NaN}', b'{"temperature": 1e999}', b'{"prompt": "\xff"}', b"[" * 100_000]
)
def test_a_body_that_is_not_a_json_object_is_400(server: TestServer, body: bytes) -> None:
    for path in ("/v1/completions", "/v1/chat/completions", "/v1/tokenize", "/v1/detokenize"):
        check(server.client.post(path, content=body), 400, None)


@pytest.mark.parametrize(
    ("status", "param", "body"),
    [
        (400, "prompt", {}),
        (400, "prompt", {"prompt": "a", "tokens": [1]}),
        (400, "prompt", {"prompt": {"a": 1}}),
        (400, "prompt", {"prompt": ["a", 1]}),
        (400, "tokens", {"tokens": ["a"]}),
        (400, "temperature", {"prompt": "a", "temperature": "hot"}),
        (400, "max_tokens", {"prompt": "a", "max_tokens": 1.5}),
        (400, "n", {"prompt": "a", "n": True}),
        (400, "stream", {"prompt": "a", "stream": "yes"}),
        (400, "stop", {"prompt": "a", "stop": [1]}),
        (400, "logit_bias", {"prompt": "a", "logit_bias": {"1": "x"}}),
        (400, "temprature", {"prompt": "a", "temprature": 1}),
        (400, "stop_tokens", {"prompt": "a", "stop_tokens": [{"token": [1]}]}),
        (422, "temperature", {"prompt": "a", "temperature": -1}),
        (422, "top_p", {"prompt": "a", "top_p": 1.5}),
        (422, "top_k", {"prompt": "a", "top_k": -1}),
        (422, "min_p", {"prompt": "a", "min_p": 2}),
        (422, "repetition_penalty", {"prompt": "a", "repetition_penalty": 0}),
        (422, "frequency_penalty", {"prompt": "a", "frequency_penalty": 3}),
        (422, "max_tokens", {"prompt": "a", "max_tokens": -1}),
        (422, "max_tokens", {"prompt": "a", "max_tokens": 0}),
        (422, "max_tokens", {"prompt": "a", "max_tokens": 10**30}),
        (422, "max_total_tokens", {"prompt": "a", "max_total_tokens": 10**9}),
        (422, "max_total_tokens", {"prompt": "a", "max_total_tokens": 10, "max_tokens": 3}),
        (422, "min_tokens", {"prompt": "a", "min_tokens": 10, "max_tokens": 3}),
        (422, "prompt", {"prompt": "hello world " * 300}),
        (422, "prompt", {"prompt": "x" * 1_000_000}),
        (422, "prompt", {"prompt": ""}),
        (422, "prompt", {"prompt": []}),
        (422, "tokens", {"tokens": []}),
        (422, "tokens", {"tokens": [1, 10**6]}),
        (422, "tokens", {"tokens": [-1]}),
        (422, "n", {"prompt": "a", "n": 65}),
        (422, "n", {"prompt": "a", "n": 0}),
        (422, "seed", {"prompt": "a", "seed": [1, 2]}),
        (422, "seed", {"prompt": "a", "seed": -1}),
        (422, "logprobs", {"prompt": "a", "logprobs": 21}),
        (422, "stop", {"prompt": "a", "stop": ["x"] * 17}),
        (422, "stop", {"prompt": "a", "stop": [""]}),
        (422, "stop", {"prompt": "a", "stop": "x" * 257}),
        (422, "logit_bias", {"prompt": "a", "logit_bias": {"x": 1}}),
        (422, "logit_bias", {"prompt": "a", "logit_bias": {"1000000": 1}}),
        (422, "eos_token", {"prompt": "a", "eos_token": [10**6]}),
        (422, "bad_words", {"prompt": "a", "bad_words": [""]}),
        (422, "stop_tokens", {"prompt": "a", "stop_tokens": [{"tokens": []}]}),
        (422, "stream_options", {"prompt": "a", "stream_options": {"include_usage": True}}),
        (422, "echo", {"prompt": "a", "echo": True, "logprobs": 1}),
        (422, "best_of", {"prompt": "a", "best_of": 2}),
        (422, "num_beams", {"prompt": "a", "num_beams": 4}),
        (400, "response_format", {"prompt": "a", "response_format": {"type": "jsonobject"}}),
        (404, "model", {"prompt": "a", "model": "other"}),
    ],
)
def test_completions_refuse_bad_fields_by_name(server: TestServer, status: int, param: str, body: dict[str, Any]) -> None:
    check(server.post("/v1/completions", **body), status, param)


@pytest.mark.parametrize(
    ("status", "param", "body"),
    [
        (400, "messages", {}),
        (400, "messages", {"messages": "hi"}),
        (400, "messages", {"messages": [1]}),
        (400, "messages", {"messages": [{"content": "x"}]}),
        (400, "messages", {"messages": [{"role": "user"}]}),
        (400, "messages", {"messages": [{"role": "user", "content": 1}]}),
        (400, "messages", {"messages": [{"role": "user", "content": "x", "colour": "red"}]}),
        (400, "messages", {"messages": [{"role": "tool", "content": "x"}]}),
        (400, "messages", message([{"type": "text"}])),
        (400, "messages", {"messages": [{"role": "assistant", "tool_calls": [1]}]}),
        (400, "logprobs", {"messages": USER, "logprobs": 3}),
        (400, "prompt", {"messages": USER, "prompt": "x"}),
        (422, "messages", {"messages": []}),
        (422, "messages", {"messages": [{"role": "robot", "content": "x"}]}),
        (422, "messages", message([{"type": "image_url", "image_url": {"url": "data:,"}}])),
        (422, "messages", message("hello world " * 300)),
        (422, "top_logprobs", {"messages": USER, "top_logprobs": 3}),
        (422, "top_logprobs", {"messages": USER, "logprobs": True, "top_logprobs": 21}),
        (422, "max_completion_tokens", {"messages": USER, "max_completion_tokens": 10**6}),
        (400, "tools", {"messages": USER, "tools": [{"type": "function"}]}),
        (422, "tool_choice", {"messages": USER, "tool_choice": "required"}),
        (400, "response_format", {"messages": USER, "response_format": {"type": "jsonobject"}}),
        (422, "chat_template_kwargs", {"messages": USER, "chat_template_kwargs": {"messages": []}}),
    ],
)
def test_chat_refuses_bad_fields_by_name(server: TestServer, status: int, param: str, body: dict[str, Any]) -> None:
    check(server.post("/v1/chat/completions", **body), status, param)


def test_an_unknown_field_is_refused_with_the_nearest_name(server: TestServer) -> None:
    assert "did you mean 'temperature'" in server.post("/v1/completions", prompt="a", temprature=1).json()["message"]


@pytest.mark.parametrize("body", [{"tokens": [10**6]}, {"tokens": [-1]}])
def test_detokenize_refuses_token_ids_out_of_range(server: TestServer, body: dict[str, Any]) -> None:
    check(server.post("/v1/detokenize", **body), 422, "tokens")


def test_unknown_paths_and_methods_are_404_and_405(server: TestServer) -> None:
    check(server.post("/v1/nothing"), 404, None)
    response = server.client.get("/v1/completions")
    check(response, 405, None)
    assert response.headers["allow"] == "POST"


def test_a_body_over_the_limit_is_413(make_server: Callable[..., TestServer]) -> None:
    from friendli_runtime.server.limits import Limits

    server = make_server(limits=Limits(max_body_bytes=1000))
    check(server.post("/v1/completions", prompt="x" * 1001), 413, None)
    chunks = (b"x" * 100 for _ in range(20))
    check(httpx.post(server.url + "/v1/completions", content=chunks), 413, None)


def test_compressed_bodies_are_415(server: TestServer) -> None:
    check(server.client.post("/v1/completions", content=b"x", headers={"content-encoding": "gzip"}), 415, None)
