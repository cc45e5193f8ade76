"""Every field of a request does something: on a babbling model with the real sampler, each has a case that fails if it is ignored."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from friendli_runtime.server.fields import IGNORED, NOT_HONOURED, ChatRequest, CompletionRequest
from friendli_runtime.server.messages import MessagesRequest
from friendli_runtime.server.responses import ResponsesRequest

from .conftest import TestServer, start
from .test_completions import frames
from .test_response_format import babbling_engine

PROMPT = "hello world hello you"
BASE = {"max_tokens": 24, "seed": 3, "temperature": 1.0}
OF_THE_BASE = {"messages", "prompt", "tokens", *BASE}
OF_TOOLS_AND_REASONING = {"tools", "tool_choice", "parallel_tool_calls"} | {
    *("parse_reasoning", "include_reasoning", "reasoning_effort", "reasoning_budget")
}
"""Each has its tests in test_tools.py, where templates know calls and reasoning."""
Outcome = dict[str, Any]


@pytest.fixture(scope="module")
def babbling() -> Iterator[TestServer]:
    template = "{% for message in messages %}{{ message.content }}{% endfor %}{{ suffix or '' }}"
    running, stop = start(make_engine=babbling_engine, template=template, closing_bias=-5.0)
    yield running
    stop()


def ask(server: TestServer, route: str, fields: dict[str, Any]) -> Outcome:
    """Status, body of the answer (of streams: the frames) and the first choice's tokens or text."""
    chat = {"messages": [{"role": "user", "content": PROMPT}]}
    what = chat if "chat" in route else {} if "tokens" in fields else {"prompt": PROMPT}
    given = {name: value for name, value in {**BASE, **what, **fields}.items() if value is not ...}
    response = server.post(route, **given)
    if given.get("stream") and response.status_code == 200:
        return {"status": 200, "frames": frames(response)}
    body = response.json()
    if response.status_code != 200:
        return {"status": response.status_code, "error": body["error"]}
    choice = body["choices"][0]
    return {"status": 200, "body": body, **choice, "text": choice.get("text", choice.get("message", {}).get("content"))}


def length(one: Outcome) -> int:
    return one["body"]["usage"]["completion_tokens"]


def differs(plain: Outcome, changed: Outcome) -> bool:
    return changed["status"] == 200 and changed["text"] != plain["text"]


def is_404(plain: Outcome, changed: Outcome) -> bool:
    return plain["status"] == 200 and changed["status"] == 404


def is_422_of(field: str, changed: Outcome) -> bool:
    return changed["status"] == 422 and changed["error"]["param"] == field


