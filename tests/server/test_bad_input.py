"""Every kind of bad request gets its status and a message that names the field, and the server goes on."""

import contextlib
import json
import select
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import httpx
import pytest
from friendli_runtime.server.limits import Limits

from .conftest import TestServer, start
from .test_response_format import babbling_engine


@pytest.fixture(scope="module")
def babbling() -> Iterator[TestServer]:
    running, stop = start(make_engine=babbling_engine)
    yield running
    stop()


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
        (422, "max_tokens", {"prompt": "a", "max_tokens": 0}),
        (422, "max_tokens", {"prompt": "a", "echo": False, "max_tokens": 0, "logprobs": 1}),
        (422, "max_tokens", {"prompt": "a", "echo": True, "max_tokens": -1}),
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
        (422, "max_completion_tokens", {"messages": USER, "max_completion_tokens": 5, "max_tokens": 6}),
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
    server = make_server(limits=Limits(max_body_bytes=1000))
    check(server.post("/v1/completions", prompt="x" * 1001), 413, None)
    chunks = (b"x" * 100 for _ in range(20))
    check(httpx.post(server.url + "/v1/completions", content=chunks), 413, None)


def test_more_logprobs_of_prompts_than_an_answer_can_hold_are_refused(make_server: Callable[..., TestServer]) -> None:
    server = make_server(limits=Limits(max_prompt_logprobs=50))
    given = {"tokens": [[7] * 10] * 3, "logprobs": 1, "max_tokens": 1}
    check(server.post("/v1/completions", **given, echo=True), 422, "logprobs")
    check(server.post("/v1/completions", **{**given, "tokens": [7] * 10}, echo=True, n=3), 422, "logprobs")
    assert server.post("/v1/completions", **given).status_code == 200
    assert server.post("/v1/completions", **{**given, "tokens": [[7] * 10] * 2}, echo=True).status_code == 200


def test_compressed_bodies_are_415(server: TestServer) -> None:
    check(server.client.post("/v1/completions", content=b"x", headers={"content-encoding": "gzip"}), 415, None)


def nested(opening: str, inside: str, closing: str, depth: int) -> bytes:
    return (opening * depth + inside + closing * depth).encode()


@pytest.mark.parametrize(
    "value",
    [nested("[", "1", "]", 100_000), nested('{"a":', "1", "}", 100_000), b"[" * 100_000, b"[{}," * 60_000 + b"1" + b"]" * 60_000],
    ids=["lists", "objects", "without end", "both"],
)
@pytest.mark.parametrize("field", ["prompt", "response_format", "unknown"])
def test_json_of_100000_levels_is_400_in_every_field(server: TestServer, field: str, value: bytes) -> None:
    check(server.client.post("/v1/completions", content=b'{"%b": %b}' % (field.encode(), value)), 400, None)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/messages", "/v1/responses", "/v1/tokenize"])
