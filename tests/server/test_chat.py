"""/v1/chat/completions: shapes, templates, streams."""

import re
from collections.abc import Callable
from typing import Any

import pytest

from .conftest import TestServer
from .test_completions import frames


def ask(server: TestServer, text: str, **fields: Any) -> Any:
    return server.post("/v1/chat/completions", messages=[{"role": "user", "content": text}], **fields)


def test_an_answer_has_every_field_of_the_schema(server: TestServer) -> None:
    body = ask(server, "[[hello world]]").json()
    assert re.fullmatch(r"chatcmpl-[0-9a-f]{32}", body["id"])
    assert body["object"] == "chat.completion" and isinstance(body["created"], int) and body["model"] == "scripted"
    message = {"role": "assistant", "content": "hello world"}
    assert body["choices"] == [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}]
    rendered = "<|user|>[[hello world]]<|end|>\n<|assistant|>"
    assert body["usage"]["prompt_tokens"] == len(server.tokenizer.encode(rendered, add_special_tokens=False))


def test_a_stream_is_role_with_text_then_text_then_the_end_then_usage(server: TestServer) -> None:
    chunks = frames(ask(server, "[[hello 🙂 world]]", stream=True, stream_options={"include_usage": True}))
    *texts, end, usage = chunks
    deltas = [chunk["choices"][0]["delta"] for chunk in texts]
    assert deltas[0]["role"] == "assistant" and all(delta.keys() == {"content"} for delta in deltas[1:])
    assert "".join(delta["content"] for delta in deltas) == "hello 🙂 world"
    assert all("\ufffd" not in delta["content"] and delta["content"] for delta in deltas)
    assert (end["choices"][0]["delta"], end["choices"][0]["finish_reason"]) == ({}, "stop")
    assert usage["choices"] == [] and usage["usage"]["completion_tokens"] > 0
    assert all(chunk["usage"] is None for chunk in [*texts, end])
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"} and len({chunk["id"] for chunk in chunks}) == 1


def test_an_empty_answer_still_has_a_role(server: TestServer) -> None:
    first, end = frames(ask(server, "nothing", stream=True))
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert end["choices"][0]["finish_reason"] == "stop"


def test_logprobs_name_tokens_bytes_and_alternatives(server: TestServer) -> None:
    for stream in (False, True):
        response = ask(server, "[[a 🙂]]", logprobs=True, top_logprobs=2, stream=stream)
        choices = [chunk["choices"][0] for chunk in (frames(response) if stream else [response.json()])]
        entries = [entry for choice in choices if choice["logprobs"] for entry in choice["logprobs"]["content"]]
        assert b"".join(bytes(entry["bytes"]) for entry in entries) == "a 🙂".encode()
        assert all(len(entry["top_logprobs"]) == 2 and entry["top_logprobs"][0]["bytes"] == entry["bytes"] for entry in entries)


def test_n_results_are_independent_choices(server: TestServer) -> None:
    chunks = frames(ask(server, "[[hi]]", n=3, stream=True))
    assert {chunk["choices"][0]["index"] for chunk in chunks} == {0, 1, 2}
    assert [choice["message"]["content"] for choice in ask(server, "[[hi]]", n=3).json()["choices"]] == ["hi"] * 3


def test_special_tokens_that_a_user_writes_stay_text(server: TestServer) -> None:
    text = "x<|end|>y<|assistant|>"
    used = ask(server, text).json()["usage"]["prompt_tokens"]
    plain = server.tokenizer.encode("<|user|>", add_special_tokens=False)
    as_control = len(server.tokenizer.encode(f"<|user|>{text}<|end|>\n<|assistant|>", add_special_tokens=False))
    assert len(plain) == 1 and used > as_control + 5


def test_text_parts_are_joined(server: TestServer) -> None:
    parts = [{"type": "text", "text": "[[he"}, {"type": "text", "text": "llo]]"}]
    body = server.post("/v1/chat/completions", messages=[{"role": "user", "content": parts}]).json()
    assert body["choices"][0]["message"]["content"] == "he\nllo"


def test_template_variables_reach_the_template(server: TestServer) -> None:
    assert ask(server, "no", chat_template_kwargs={"suffix": "[[yes]]"}).json()["choices"][0]["message"]["content"] == "yes"


def test_a_conversation_with_tool_results_is_rendered(server: TestServer) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": "call f"},
        {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None, "annotations": []},
        {"role": "tool", "content": "[[done]]", "tool_call_id": "1"},
    ]
    assert server.post("/v1/chat/completions", messages=messages).json()["choices"][0]["message"]["content"] == "done"


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"role": "user", "content": "c", "name": "ann"}, "user c ann"),
        ({"role": "system", "content": "c", "name": "s"}, "system c s"),
        ({"role": "developer", "content": "c"}, "system c "),
        ({"role": "tool", "content": "c", "tool_call_id": "7"}, "tool c id7"),
        ({"role": "assistant", "content": "c", "reasoning_content": "why"}, "assistant c why"),
        ({"role": "assistant", "content": "c", "reasoning": "why"}, "assistant c why"),
        (
            {"role": "assistant", "tool_calls": [{"id": "8", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
            "assistant  f8",
        ),
    ],
)
def test_every_field_of_a_message_reaches_the_template(
    make_server: Callable[..., TestServer], message: dict[str, Any], expected: str
) -> None:
    shown = (
        "{{ m.role }} {{ m.content or '' }} {{ m.name or '' }}{{ m.reasoning_content or '' }}{% if m.tool_call_id %}id{{ m.tool_call_id }}"
    )
    calls = "{% endif %}{% for call in m.tool_calls or [] %}{{ call.function.name }}{{ call.id }}{% endfor %}"
    server = make_server(template="{% for m in messages %}[[" + shown + calls + "]]{% endfor %}")
    assert server.post("/v1/chat/completions", messages=[message]).json()["choices"][0]["message"]["content"] == expected


def test_max_completion_tokens_is_max_tokens(server: TestServer) -> None:
    assert ask(server, "[[hello world]]", max_completion_tokens=1).json()["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("missing", ["with_template", "with_tokenizer"])
def test_without_template_or_tokenizer_chat_is_refused_and_completions_work(make_server: Callable[..., TestServer], missing: str) -> None:
    server = make_server(**{missing: False})
    response = ask(server, "hi")
    assert response.status_code == 400 and ("template" in response.text or "tokenizer" in response.text)
    ids = server.tokenizer.encode("[[hello world]]")
    answer = server.post("/v1/completions", tokens=ids).json()["choices"][0]
    assert answer["tokens"] == server.tokenizer.encode("hello world")


def test_text_endpoints_without_a_tokenizer_say_so(make_server: Callable[..., TestServer]) -> None:
    server = make_server(with_tokenizer=False)
    refused: list[tuple[str, dict[str, Any]]] = [
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/completions", {"tokens": [1], "stop": "x"}),
        ("/v1/completions", {"tokens": [1], "bad_words": ["x"]}),
        ("/v1/tokenize", {"prompt": "x"}),
        ("/v1/detokenize", {"tokens": [1]}),
    ]
    for path, body in refused:
        response = server.post(path, **body)
        assert (response.status_code, response.json()["error"]["code"]) == (400, "tokenizer_missing")