Check = Callable[[Outcome, Outcome], bool]
BOTH: dict[str, tuple[dict[str, Any], Any, Check]] = {
    # field → (other fields of both requests, its value, what it changes)
    "model": ({}, "other", is_404),
    "n": ({}, 2, lambda plain, changed: len(changed["body"]["choices"]) == 2),
    "seed": ({}, 4, differs),
    "stop": ({}, ..., lambda plain, changed: changed["text"] == plain["text"][:5] and changed["finish_reason"] == "stop"),
    "stream": ({}, True, lambda plain, changed: len(changed["frames"]) > 2),
    "stream_options": ({"stream": True}, {"include_usage": True}, lambda plain, changed: changed["frames"][-1].get("usage") is not None),
    "max_tokens": ({}, 3, lambda plain, changed: length(changed) == 3 and changed["finish_reason"] == "length"),
    "min_tokens": ({"logit_bias": {"0": 30.0}}, 5, lambda plain, changed: length(plain) == 1 and length(changed) == 6),
    "temperature": ({}, 0, differs),
    "top_p": ({"temperature": 2.0}, 0.05, differs),
    "top_k": ({"temperature": 2.0}, 1, differs),
    "min_p": ({"temperature": 2.0}, 0.9, differs),
    "xtc_threshold": ({"xtc_probability": 1.0}, 0.02, differs),
    "xtc_probability": ({"xtc_threshold": 0.02}, 1.0, differs),
    "frequency_penalty": ({"temperature": 0, "logit_bias": {"9": 12.0}}, 2.0, differs),
    "presence_penalty": ({"temperature": 0, "logit_bias": {"9": 9.0}}, 2.0, differs),
    "repetition_penalty": ({"temperature": 0, "logit_bias": {"9": 9.0}}, 5.0, differs),
    "logit_bias": ({}, {"9": 100.0}, differs),
    "eos_token": ({"logit_bias": {"9": 100.0}}, [9], lambda plain, changed: length(plain) == 24 and length(changed) == 1),
    "ignore_eos": ({"logit_bias": {"0": 30.0}}, True, lambda plain, changed: length(plain) == 1 and length(changed) == 24),
    "response_format": ({}, {"type": "regex", "schema": "a{5}"}, lambda plain, changed: changed["text"] == "aaaaa"),
    "timeout_microseconds": ({"max_tokens": 400}, 1, lambda plain, changed: changed["status"] == 504),
    "cache_salt": ({}, "x" * 10_000, lambda plain, changed: changed["status"] == 422),
}
CHAT = BOTH | {
    "messages": ({}, [{"role": "user", "content": "another"}], differs),
    "chat_template_kwargs": ({}, {"suffix": " more words"}, differs),
    "max_completion_tokens": ({"max_tokens": ...}, 3, lambda plain, changed: length(changed) == 3),
    "logprobs": (
        {},
        True,
        lambda plain, changed: [entry["top_logprobs"] for entry in changed["logprobs"]["content"]] == [[]] * length(changed),
    ),
    "top_logprobs": ({"logprobs": True}, 2, lambda plain, changed: len(changed["logprobs"]["content"][0]["top_logprobs"]) == 2),
}
COMPLETIONS = BOTH | {
    "prompt": ({}, "another", differs),
    "tokens": ({}, [40, 41, 42], differs),
    "max_total_tokens": ({"max_tokens": ...}, 12, lambda plain, changed: changed["body"]["usage"]["total_tokens"] == 12),
    "min_total_tokens": ({"logit_bias": {"0": 30.0}}, 14, lambda plain, changed: changed["body"]["usage"]["total_tokens"] == 15),
    "logprobs": ({}, 2, lambda plain, changed: len(changed["logprobs"]["top_logprobs"][0]) == 2),
    "no_repeat_ngram": ({"temperature": 0, "logit_bias": {"9": 50.0}}, 2, differs),
    "bad_words": ({"logit_bias": {"74": 100.0}}, ..., differs),
    "bad_word_tokens": ({"logit_bias": {"9": 100.0}}, [{"tokens": [9]}], differs),
    "stop_tokens": ({"logit_bias": {"9": 100.0}}, [{"tokens": [9, 9]}], lambda plain, changed: length(changed) == 2),
    "forced_output_tokens": ({}, [40, 41], lambda plain, changed: changed["tokens"][:2] == [40, 41]),
    "token_index_to_replace": ({}, [0], lambda plain, changed: is_422_of("token_index_to_replace", changed)),
    "embedding_to_replace": ({}, [1.0], lambda plain, changed: is_422_of("embedding_to_replace", changed)),
    "echo": ({}, True, lambda plain, changed: changed["text"] == PROMPT + plain["text"]),
}


def value_of(field: str, value: Any, server: TestServer, plain: Outcome) -> Any:
    """Values that depend on what the model said without the field."""
    if field == "stop":
        return plain["text"][5:8]
    if field == "bad_words":
        return [server.tokenizer.token_bytes(74).decode()]
    return value


def check_row(server: TestServer, route: str, field: str, row: tuple[dict[str, Any], Any, Check]) -> None:
    others, value, check = row
    plain = ask(server, route, others)
    assert plain["status"] == 200, plain
    if field not in OF_THE_BASE:
        assert ask(server, route, {**others, field: None}).get("text") == plain.get("text"), "null is the same as absent"
    changed = ask(server, route, {**others, field: value_of(field, value, server, plain)})
    assert check(plain, changed), (plain, changed)


@pytest.mark.parametrize("field", CHAT)
def test_a_field_of_chat_is_not_ignored(babbling: TestServer, field: str) -> None:
    check_row(babbling, "/v1/chat/completions", field, CHAT[field])


@pytest.mark.parametrize("field", COMPLETIONS)
def test_a_field_of_completions_is_not_ignored(babbling: TestServer, field: str) -> None:
    check_row(babbling, "/v1/completions", field, COMPLETIONS[field])


def test_no_field_is_missing_in_the_tables() -> None:
    assert set(CHAT) | OF_TOOLS_AND_REASONING == set(ChatRequest.__struct_fields__)
    assert set(COMPLETIONS) == set(CompletionRequest.__struct_fields__)
    assert set(OF_MESSAGES) | {"tools", "tool_choice", "thinking", "output_config"} == set(MessagesRequest.__struct_fields__)
    of_other_tests = {"tools", "tool_choice", "parallel_tool_calls", "text", "reasoning"}
    assert set(OF_RESPONSES) | of_other_tests == set(ResponsesRequest.__struct_fields__)