@pytest.mark.parametrize("text", [rb"\ud800", rb"\udc00\ud800", rb"a\ud83dz", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90\x80\x80"])
def test_lone_surrogates_and_broken_utf8_are_400(server: TestServer, path: str, text: bytes) -> None:
    body = {"prompt": "%", "messages": [{"role": "user", "content": "%"}], "input": "%"}
    names = {"/v1/completions": "prompt", "/v1/tokenize": "prompt", "/v1/responses": "input"}
    given = {names.get(path, "messages"): body[names.get(path, "messages")], **({"max_tokens": 1} if path == "/v1/messages" else {})}
    response = server.client.post(path, content=json.dumps(given).encode().replace(b"%", text))
    check(response, 400, None)


def test_a_million_strings_are_refused_soon(make_server: Callable[..., TestServer]) -> None:
    server = make_server(limits=Limits(max_body_bytes=2**24))
    many = ["x"] * 1_000_000
    check(server.post("/v1/completions", prompt="a", stop=many), 422, "stop")
    check(server.post("/v1/completions", prompt="a", bad_words=many[:100_000]), 422, "bad_words")
    check(server.post("/v1/completions", prompt=many[:100_000]), 422, "prompt")
    check(server.post("/v1/completions", prompt="a", seed=many[:100_000]), 400, "seed")
    check(server.post("/v1/completions", prompt="a", logit_bias={str(i): 1 for i in range(100_000)}), 422, "logit_bias")
    check(server.post("/v1/completions", prompt="a", stop_tokens=[{"tokens": [1]}] * 100_000), 400, None)
    check(server.post("/v1/chat/completions", messages=[{"role": "user", "content": "a"}] * 90_000), 422, "messages")


def test_100_mb_are_refused_before_they_are_read(server: TestServer) -> None:
    head = "POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
    with closing(connected(server)) as sock:
        sock.sendall(f"{head}content-length: 100000000\r\n\r\n".encode())
        assert sock.recv(100).startswith(b"HTTP/1.1 413")
    with closing(connected(server)) as sock:
        sock.sendall(f"{head}transfer-encoding: chunked\r\n\r\n".encode())
        num_sent = 0
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while num_sent < 100_000_000 and not select.select([sock], [], [], 0)[0]:
                sock.sendall(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
                num_sent += 0x10000
        assert num_sent < 50_000_000, "the rest was not taken"
    assert server.post("/v1/completions", prompt="[[fine]]").status_code == 200


def connected(server: TestServer) -> socket.socket:
    url = httpx.URL(server.url)
    return socket.create_connection((url.host, url.port), timeout=30)


def test_the_context_is_exceeded_by_one(server: TestServer) -> None:
    limit = server.engine.max_context_len
    fits = server.post("/v1/completions", tokens=[5] * (limit - 1), max_tokens=1, ignore_eos=True)
    assert fits.status_code == 200
    check(server.post("/v1/completions", tokens=[5] * (limit - 1), max_tokens=2), 422, "max_tokens")
    check(server.post("/v1/completions", tokens=[5] * limit), 422, "tokens")
    check(server.post("/v1/completions", tokens=[5] * (limit + 1)), 422, "tokens")
    check(server.post("/v1/completions", tokens=[5, server.engine.vocab_size]), 422, "tokens")
    assert server.post("/v1/completions", tokens=[server.engine.vocab_size - 1], max_tokens=1).status_code == 200


@pytest.mark.parametrize(
    "pattern",
    [
        "(a*)*b" * 200,
        "((a{0,1000}){0,1000}){0,1000}",
        "(" * 2000 + "a" + ")" * 2000,
        "a{1000000}",
        "[\ud7ff-\ue000]" * 900,
        "(?=a)b",
        "(a|aa)+" * 500,
    ],
)
def test_a_pattern_that_would_cost_much_is_answered_or_refused(server: TestServer, babbling: TestServer, pattern: str) -> None:
    for one in (server, babbling):
        response = one.post("/v1/completions", prompt="a", max_tokens=3, response_format={"type": "regex", "schema": pattern})
        if response.status_code != 200:
            assert response.status_code in (400, 422)  # 422: it began well
            check(response, response.status_code, "response_format")
        assert one.post("/v1/completions", prompt="a", max_tokens=3).status_code == 200


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
        {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
        {"type": "array", "minItems": 10**9},
        {"type": "object", "minProperties": 10**400},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
        {"type": "integer", "minimum": 3, "maximum": 2},
        {"type": "string", "minLength": 3, "maxLength": 2},
        {"type": "array", "minItems": 2, "maxItems": 1},
        {"enum": []},
        False,
        {"allOf": [{"type": "string"}, {"type": "integer"}]},
        {"type": "string", "minLength": 10**12},
        {"$ref": "http://example.com/schema.json"},
        {"$ref": "file:///etc/passwd"},
    ],
)
def test_a_schema_without_end_or_without_values_is_400(server: TestServer, babbling: TestServer, schema: Any) -> None:
    given = {"type": "json_schema", "json_schema": {"schema": schema}}
    for one in (server, babbling):
        check(one.post("/v1/completions", prompt="a", max_tokens=3, response_format=given), 400, "response_format")
        assert one.post("/v1/completions", prompt="a", max_tokens=3).status_code == 200


@pytest.mark.parametrize(
    "name", ["", " ", "a" * 65, "a b", "a\n", "a\u0000", "../x", 'a"}', "{{ 7 * 7 }}", "é", "<tool_call>", "[/INST]", "a.b"]
)
def test_a_hostile_name_of_a_tool_is_422(hermes: TestServer, name: str) -> None:
    tool = {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}}}
    check(hermes.post("/v1/chat/completions", messages=USER, tools=[tool]), 422, "tools")


def test_template_code_in_what_a_client_sends_stays_text(hermes: TestServer) -> None:
    text = "[[{{ 7 * 7 }}{% for i in range(10**9) %}{% endfor %}]]"
    answer = hermes.post("/v1/chat/completions", messages=[{"role": "user", "content": text}]).json()["choices"][0]["message"]["content"]
    assert answer == text[2:-2]
    check(hermes.post("/v1/chat/completions", messages=USER, chat_template=text), 400, "chat_template")


