"""A model that answers in channels, over HTTP: reasoning, content and calls on every route; forced calls and formats hold."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from tools.templates import CHANNEL_MARKS, HARMONY

from .conftest import TestServer, start
from .test_response_format import babbling_engine
from .test_tools import CHAT, SCHEMAS, TOOLS, ask, calls_of, check_forced_calls, streamed

CHANNELS: dict[str, Any] = {"template": HARMONY, "special_tokens": CHANNEL_MARKS, "end_tokens": ["<|return|>", "<|call|>"]}
OPEN = "<|start|>assistant"
THINK = f"<|channel|>analysis<|message|>let me see<|end|>{OPEN}"
FINAL = "<|channel|>final<|message|>"
CALL = '<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city": "Paris", "days": 3}<|call|>never read'
CALLED = [("get_weather", {"city": "Paris", "days": 3})]


@pytest.fixture(scope="module")
def harmony() -> Iterator[TestServer]:
    running, stop = start(**CHANNELS, max_context_len=4096)
    yield running
    stop()


@pytest.fixture(scope="module")
def babbling() -> Iterator[TestServer]:
    running, stop = start(**CHANNELS, make_engine=babbling_engine)
    yield running
    stop()


def choice_of(server: TestServer, script: str, **fields: Any) -> dict[str, Any]:
    response = ask(server, f"[[{script}]]", **fields)
    choice: dict[str, Any] = streamed(response) if fields.get("stream") else response.json()["choices"][0]
    return choice


@pytest.mark.parametrize("stream", [False, True])
def test_reasoning_and_content_are_told_apart_without_being_asked(harmony: TestServer, stream: bool) -> None:
    choice = choice_of(harmony, f"{THINK}{FINAL}The answer", stream=stream)
    message = choice["message"]
    assert (message["reasoning_content"], message["content"], choice["finish_reason"]) == ("let me see", "The answer", "stop")


@pytest.mark.parametrize("stream", [False, True])
def test_calls_come_with_their_reasoning_and_preamble(harmony: TestServer, stream: bool) -> None:
    preamble = f"<|channel|>commentary<|message|>I look.<|end|>{OPEN}"
    choice = choice_of(harmony, THINK + preamble + CALL, tools=TOOLS, stream=stream)
    message = choice["message"]
    assert (message["reasoning_content"], message["content"], choice["finish_reason"]) == ("let me see", "I look.", "tool_calls")
    assert calls_of(message) == CALLED


def test_reasoning_can_be_left_out_or_left_in(harmony: TestServer) -> None:
    script = f"{THINK}{FINAL}The answer"
    whole = ask(harmony, f"[[{script}]]").json()
    assert 0 < whole["usage"]["completion_tokens_details"]["reasoning_tokens"] < whole["usage"]["completion_tokens"]
    left_out = choice_of(harmony, script, include_reasoning=False)["message"]
    assert left_out == {"role": "assistant", "content": "The answer"}
    assert choice_of(harmony, script, parse_reasoning=False)["message"] == {"role": "assistant", "content": script}


def test_stop_strings_do_not_count_in_headers_and_reasoning(harmony: TestServer) -> None:
    script = f"<|channel|>analysis<|message|>final see<|end|>{OPEN}{FINAL}I see it, finally"
    message = choice_of(harmony, script, stop=["final", "see it"])["message"]
    assert (message["reasoning_content"], message["content"]) == ("final see", "I ")


def test_a_budget_ends_the_reasoning(harmony: TestServer) -> None:
    script = f"<|channel|>analysis<|message|>{'a b ' * 40}"
    message = choice_of(harmony, script, reasoning_budget=10, max_tokens=60)["message"]
    assert 5 <= len(message["reasoning_content"]) <= 20
    within = choice_of(harmony, f"{THINK}{FINAL}The answer", reasoning_budget=100)["message"]
    assert (within["reasoning_content"], within["content"]) == ("let me see", "The answer")


def test_effort_and_earlier_reasoning_reach_the_template(harmony: TestServer) -> None:
    def num_tokens(messages: list[dict[str, Any]], **fields: Any) -> int:
        response = harmony.post(CHAT, messages=messages, **fields)
        assert response.status_code == 200, response.text
        return int(response.json()["usage"]["prompt_tokens"])

    user: dict[str, Any] = {"role": "user", "content": "[[x]]"}
    assert num_tokens([user], reasoning_effort="medium") == num_tokens([user]) > num_tokens([user], reasoning_effort="low")
    calls = [{"id": "call_1", "type": "function", "function": {"name": "now", "arguments": "{}"}}]
    result = {"role": "tool", "tool_call_id": "call_1", "content": "noon"}
    called: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": calls}
    counts = [
        num_tokens([user, {**called, **extra}, result])
        for extra in ({}, {"reasoning_content": "hmm"}, {"reasoning_content": "hmm", "content": "I look."})
    ]
    assert counts[0] < counts[1] < counts[2]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_forced_calls_are_valid_whatever_the_model_babbles(babbling: TestServer, choice: Any, stream: bool) -> None:
    check_forced_calls(babbling, choice, stream, num_seeds=6)


def test_a_format_holds_in_the_content_whatever_the_model_babbles(babbling: TestServer) -> None:
    for seed in range(4):
        for parse in (None, False):
            wanted = {"type": "regex", "schema": "[xyz]{3}"}
            fields: dict[str, Any] = {"response_format": wanted, "parse_reasoning": parse, "seed": seed, "reasoning_budget": 5}
            message = ask(babbling, "hello", temperature=1.5, max_tokens=400, **fields).json()["choices"][0]["message"]
            assert re.fullmatch("[xyz]{3}", message["content"])
            assert parse is None or "reasoning_content" not in message


def test_the_other_routes_give_the_same_parts(harmony: TestServer) -> None:
    user = {"role": "user", "content": f"[[{THINK}{CALL}]]"}
    tools = [{"name": "get_weather", "input_schema": SCHEMAS["get_weather"]}]
    thinking = {"type": "enabled", "budget_tokens": 1024}
    message = harmony.post("/v1/messages", messages=[user], max_tokens=2000, tools=tools, thinking=thinking).json()
    assert [block["type"] for block in message["content"]] == ["thinking", "tool_use"]
    assert message["content"][0]["thinking"] == "let me see" and message["content"][1]["input"] == CALLED[0][1]
    flat = [{"type": "function", "name": "get_weather", "parameters": SCHEMAS["get_weather"]}]
    items = harmony.post("/v1/responses", input=[user], tools=flat).json()["output"]
    assert [item["type"] for item in items] == ["reasoning", "function_call"]
    assert json.loads(items[1]["arguments"]) == CALLED[0][1]