# The shapes of other APIs have no seed: without a temperature they are compared, with one they must differ. The fields that the tables lack
# have their tests in test_other_apis.py.

GREEDY = {"temperature": 0}
HOT = {"temperature": 5.0}
Row = tuple[dict[str, Any], Any, Check]
SHARED: dict[str, Row] = {  # field → (other fields, its value, what it makes of the greedy answer)
    "model": ({}, "other", is_404),
    "temperature": ({}, HOT["temperature"], differs),
    "top_p": (HOT, 1e-6, lambda greedy, changed: changed["text"] == greedy["text"]),
    "stream": ({}, True, lambda greedy, changed: changed["is_stream"] and not greedy["is_stream"]),
}
OF_MESSAGES: dict[str, Row] = SHARED | {
    "messages": ({}, [{"role": "user", "content": "another"}], differs),
    "system": ({}, "be another", differs),
    "max_tokens": ({}, 3, lambda greedy, changed: changed["body"]["usage"]["output_tokens"] == 3),
    "stop_sequences": ({}, ..., lambda greedy, changed: changed["text"] == greedy["text"][:5]),
    "top_k": (HOT, 1, lambda greedy, changed: changed["text"] == greedy["text"]),
}
OF_RESPONSES: dict[str, Row] = SHARED | {
    "input": ({}, "another", differs),
    "instructions": ({}, "be another", differs),
    "max_output_tokens": ({}, 3, lambda greedy, changed: changed["body"]["usage"]["output_tokens"] == 3),
    "truncation": ({}, "auto", lambda greedy, changed: changed["status"] == 422),
    "background": ({}, True, lambda greedy, changed: changed["status"] == 422),
}
OF_EVERY_REQUEST: dict[str, dict[str, Any]] = {
    "/v1/messages": {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 24},
    "/v1/responses": {"input": PROMPT, "max_output_tokens": 24},
}


def ask_other(server: TestServer, route: str, fields: dict[str, Any]) -> Outcome:
    response = server.post(route, **{**OF_EVERY_REQUEST[route], **GREEDY, **fields})
    if response.headers["content-type"].startswith("text/event-stream") or response.status_code != 200:
        return {"status": response.status_code, "is_stream": response.status_code == 200, "text": response.text}
    body = response.json()
    blocks = body["content"] if route == "/v1/messages" else [part for item in body["output"] for part in item["content"]]
    return {"status": 200, "body": body, "is_stream": False, "text": "".join(block["text"] for block in blocks)}


@pytest.mark.parametrize(
    ("route", "field"), [("/v1/messages", name) for name in OF_MESSAGES] + [("/v1/responses", name) for name in OF_RESPONSES]
)
def test_a_field_of_another_api_is_not_ignored(babbling: TestServer, route: str, field: str) -> None:
    others, value, check = (OF_MESSAGES if route == "/v1/messages" else OF_RESPONSES)[field]
    greedy = ask_other(babbling, route, {})
    assert greedy["status"] == 200 and len(greedy["text"]) > 8, greedy
    if field not in {*OF_EVERY_REQUEST[route], *GREEDY}:
        assert ask_other(babbling, route, {field: None})["text"] == greedy["text"], "null is the same as absent"
    given = [greedy["text"][5:8]] if field == "stop_sequences" else value
    changed = ask_other(babbling, route, {**others, field: given})
    assert check(greedy, changed), (greedy, changed)


@pytest.mark.parametrize(("route", "body"), [("/v1/tokenize", {"prompt": "a"}), ("/v1/detokenize", {"tokens": [40]})])
def test_the_model_of_the_other_routes_is_not_ignored(babbling: TestServer, route: str, body: dict[str, Any]) -> None:
    assert [babbling.post(route, **body, model=name).status_code for name in ("scripted", "", None, "other")] == [200, 200, 200, 404]


@pytest.mark.parametrize("field", NOT_HONOURED)
def test_a_field_that_is_not_honoured_is_refused_unless_it_asks_for_nothing(babbling: TestServer, field: str) -> None:
    refused = babbling.post("/v1/completions", prompt="a", max_tokens=1, **{field: {"asks": "for something"}})
    assert (refused.status_code, refused.json()["error"]["param"]) == (422, field)
    for value in (*NOT_HONOURED[field], None):
        assert babbling.post("/v1/completions", prompt="a", max_tokens=1, **{field: value}).status_code == 200, value