SCHEMA = {
    "type": "object",
    "properties": {
        "a": {"type": "string", "format": "date", "minLength": 1, "maxLength": 30},
        "b": {"type": "array", "items": {"enum": [1, "x"]}, "minItems": 0, "maxItems": 3},
        "c": {"anyOf": [{"$ref": "#/$defs/d"}, {"const": 3}]},
        "e": {"type": "object", "patternProperties": {"^x": {"type": "integer", "minimum": 1}}, "additionalProperties": False},
    },
    "required": ["a"],
    "$defs": {"d": {"type": "number", "multipleOf": 2, "exclusiveMaximum": 9, "description": "d"}},
}
CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
CONTENT = [{"type": "text", "text": "[[hi]]"}]
WHOLE_BODIES: list[tuple[str, dict[str, Any]]] = [
    (
        "/v1/chat/completions",
        {
            "messages": [
                {"role": "user", "content": CONTENT, "name": "n"},
                {"role": "assistant", "content": "x", "reasoning_content": "r", "tool_calls": [CALL]},
                {"role": "tool", "tool_call_id": "call_1", "content": "y"},
            ],
            "tools": [
                {
                    "type": "function",
                    "function": {
                        "name": "f",
                        "description": "d",
                        "strict": True,
                        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
                    },
                }
            ],
            "tool_choice": {"type": "function", "function": {"name": "f"}},
            "stream_options": {"include_usage": True},
            "stream": True,
            "logit_bias": {"40": 1.0},
            "stop": ["a"],
            "chat_template_kwargs": {"a": 1},
            "max_tokens": 5,
        },
    ),
    (
        "/v1/chat/completions",
        {"messages": USER, "max_tokens": 5, "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}},
    ),
    (
        "/v1/completions",
        {"prompt": ["[[hi]]"], "max_tokens": 5, "bad_word_tokens": [{"tokens": [1]}], "response_format": {"type": "regex", "schema": "a"}},
    ),
    (
        "/v1/messages",
        {
            "system": CONTENT,
            "messages": [
                {"role": "user", "content": CONTENT},
                {
                    "role": "assistant",
                    "content": [{"type": "thinking", "thinking": "t"}, {"type": "tool_use", "id": "i", "name": "f", "input": {}}],
                },
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "i", "content": CONTENT}]},
            ],
            "tools": [{"name": "f", "description": "d", "input_schema": {"type": "object", "properties": {}}}],
            "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": True},
            "thinking": {"type": "enabled", "budget_tokens": 4},
            "output_config": {"effort": "low"},
            "stop_sequences": ["a"],
            "max_tokens": 8,
        },
    ),
    (
        "/v1/responses",
        {
            "input": [
                {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "[[hi]]"}]},
                {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c", "output": "o"},
                {"type": "reasoning", "summary": []},
            ],
            "tools": [{"type": "function", "name": "f", "description": "d", "parameters": {"type": "object"}}],
            "tool_choice": {"type": "function", "name": "f"},
            "text": {"verbosity": "medium"},
            "reasoning": {"effort": "low", "summary": "auto"},
            "max_output_tokens": 5,
        },
    ),
    (
        "/v1/messages",
        {"messages": USER, "max_tokens": 5, "output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}},
    ),
    (
        "/v1/responses",
        {"input": "a", "max_output_tokens": 5, "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}}},
    ),
]


def with_one_odd_value(value: Any) -> Iterator[Any]:
    """`value` with each of its parts, at any depth, replaced by values of every type."""
    for key, part in list(value.items() if isinstance(value, dict) else enumerate(value)):
        for other in (None, True, -1.5, "x", [], {"a": []}, 10**30):
            copy = value.copy()
            copy[key] = other
            yield copy
        if isinstance(part, dict | list):
            for changed in with_one_odd_value(part):
                copy = value.copy()
                copy[key] = changed
                yield copy


@pytest.mark.parametrize(("path", "body"), WHOLE_BODIES)
def test_a_value_of_another_type_at_any_depth_is_answered_or_refused(hermes: TestServer, path: str, body: dict[str, Any]) -> None:
    assert hermes.post(path, **body).status_code == 200
    statuses = set()
    for changed in with_one_odd_value(body):
        response = hermes.post(path, **changed)
        assert response.status_code in (200, 400, 404, 422), (changed, response.text)
        statuses.add(response.status_code)
    assert {200, 400, 422} <= statuses


@pytest.mark.parametrize("depth", [60, 65, 900, 100_000])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
def test_the_arguments_of_an_earlier_call_nest_as_deep_as_a_body_may(hermes: TestServer, path: str, depth: int) -> None:
    arguments = nested('{"a":', "1", "}", depth).decode()
    function = {"name": "f", "arguments": arguments}
    result = {"role": "tool", "tool_call_id": "a", "content": "[[fine]]"}
    messages = [*USER, {"role": "assistant", "tool_calls": [{"id": "a", "type": "function", "function": function}]}, result]
    items = [{"type": "function_call", "call_id": "a", **function}, {"type": "function_call_output", "call_id": "a", "output": "[[fine]]"}]
    response = hermes.post(path, **({"messages": messages} if "chat" in path else {"input": [*USER, *items]}))
    if depth == 60:
        assert response.status_code == 200 and "fine" in response.text
    else:
        check(response, 400, "messages" if "chat" in path else "input")


def test_a_time_limit_may_be_any_number(server: TestServer) -> None:
    for digits in (16, 20, 400, 4000):
        response = server.post("/v1/completions", prompt="[[a]]", timeout_microseconds=int("9" * digits))
        assert response.status_code == 200, response.text


def test_an_error_shows_no_more_of_a_long_value_than_tells_it(server: TestServer) -> None:
    long = "x" * 100_000
    bodies = [message([{"type": long}]), {**message("a"), long: 1}, {**message("a"), "response_format": {"type": long}}]
    bodies += [{**message("a"), "model": long}, {"messages": [{"role": long}]}, {"messages": [{"role": "user", "content": "a", long: 1}]}]
    for body in bodies:
        response = server.post("/v1/chat/completions", **body)
        assert 400 <= response.status_code < 500 and len(response.content) < 2000, response.text[:200]
