"""/v1/messages and /v1/responses with the published clients, and API keys."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from friendli_runtime.errors import ConfigError
from friendli_runtime.server import messages, responses
from friendli_runtime.server.auth import ApiKeys
from tools.templates import OPENS_THINKING

from .conftest import TestServer, start
from .test_tools import REASONED, TOOLS, TWO_CALLS, WEATHER

REASONED_CALLS = "hm\n</think>\n\n" + TWO_CALLS
CLAUDE_TOOLS: Any = [
    {"name": "get_weather", "input_schema": WEATHER},
    {"name": "now", "input_schema": {"type": "object", "properties": {}}},
]
RESPONSE_TOOLS: Any = [{"type": "function", **tool["function"], "strict": True} for tool in TOOLS]


@pytest.fixture(scope="module")
def thinking() -> Iterator[TestServer]:
    running, stop = start(template=OPENS_THINKING.replace("<|im_end|>", "<|end|>"), max_context_len=4096)
    yield running
    stop()


@pytest.fixture(scope="module")
def claude(thinking: TestServer) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=thinking.url, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def client(thinking: TestServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=thinking.url + "/v1", api_key="none", max_retries=0) as opened:
        yield opened


def ask(text: str) -> Any:
    return [{"role": "user", "content": f"[[{text}]]"}]


# /v1/messages ----------------------------------------------------------------------------------------------------------------------------


def test_a_message_has_text_and_usage(claude: anthropic.Anthropic) -> None:
    message = claude.messages.create(model="scripted", max_tokens=100, messages=ask(REASONED), system="be brief")
    assert [(block.type, block.text) for block in message.content if block.type == "text"] == [("text", "the answer")]
    assert message.stop_reason == "end_turn" and message.usage.output_tokens > 0 and message.usage.input_tokens > 0
    assert len(message.content) == 1, "reasoning is left out unless asked for"


def test_the_tokens_of_a_prompt_are_counted_as_its_answer_counts_them(claude: anthropic.Anthropic, thinking: TestServer) -> None:
    fields: Any = {"model": "scripted", "messages": ask("hi " * 3000), "system": "be brief", "tools": CLAUDE_TOOLS}
    counts = []
    for kept in (("messages",), ("messages", "system"), ("messages", "system", "tools")):
        given: Any = {name: fields[name] for name in ("model", *kept)}
        counts.append(claude.messages.count_tokens(**given).input_tokens)
    assert counts == sorted(set(counts)), "each part adds to the prompt"
    short: Any = {**fields, "messages": ask("hi")}
    assert claude.messages.count_tokens(**short).input_tokens == claude.messages.create(max_tokens=5, **short).usage.input_tokens
    refused = thinking.post("/v1/messages/count_tokens", messages=[{"role": "user"}], model="scripted")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "messages")


def test_thinking_is_a_block_of_its_own(claude: anthropic.Anthropic) -> None:
    fields: Any = {"thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 2000, "messages": ask(REASONED)}
    message = claude.messages.create(model="scripted", **fields)
    assert [block.type for block in message.content] == ["thinking", "text"]
    assert message.content[0].thinking == "think about\n\nit"  # type: ignore[union-attr]
    with claude.messages.stream(model="scripted", **fields) as stream:
        final = stream.get_final_message()
    assert [block.model_dump() for block in final.content] == [block.model_dump() for block in message.content]
    omitted = claude.messages.create(model="scripted", **{**fields, "thinking": {**fields["thinking"], "display": "omitted"}})
    assert [block.type for block in omitted.content] == ["text"]
    short = claude.messages.create(model="scripted", **{**fields, "thinking": {"type": "enabled", "budget_tokens": 2}})
    assert len(short.content[0].thinking) < 12  # type: ignore[union-attr]


@pytest.mark.parametrize("stream", [False, True])
def test_tool_use_comes_as_blocks(claude: anthropic.Anthropic, stream: bool) -> None:
    fields: Any = {"model": "scripted", "max_tokens": 1000, "tools": CLAUDE_TOOLS, "messages": ask(REASONED_CALLS)}
    if stream:
        with claude.messages.stream(**fields) as events:
            message = events.get_final_message()
    else:
        message = claude.messages.create(**fields)
    assert [block.type for block in message.content] == ["text", "tool_use", "tool_use"] and message.stop_reason == "tool_use"
    assert [(block.name, block.input) for block in message.content if block.type == "tool_use"] == [
        ("get_weather", {"city": 'Paris {"x"} 🙂', "days": 3}),
        ("now", {}),
    ]


def test_tool_results_go_back(claude: anthropic.Anthropic) -> None:
    messages: Any = [
        {"role": "user", "content": [{"type": "text", "text": "weather?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "look"}, {"type": "tool_use", "id": "c1", "name": "now", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "[[</think>noon]]"}]},
    ]
    message = claude.messages.create(model="scripted", max_tokens=100, messages=messages, tools=CLAUDE_TOOLS)
    assert message.content[0].text == "noon"  # type: ignore[union-attr]


@pytest.mark.parametrize("stream", [False, True])
def test_why_it_stopped_is_told(claude: anthropic.Anthropic, stream: bool) -> None:
    def stopped(**fields: Any) -> tuple[Any, Any]:
        given = {"model": "scripted", "max_tokens": 100, "messages": ask("a</think>one two three"), **fields}
        if stream:
            with claude.messages.stream(**given) as events:
                message = events.get_final_message()
        else:
            message = claude.messages.create(**given)
        return message.stop_reason, message.stop_sequence

    assert stopped() == ("end_turn", None)
    assert stopped(max_tokens=3) == ("max_tokens", None)
    assert stopped(stop_sequences=["four", "two"]) == ("stop_sequence", "two")


def test_tool_choice_of_messages(claude: anthropic.Anthropic) -> None:
    fields: Any = {"model": "scripted", "max_tokens": 1000, "tools": CLAUDE_TOOLS, "messages": ask("hm</think>no")}
    for choice, names in (({"type": "any"}, {"get_weather", "now"}), ({"type": "tool", "name": "now"}, {"now"})):
        message = claude.messages.create(**fields, tool_choice=choice)
        assert {block.name for block in message.content if block.type == "tool_use"} & names
    assert claude.messages.create(**fields, tool_choice={"type": "none"}).stop_reason == "end_turn"
    one = {**fields, "messages": ask(REASONED_CALLS), "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}}
    assert len([block for block in claude.messages.create(**one).content if block.type == "tool_use"]) == 1


def test_a_message_has_its_format_after_the_reasoning(thinking: TestServer) -> None:
    config = {"format": {"type": "json_schema", "schema": WEATHER}}
    fields: Any = {"model": "scripted", "max_tokens": 200, "output_config": config}
    text = '{"city": "Paris", "days": 1}'
    for reply in (f"hm</think>{text}", "hm</think>[1, 2]"):
        message = thinking.post("/v1/messages", **fields, messages=ask(reply)).json()
        answer = "".join(block["text"] for block in message["content"] if block["type"] == "text")
        assert (answer == text) == (text in reply) and answer.startswith("{"), message


def test_every_block_of_the_system_text_counts(thinking: TestServer) -> None:
    def num_input_tokens(system: Any) -> int:
        fields: Any = {"model": "scripted", "max_tokens": 100, "messages": ask("a</think>b"), "system": system}
        usage = thinking.post("/v1/messages", **fields).json()["usage"]
        return usage["input_tokens"] + usage["cache_read_input_tokens"]

    blocks = [{"type": "text", "text": text} for text in ("be brief", "and friendly")]
    assert num_input_tokens(blocks) == num_input_tokens("be brief\nand friendly") > num_input_tokens(blocks[:1])


def test_the_effort_of_a_message_reaches_the_template(thinking: TestServer) -> None:
    fields: Any = {"model": "scripted", "max_tokens": 100, "messages": ask("a</think>b")}
    usual, little = (
        thinking.post("/v1/messages", **fields, output_config={"effort": effort}).json()["usage"]["input_tokens"]
        for effort in ("high", "minimal")
    )
    assert usual != little


CALL_OF_BOTH = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
RESULT_OF_BOTH = {"role": "tool", "tool_call_id": "c1", "content": "2"}


def test_earlier_messages_reach_the_chat_with_all_that_is_in_them() -> None:
    answer = [
        {"type": "thinking", "thinking": "hm", "signature": ""},
        {"type": "text", "text": "so"},
        {"type": "tool_use", "id": "c1", "name": "add", "input": {"a": 1}},
    ]
    turns = [
        {"role": "assistant", "content": answer},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "2"}]},
    ]
    request = messages.MessagesRequest(messages=[*ask("x"), *turns], max_tokens=5)
    reasoned = {"role": "assistant", "content": "so", "tool_calls": [CALL_OF_BOTH], "reasoning_content": "hm"}
    assert messages.chat_request(request, has_reasoning=True).messages == [*ask("x"), reasoned, RESULT_OF_BOTH]


def test_earlier_items_reach_the_chat_with_all_that_is_in_them() -> None:
    call = {"type": "function_call", "call_id": "c1", "name": "add", "arguments": {"a": 1}}
    result = {"type": "function_call_output", "call_id": "c1", "output": "2"}
    request = responses.ResponsesRequest(input=[*ask("x"), {"type": "reasoning", "summary": []}, call, result], instructions="be brief")
    called = {"role": "assistant", "content": None, "tool_calls": [CALL_OF_BOTH]}
    assert responses.chat_request(request).messages == [{"role": "system", "content": "be brief"}, *ask("x"), called, RESULT_OF_BOTH]


@pytest.mark.parametrize(
    ("status", "param", "fields"),
    [
        (400, "max_tokens", {"max_tokens": ...}),
        (422, "max_tokens", {"max_tokens": 10**9}),
        (400, "messages", {"messages": ...}),
        (422, "messages", {"messages": []}),
        (422, "messages", {"messages": [{"role": "system", "content": "a"}]}),
        (422, "messages", {"messages": [*ask("x"), {"role": "assistant", "content": "prefill"}]}),
        (422, "messages", {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}),
        (400, "messages", {"messages": [{"role": "user", "content": 3}]}),
        (422, "stop_sequences", {"stop_sequences": [""]}),
        (422, "temperature", {"temperature": -1}),
        (422, "tools", {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}),
        (422, "tool_choice", {"tool_choice": {"type": "all"}}),
        (422, "thinking", {"thinking": {"type": "enabled", "budget_tokens": 0}}),
        (400, "thinking", {"thinking": {"type": "enabled", "budget_token": 9}}),
        (400, "tool_choice", {"tool_choice": {"type": "auto", "disable_parallel": True}}),
        (400, "tools", {"tools": [{"name": "f", "input_schema": {}, "inputs": {}}]}),
        (422, "output_config", {"output_config": {"effort": "enormous"}}),
        (400, "output_config", {"output_config": {"effort": 3}}),
        (400, "output_config", {"output_config": {"format": {"type": "regex", "schema": "a"}}}),
        (400, "output_config", {"output_config": {"format": {"type": "json_schema"}}}),
        (400, "output_config", {"output_config": {"format": {"type": "json_schema", "schema": {"not": {}}}}}),
        (400, "output_config", {"output_config": {"size": 3}}),
        (400, "max_token", {"max_token": 3}),
    ],
)
def test_bad_messages_are_refused_by_name(thinking: TestServer, status: int, param: str, fields: dict[str, Any]) -> None:
    given = {"model": "scripted", "max_tokens": 10, "messages": ask("x"), **fields}
    response = thinking.post("/v1/messages", **{name: value for name, value in given.items() if value is not ...})
    body = response.json()
    assert (response.status_code, body["error"]["param"], body["type"]) == (status, param, "error"), body


def test_a_failure_in_a_stream_of_messages_is_an_error_event(claude: anthropic.Anthropic) -> None:
    with (
        pytest.raises(anthropic.APIStatusError, match="NaN"),
        claude.messages.stream(model="scripted", max_tokens=50, messages=ask("a b c d e f ☢")) as stream,
    ):
        stream.get_final_message()


# /v1/responses ---------------------------------------------------------------------------------------------------------------------------


def final(client: openai.OpenAI, *, stream: bool, **fields: Any) -> Any:
    if not stream:
        return client.responses.create(model="scripted", **fields)
    with client.responses.stream(model="scripted", **fields) as events:
        numbers = [event.sequence_number for event in events]
        assert numbers == list(range(len(numbers)))
        return events.get_final_response()


@pytest.mark.parametrize("stream", [False, True])
def test_a_response_has_reasoning_and_text(client: openai.OpenAI, stream: bool) -> None:
    response = final(client, stream=stream, input=f"[[{REASONED}]]", instructions="be brief", max_output_tokens=200)
    assert response.output_text == "the answer" and response.status == "completed"
    assert [item.type for item in response.output] == ["reasoning", "message"]
    assert response.output[0].content[0].text == "think about\n\nit"
    assert response.usage.output_tokens_details.reasoning_tokens > 0


@pytest.mark.parametrize("stream", [False, True])
def test_function_calls_of_a_response(client: openai.OpenAI, stream: bool) -> None:
    response = final(client, stream=stream, input=ask(REASONED_CALLS), tools=RESPONSE_TOOLS)
    calls = [item for item in response.output if item.type == "function_call"]
    assert [(call.name, json.loads(call.arguments)) for call in calls] == [
        ("get_weather", {"city": 'Paris {"x"} 🙂', "days": 3}),
        ("now", {}),
    ]
    more = [
        {"role": "user", "content": "weather?"},
        *(call.model_dump(exclude_none=True, include={"type", "call_id", "name", "arguments"}) for call in calls),
    ]
    more += [{"type": "function_call_output", "call_id": call.call_id, "output": "[[</think>sunny]]"} for call in calls]
    assert final(client, stream=stream, input=more, tools=RESPONSE_TOOLS).output_text == "sunny"


def test_the_choice_of_tools_of_a_response(client: openai.OpenAI) -> None:
    def names(script: str, **fields: Any) -> list[str]:
        response = client.responses.create(model="scripted", input=f"[[{script}]]", tools=RESPONSE_TOOLS, max_output_tokens=500, **fields)
        return [item.name for item in response.output if item.type == "function_call"]

    assert names(REASONED_CALLS) == names(REASONED_CALLS, parallel_tool_calls=True) == ["get_weather", "now"]
    assert names(REASONED_CALLS, parallel_tool_calls=False) == ["get_weather"]
    assert names(REASONED_CALLS, tool_choice="none") == names("hm</think>no") == []
    assert set(names("hm</think>no", tool_choice={"type": "function", "name": "now"})) == {"now"}
    assert names("hm</think>no", tool_choice="required")


def test_the_effort_of_a_response_reaches_the_template(thinking: TestServer) -> None:
    usual, little = (
        thinking.post("/v1/responses", input="[[a</think>b]]", reasoning={"effort": effort}).json()["usage"]["input_tokens"]
        for effort in ("high", "minimal")
    )
    assert usual != little


@pytest.mark.parametrize("stream", [False, True])
def test_a_response_has_its_format_and_can_be_cut(client: openai.OpenAI, stream: bool) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
    text: Any = {"format": {"type": "json_schema", "name": "n", "schema": schema, "strict": True}}
    assert json.loads(final(client, stream=stream, input='[[x</think>{"a": 12}]]', text=text).output_text) == {"a": 12}
    if not stream:
        cut = final(client, stream=False, input=f"[[{REASONED}]]", max_output_tokens=3)
    else:
        events = list(client.responses.create(model="scripted", input=f"[[{REASONED}]]", max_output_tokens=3, stream=True))
        assert events[-1].type == "response.incomplete"
        cut = events[-1].response
    assert cut.status == "incomplete" and cut.incomplete_details.reason == "max_output_tokens"


@pytest.mark.parametrize(
    ("status", "param", "fields"),
    [
        (400, "input", {"input": ...}),
        (422, "input", {"input": []}),
        (422, "input", {"input": [{"type": "computer_call"}]}),
        (422, "input", {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}),
        (422, "max_output_tokens", {"max_output_tokens": 10**9}),
        (400, "text", {"text": {"format": {"type": "xml"}}}),
        (400, "text", {"text": {"form": 1}}),
        (422, "text", {"text": {"verbosity": "high"}}),
        (400, "reasoning", {"reasoning": {"efort": "low"}}),
        (400, "tool_choice", {"tool_choice": {"type": "function", "name": "f", "strict": True}}),
        (422, "tools", {"tools": [{"type": "web_search"}]}),
        (422, "previous_response_id", {"previous_response_id": "resp_1"}),
        (422, "background", {"background": True}),
        (422, "reasoning", {"reasoning": {"effort": "much"}}),
    ],
)
def test_bad_responses_are_refused_by_name(thinking: TestServer, status: int, param: str, fields: dict[str, Any]) -> None:
    given = {"input": "[[x]]", **fields}
    response = thinking.post("/v1/responses", **{name: value for name, value in given.items() if value is not ...})
    assert (response.status_code, response.json()["error"]["param"]) == (status, param), response.text


# Keys ------------------------------------------------------------------------------------------------------------------------------------


def test_every_key_of_the_file_works_and_the_file_may_change(tmp_path: Path, request: pytest.FixtureRequest, make_server: Any) -> None:
    path = tmp_path / "keys"
    path.write_text("# team a\nalpha\n\nbeta\n")
    server: TestServer = make_server(api_keys=ApiKeys(path))

    def status(**headers: str) -> int:
        return server.client.get("/v1/models", headers=headers).status_code

    assert status(authorization="Bearer alpha") == status(authorization="Bearer beta") == status(**{"x-api-key": "alpha"}) == 200
    for wrong in (
        {},
        {"authorization": "Bearer"},
        {"authorization": "Bearer gamma"},
        {"authorization": "Bearer # team a"},
        {"x-api-key": ""},
    ):
        assert status(**wrong) == 401
    path.write_text("gamma-is-new\n")
    assert status(authorization="Bearer gamma-is-new") == 200 and status(authorization="Bearer alpha") == 401
    path.write_text("\n")
    assert status(authorization="Bearer gamma-is-new") == 200 and status() == 401
    path.unlink()
    assert status(authorization="Bearer gamma-is-new") == 200


def test_no_route_but_health_answers_without_a_key(make_server: Any) -> None:
    server: TestServer = make_server(api_keys=ApiKeys("secret"))
    open_paths = {"/health", "/health/live", "/health/ready"}
    assert open_paths < set(server.app._routes)
    for path in [*(set(server.app._routes) - open_paths), "/v1/nothing", "/", "//v1/models", "/v1/models/"]:
        for method in ("GET", "POST"):
            assert server.client.request(method, path).status_code == 401, path
    assert server.client.get("/health").status_code == 200


def test_a_file_without_keys_is_refused(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("# none\n")
    for source in (tmp_path / "keys", ""):
        with pytest.raises(ConfigError):
            ApiKeys(source)