@pytest.mark.parametrize("route", ["/v1/completions", "/v1/chat/completions"])
def test_fields_that_say_nothing_about_the_answer_change_nothing(babbling: TestServer, route: str) -> None:
    everything = {name: {"any": ["value", 1]} for name in IGNORED}
    assert ask(babbling, route, everything)["text"] == ask(babbling, route, {})["text"]


@pytest.mark.parametrize(
    "body", ['{"prompt": "a", "prompt": "b"}', '{"prompt": "a", "logit_bias": {"1": 1, "1": 2}}', r'{"prompt": "a", "\u0070rompt": "b"}']
)
def test_a_name_that_comes_twice_is_refused(babbling: TestServer, body: str) -> None:
    response = babbling.client.post("/v1/completions", content=body.encode())
    assert response.status_code == 400 and response.json()["error"]["code"] == "duplicate_field"


def test_text_that_looks_like_names_is_not_taken_for_them(babbling: TestServer) -> None:
    prompt = '{"a": 1, "a": "\\"b\\": \\\\", "a" : 2}\\":'
    assert babbling.post("/v1/completions", prompt=prompt, max_tokens=1, stop=['"a":', '"a":']).status_code == 200
    assert babbling.post("/v1/completions", prompt=["x", '"x":', "[{"], max_tokens=1, logit_bias={}).status_code == 200


@pytest.mark.parametrize("route", ["/v1/completions", "/v1/chat/completions"])
def test_the_tokens_that_end_an_answer_are_those_of_the_request_and_of_the_model(babbling: TestServer, route: str) -> None:
    assert length(ask(babbling, route, {"eos_token": [9], "logit_bias": {"9": 100.0}})) == 1
    assert length(ask(babbling, route, {"eos_token": [9], "logit_bias": {"0": 30.0}})) == 1


def test_echo_comes_first_in_a_stream(babbling: TestServer) -> None:
    whole = ask(babbling, "/v1/completions", {"echo": True, "n": 2})
    streamed = ask(babbling, "/v1/completions", {"echo": True, "n": 2, "stream": True})["frames"]
    for idx in (0, 1):
        text = "".join(choice["text"] for chunk in streamed for choice in chunk["choices"] if choice["index"] == idx)
        assert text == whole["body"]["choices"][idx]["text"] and text.startswith(PROMPT)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("max_tokens", [0, 5])
def test_the_prompt_comes_with_its_logprobs(babbling: TestServer, stream: bool, max_tokens: int) -> None:
    """They are those of the same tokens as an answer to the first of them."""
    ids = babbling.tokenizer.encode("héllo, wörld 🙂")
    shared = {"temperature": 0, "logprobs": 2}
    forced = {"tokens": ids[:1], "forced_output_tokens": ids[1:], "max_tokens": len(ids) - 1 + max_tokens}
    expected = ask(babbling, "/v1/completions", {**shared, **forced})["logprobs"]
    fields = {**shared, "tokens": [ids, ids[:7]], "n": 2, "echo": True, "max_tokens": max_tokens, "stream": stream}
    body = ask(babbling, "/v1/completions", fields)["frames"] if stream else [ask(babbling, "/v1/completions", fields)["body"]]
    for idx in (0, 1):
        choices = [choice for chunk in body for choice in chunk["choices"] if choice["index"] == idx]
        listed = [choice["logprobs"] for choice in choices if choice["logprobs"] is not None]
        merged = {name: [value for lists in listed for value in lists[name]] for name in listed[0]}
        text = "".join(choice["text"] for choice in choices)
        assert merged["token_logprobs"] == [None, *expected["token_logprobs"]]
        assert merged["top_logprobs"] == [None, *expected["top_logprobs"]]
        assert len(merged["tokens"]) == len(ids) + max_tokens and choices[-1]["finish_reason"] == "length"
        shown = [(token, offset) for token, offset in zip(merged["tokens"], merged["text_offset"], strict=True) if "\ufffd" not in token]
        assert len(shown) > 5 and all(text.startswith(token, offset) for token, offset in shown if token != "<s>")
    usage = [chunk["usage"] for chunk in body if "usage" in chunk]
    assert stream or usage[0]["completion_tokens"] == 4 * max_tokens
