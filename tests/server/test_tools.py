"""Tools and reasoning over HTTP: scripted answers in the formats of model families are read exactly; forced calls are always valid."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import jsonschema
import pytest
from tools.templates import HERMES, LLAMA3, MISTRAL, OPENS_THINKING, PYTHONIC, QWEN_CODER

from .conftest import TestServer, start
from .test_completions import frames
from .test_response_format import babbling_engine

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 20},
        "unit": {"enum": ["c", "f"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city", "days"],
}
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": "Weather of a city", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}},
]
SCHEMAS = {"get_weather": WEATHER, "now": {"type": "object", "maxProperties": 0}}
CHAT = "/v1/chat/completions"


def serve(template: str, **options: Any) -> Iterator[TestServer]:
    running, stop = start(template=template.replace("<|im_end|>", "<|end|>"), **options)
    yield running
    stop()


@pytest.fixture(scope="module")
def hermes() -> Iterator[TestServer]:
    yield from serve(HERMES, max_context_len=4096)


@pytest.fixture(scope="module")
def thinking() -> Iterator[TestServer]:
    yield from serve(OPENS_THINKING, max_context_len=4096)


@pytest.fixture(scope="module", params=["hermes", "llama3", "mistral", "qwen_coder", "pythonic"])
def babbling(request: Any) -> Iterator[TestServer]:
    template = {"hermes": HERMES, "llama3": LLAMA3, "mistral": MISTRAL, "qwen_coder": QWEN_CODER, "pythonic": PYTHONIC}[request.param]
    yield from serve(template, make_engine=babbling_engine)


def ask(server: TestServer, text: str, **fields: Any) -> Any:
    response = server.post(CHAT, messages=[{"role": "user", "content": text}], **fields)
    assert response.status_code == 200, response.text
    return response


def streamed(response: Any) -> dict[str, Any]:
    """A stream put together as clients do."""
    message: dict[str, Any] = {"role": None, "content": "", "reasoning_content": "", "tool_calls": []}
    finish_reason = None
    for frame in frames(response):
        for choice in frame["choices"]:
            delta = choice["delta"]
            assert finish_reason is None, "nothing comes after the end"
            finish_reason = choice["finish_reason"]
            message["role"] = message["role"] or delta.get("role")
            for key in ("content", "reasoning_content"):
                message[key] += delta.get(key) or ""
            for call in delta.get("tool_calls", ()):
                if call["index"] == len(message["tool_calls"]):
                    assert re.fullmatch(r"call_[A-Za-z0-9]{24}|[A-Za-z0-9]{9}", call["id"]) and call["type"] == "function"
                    message["tool_calls"].append(
                        {"id": call["id"], "type": "function", "function": {"name": call["function"]["name"], "arguments": ""}}
                    )
                else:
                    assert "id" not in call and "name" not in call["function"]
                message["tool_calls"][call["index"]]["function"]["arguments"] += call["function"]["arguments"]
    return {"message": message, "finish_reason": finish_reason}


def calls_of(message: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in message.get("tool_calls") or ()]


TWO_CALLS = (
    'I look.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris {\\"x\\"} 🙂", "days": 3}}\n</tool_call>\n'
    '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
)


def check_forced_calls(server: TestServer, choice: Any, stream: bool, num_seeds: int) -> None:
    """Of a model that babbles: answers that end are calls, all valid. `choice` is `required` or names get_weather."""
    num_calls = 0
    for seed in range(num_seeds):
        response = ask(server, "hello", tools=TOOLS, tool_choice=choice, stream=stream, seed=seed, temperature=1.5, max_tokens=600)
        answer = streamed(response) if stream else response.json()["choices"][0]
        if answer["finish_reason"] == "length":  # calls or reasoning without end
            continue
        assert answer["finish_reason"] == "tool_calls" and not answer["message"]["content"]
        for name, arguments in calls_of(answer["message"]):
            assert choice == "required" or name == "get_weather"
            jsonschema.validate(arguments, SCHEMAS[name])
            num_calls += 1
    assert num_calls


@pytest.mark.parametrize("stream", [False, True])
def test_calls_are_read_from_the_answer(hermes: TestServer, stream: bool) -> None:
    response = ask(hermes, f"[[{TWO_CALLS}]]", tools=TOOLS, stream=stream)
    choice = streamed(response) if stream else response.json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert calls_of(choice["message"]) == [("get_weather", {"city": 'Paris {"x"} 🙂', "days": 3}), ("now", {})]
    assert choice["message"]["content"] == "I look."
    assert len({call["id"] for call in choice["message"]["tool_calls"]}) == 2


def test_an_answer_of_calls_only_has_null_content(hermes: TestServer) -> None:
    message = ask(hermes, f"[[{TWO_CALLS.removeprefix('I look.')}]]", tools=TOOLS).json()["choices"][0]["message"]
    assert message["content"] is None and len(message["tool_calls"]) == 2


def test_an_answer_without_calls_is_text(hermes: TestServer) -> None:
    choice = ask(hermes, "[[just <b>text</b>\n]]", tools=TOOLS).json()["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": "just <b>text</b>\n"} and choice["finish_reason"] == "stop"


def test_without_tools_text_that_looks_like_a_call_stays_text(hermes: TestServer) -> None:
    for fields in ({}, {"tools": TOOLS, "tool_choice": "none"}, {"tools": []}):
        choice = ask(hermes, f"[[{TWO_CALLS}]]", **fields).json()["choices"][0]
        assert choice["message"] == {"role": "assistant", "content": TWO_CALLS} and choice["finish_reason"] == "stop"


def test_once_a_call_has_begun_it_becomes_a_valid_one(hermes: TestServer) -> None:
    script = '<tool_call>\n{"name": "get_wether", "arguments": {"town": 1}}\n</tool_call>'
    message = ask(hermes, f"[[{script}]]", tools=TOOLS, max_tokens=500).json()["choices"][0]["message"]
    (name, arguments) = calls_of(message)[0]
    jsonschema.validate(arguments, SCHEMAS[name])


@pytest.mark.parametrize(
    ("template", "good", "bad"),
    [
        (LLAMA3, '{"name": "get_weather", "parameters": {"city": "x", "days": 3}}', ' {"name" :"get_weather", "parameters": {"town": 1}}'),
        (PYTHONIC, '[get_weather(city="x", days=3)]', '[get_weather(town="x")]'),
    ],
)
def test_calls_without_a_mark_are_kept_to_their_schema_too(
    make_server: Callable[..., TestServer], template: str, good: str, bad: str
) -> None:
    server = make_server(template=template, max_context_len=4096)
    for text in (
        "plain text",
        '{"name": "nobody", "parameters": {}}',
        '{"a": 1}',
        "[1, 2]x",
        '{"name": "get_weather"',
        "see [get_weather(1)].",
    ):
        choice = ask(server, f"[[{text}]]", tools=TOOLS).json()["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == (text, "stop")
    for text in (good, bad):
        choice = ask(server, f"[[{text}]]", tools=TOOLS, max_tokens=400, stop=["days"], parallel_tool_calls=False).json()["choices"][0]
        assert choice["finish_reason"] == "tool_calls" and not choice["message"]["content"]
        ((name, arguments),) = calls_of(choice["message"])
        jsonschema.validate(arguments, SCHEMAS[name])
        assert text == bad or arguments == {"city": "x", "days": 3}


def test_one_call_only_when_parallel_calls_are_off(hermes: TestServer) -> None:
    choice = ask(hermes, f"[[{TWO_CALLS}]]", tools=TOOLS, parallel_tool_calls=False).json()["choices"][0]
    assert len(choice["message"]["tool_calls"]) == 1


def test_a_cut_call_ends_with_length(hermes: TestServer) -> None:
    assert ask(hermes, f"[[{TWO_CALLS}]]", tools=TOOLS, max_tokens=30).json()["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_forced_calls_are_valid_whatever_the_model_babbles(babbling: TestServer, choice: Any, stream: bool) -> None:
    check_forced_calls(babbling, choice, stream, num_seeds=4)


def test_a_conversation_with_calls_and_results_goes_on(hermes: TestServer) -> None:
    messages = [
        {"role": "user", "content": "weather?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "now", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "[[noon]]"},
    ]
    assert hermes.post(CHAT, messages=messages, tools=TOOLS).json()["choices"][0]["message"]["content"] == "noon"


@pytest.mark.parametrize(
    ("status", "param", "fields"),
    [
        (422, "tools", {"tools": [TOOLS[0]] * 129}),
        (422, "tools", {"tools": [TOOLS[0], TOOLS[0]]}),
        (422, "tools", {"tools": [{"type": "function", "function": {"name": "a b"}}]}),
        (422, "tools", {"tools": [{"type": "function", "function": {"name": "a" * 65}}]}),
        (422, "tools", {"tools": [{"type": "web_search", "function": {"name": "a"}}]}),
        (400, "tools", {"tools": [{"type": "function"}]}),
        (400, "tools", {"tools": [{**TOOLS[0], "strict": True}]}),
        (400, "tools", {"tools": ["a"]}),
        (400, "tools", {"tools": [{"type": "function", "function": {"name": "a", "parameters": {"not": {}}}}]}),
        (400, "tools", {"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "array"}}}]}),
        (400, "tools", {"tools": [{"type": "function", "function": {"name": "a", "strickt": True}}]}),
        (422, "tool_choice", {"tools": TOOLS, "tool_choice": "some"}),
        (422, "tool_choice", {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "other"}}}),
        (422, "tool_choice", {"tools": TOOLS, "tool_choice": {"function": "now"}}),
        (422, "tool_choice", {"tool_choice": "required"}),
        (400, "tool_choice", {"tools": TOOLS, "tool_choice": 3}),
        (422, "response_format", {"tools": TOOLS, "response_format": {"type": "json_object"}}),
        (422, "min_tokens", {"tools": TOOLS, "min_tokens": 3}),
        (422, "ignore_eos", {"tools": TOOLS, "ignore_eos": True}),
        (422, "include_reasoning", {"include_reasoning": False}),
        (422, "reasoning_budget", {"reasoning_budget": 0}),
        (422, "reasoning_effort", {"reasoning_effort": "much"}),
    ],
)
def test_bad_tools_are_refused_by_name(hermes: TestServer, status: int, param: str, fields: dict[str, Any]) -> None:
    response = hermes.post(CHAT, messages=[{"role": "user", "content": "[[x]]"}], **fields)
    assert (response.status_code, response.json()["error"]["param"]) == (status, param), response.text


def test_all_of_a_tool_reaches_the_template(hermes: TestServer) -> None:
    def num_prompt_tokens(**function: Any) -> int:
        tools = [{"type": "function", "function": {"name": "f", **function}}]
        return hermes.post("/v1/chat/completions", messages=[{"role": "user", "content": "[[a]]"}], tools=tools).json()["usage"][
            "prompt_tokens"
        ]

    parameters = {"type": "object", "properties": {"a": {"type": "string", "description": "what"}}}
    counts = [num_prompt_tokens(), num_prompt_tokens(description="does much"), num_prompt_tokens(parameters=parameters)]
    assert len({*counts}) == 3 and min(counts) == counts[0]


def test_a_template_without_calls_refuses_tools(server: TestServer) -> None:
    response = server.post(CHAT, messages=[{"role": "user", "content": "[[x]]"}], tools=TOOLS)
    assert response.status_code == 422 and response.json()["error"]["param"] == "tools"


# Reasoning -------------------------------------------------------------------------------------------------------------------------------

REASONED = "think about\n\nit\n</think>\n\nthe answer"


@pytest.mark.parametrize("stream", [False, True])
def test_reasoning_is_split_off_when_asked(thinking: TestServer, stream: bool) -> None:
    response = ask(thinking, f"[[{REASONED}]]", parse_reasoning=True, stream=stream)
    message = (streamed(response) if stream else response.json()["choices"][0])["message"]
    assert (message["reasoning_content"], message["content"]) == ("think about\n\nit", "the answer")


@pytest.mark.parametrize("stream", [False, True])
def test_reasoning_is_left_out_when_asked_and_counted_all_the_same(thinking: TestServer, stream: bool) -> None:
    fields = {"parse_reasoning": True, "stream": stream}
    response = ask(thinking, f"[[{REASONED}]]", include_reasoning=False, **fields)
    message = (streamed(response) if stream else response.json()["choices"][0])["message"]
    assert not message.get("reasoning_content") and message["content"] == "the answer"
    if not stream:
        usage = response.json()["usage"]
        assert usage == ask(thinking, f"[[{REASONED}]]", **fields).json()["usage"]
        assert 0 < usage["completion_tokens_details"]["reasoning_tokens"] < usage["completion_tokens"]


def test_reasoning_stays_inline_unless_asked(thinking: TestServer) -> None:
    assert ask(thinking, f"[[{REASONED}]]").json()["choices"][0]["message"] == {"role": "assistant", "content": REASONED}


def test_the_server_can_parse_by_default(request: Any) -> None:
    from friendli_runtime.server.app import AppOptions

    running, stop = start(AppOptions(parse_reasoning=True), template=OPENS_THINKING)
    request.addfinalizer(stop)
    assert ask(running, f"[[{REASONED}]]").json()["choices"][0]["message"]["reasoning_content"] == "think about\n\nit"
    assert "reasoning_content" not in ask(running, f"[[{REASONED}]]", parse_reasoning=False).json()["choices"][0]["message"]


def test_a_tag_that_the_model_opens_itself_is_read_too(hermes: TestServer) -> None:
    message = ask(hermes, f"[[<think>\n{REASONED}]]", parse_reasoning=True).json()["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("think about\n\nit", "the answer")
    plain = ask(hermes, "[[no thoughts]]", parse_reasoning=True).json()["choices"][0]["message"]
    assert plain == {"role": "assistant", "content": "no thoughts"}


@pytest.mark.parametrize("parse", [False, True])
def test_a_format_holds_after_the_reasoning(thinking: TestServer, parse: bool) -> None:
    script = 'think {"a"\n</think>\n\n{"a": 5}'
    schema = {
        "type": "json_schema",
        "json_schema": {"schema": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}},
    }
    message = ask(thinking, f"[[{script}]]", parse_reasoning=parse, response_format=schema).json()["choices"][0]["message"]
    assert message["content"] == '{"a": 5}' and message.get("reasoning_content") == ('think {"a"' if parse else None)
    forced = ask(thinking, "[[hm</think>no]]", response_format={"type": "regex", "schema": "[xyz]{3}"}).json()["choices"][0]["message"]
    assert re.fullmatch("[xyz]{3}", forced["content"])


def test_calls_come_after_the_reasoning(thinking: TestServer) -> None:
    script = "maybe <tool_call> or not\n</think>\n\n" + TWO_CALLS
    for parse in (False, True):
        choice = ask(thinking, f"[[{script}]]", tools=TOOLS, parse_reasoning=parse).json()["choices"][0]
        assert len(choice["message"]["tool_calls"]) == 2 and choice["finish_reason"] == "tool_calls"
        expected = "I look." if parse else "maybe <tool_call> or not\n</think>\n\nI look."
        assert choice["message"]["content"] == expected
    choice = ask(thinking, "[[hm\n</think>\n\nno]]", tools=TOOLS, tool_choice="required", parse_reasoning=True, max_tokens=400).json()[
        "choices"
    ][0]
    assert choice["message"]["reasoning_content"] == "hm" and choice["message"]["tool_calls"]


def test_a_budget_ends_the_reasoning(thinking: TestServer) -> None:
    message = ask(thinking, f"[[{'a b ' * 40}]]", parse_reasoning=True, reasoning_budget=10, max_tokens=60).json()["choices"][0]["message"]
    assert 5 <= len(message["reasoning_content"]) <= 20 and message["content"].lstrip().startswith(("a", "b"))
    within = ask(thinking, f"[[{REASONED}]]", parse_reasoning=True, reasoning_budget=100).json()["choices"][0]["message"]
    assert (within["reasoning_content"], within["content"]) == ("think about\n\nit", "the answer")


def test_a_budget_changes_nothing_about_stop_strings(thinking: TestServer) -> None:
    for fields in ({}, {"reasoning_budget": 100}):
        choice = ask(thinking, "[[first, last</think>yes]]", stop=[", la"], **fields).json()["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("first", "stop")


def test_effort_reaches_the_template(hermes: TestServer) -> None:
    few = ask(hermes, "[[x]]", reasoning_effort="none").json()["usage"]["prompt_tokens"]
    assert few > ask(hermes, "[[x]]", reasoning_effort="high").json()["usage"]["prompt_tokens"]  # an empty pair of tags
