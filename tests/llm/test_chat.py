"""Chats offline: reasoning and tool calls are taken apart as the server does, whole and streamed."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from friendli_runtime import LLM, SamplingParams
from friendli_runtime.chat import InvalidChat
from friendli_runtime.errors import ConfigError
from models.scripted import script_tag
from server.served import scripted_artifact

GREEDY = SamplingParams(temperature=0)
TEMPLATE = """{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}
{{- '<|go|>' if loop.last else 'assistant: ' }}
{%- if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}
{%- for call in m.tool_calls or [] %}{% set function = call.function %}
{{- '<call>{"name": "' + function.name + '", "arguments": ' + (function.arguments | tojson) + '}</call>' }}{% endfor %}
{%- else %}{{ m.role + ': ' + m.content }}{% endif %}
{% endfor %}{% if add_generation_prompt %}<|go|>{% endif %}{{ suffix or '' }}"""
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}]
CALL = '<call>{"name": "weather", "arguments": {"city": "Rome"}}</call>'


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    path = tmp_path_factory.mktemp("template") / "template.jinja"
    path.write_text(TEMPLATE)
    with LLM(scripted_artifact(), num_threads=1, chat_template=path) as opened:
        yield opened


def user(answer: str) -> list[dict[str, Any]]:
    """A conversation to which the model gives this answer."""
    return [{"role": "user", "content": script_tag(answer)}]


def test_reasoning_and_calls_are_taken_out_of_the_text(llm: LLM) -> None:
    output = llm.chat(user(f"<think>hm</think>I look.{CALL}"), GREEDY, tools=TOOLS)
    message = output.message
    assert message is not None and output.text == message["content"] == "I look." and message["reasoning_content"] == "hm"
    (call,) = message["tool_calls"]
    assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("weather", {"city": "Rome"})
    assert call["id"].startswith("call_") and output.outputs[0].finish_reason == "tool_calls"


def test_a_streamed_chat_is_the_whole_one_in_pieces(llm: LLM) -> None:
    whole = llm.chat(user(f"<think>hm</think>I look.{CALL}"), GREEDY, tools=TOOLS).message
    deltas = list(llm.stream_chat(user(f"<think>hm</think>I look.{CALL}"), GREEDY, tools=TOOLS))
    assert whole is not None and "".join(delta.content for delta in deltas) == whole["content"]
    assert "".join(delta.reasoning for delta in deltas) == whole["reasoning_content"]
    calls = [call for delta in deltas for call in delta.calls]
    assert calls[0].name == "weather" and calls[0].call_id and "".join(call.arguments for call in calls) == '{"city": "Rome"}'
    assert [delta.finish_reason for delta in deltas if delta.finish_reason] == ["tool_calls"]


def test_the_fields_of_a_chat_are_those_of_the_server(llm: LLM) -> None:
    inline = llm.chat(user("<think>hm</think>yes"), GREEDY, parse_reasoning=False)
    assert inline.text == "<think>hm</think>yes" and inline.message == {"role": "assistant", "content": inline.text}
    assert llm.chat(user("<think>hm</think>yes"), GREEDY, include_reasoning=False).message == {"role": "assistant", "content": "yes"}
    assert llm.chat(user(f"no{CALL}"), GREEDY, tools=TOOLS, tool_choice="none").text == f"no{CALL}"
    forced = llm.chat(user("<call>no"), SamplingParams(temperature=0, max_tokens=200), tools=TOOLS, tool_choice="required").outputs[0]
    assert forced.message is not None and forced.message["tool_calls"][0]["function"]["name"] == "weather"
    assert llm.chat_prompt(user("a"), chat_template_kwargs={"suffix": "x"})[-1] == llm.tokenizer.encode("x")[-1]
    short = llm.chat(user("<think>abcdef</think>yes"), GREEDY, reasoning_budget=3).message
    assert short is not None and short["reasoning_content"] == "abc"


def test_several_samples_are_read_apart(llm: LLM) -> None:
    outputs = llm.chat(user("<think>hm</think>yes"), SamplingParams(temperature=0, n=2, logprobs=0)).outputs
    assert [output.message for output in outputs] == [{"role": "assistant", "content": "yes", "reasoning_content": "hm"}] * 2
    assert all(output.logprobs is not None and len(output.logprobs) == len(output.token_ids) for output in outputs)


def test_a_message_goes_back_into_the_conversation(llm: LLM) -> None:
    first = llm.chat(user(CALL), GREEDY, tools=TOOLS).message
    assert first is not None
    result = {"role": "tool", "tool_call_id": first["tool_calls"][0]["id"], "content": script_tag("sunny")}
    assert llm.chat([{"role": "user", "content": "weather?"}, first, result], GREEDY, tools=TOOLS).text == "sunny"


@pytest.mark.parametrize(
    ("fields", "field"),
    [({"tool": TOOLS}, "tool"), ({"tools": 3}, "tools"), ({"tool_choice": "required"}, "tool_choice"), ({"max_tokens": 3}, "max_tokens")],
)
def test_what_is_wrong_is_named(llm: LLM, fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidChat, match=field) as caught:
        llm.chat(user("x"), GREEDY, **fields)
    assert caught.value.field == field
    with pytest.raises(InvalidChat, match="role"):
        llm.chat([{"role": "nobody", "content": "x"}])


def test_a_template_that_does_not_compile_is_refused_by_its_line(tmp_path: Any) -> None:
    (tmp_path / "wrong.jinja").write_text("a\n{% if %}")
    with pytest.raises(ConfigError, match="line 2"):
        LLM(scripted_artifact(), chat_template=tmp_path / "wrong.jinja")


def test_formats_and_calls_come_after_reasoning_that_the_model_opens_with_several_tokens(llm: LLM) -> None:
    digits = SamplingParams(temperature=0, max_tokens=40, response_format={"type": "regex", "schema": "<?[0-9]{3}"})
    for answer, reasoning, text in (("<think>ab</think>123", "ab", "123"), ("123", "", "123"), ("<123", "", "<123")):
        output = llm.chat(user(answer), digits)
        assert output.message is not None
        assert (output.message.get("reasoning_content", ""), output.text, output.outputs[0].finish_reason) == (reasoning, text, "stop")
    output = llm.chat(user(f"<think>ab</think>{CALL}"), GREEDY, tools=TOOLS, tool_choice="required")
    assert output.message is not None and output.message["reasoning_content"] == "ab" and len(output.message["tool_calls"]) == 1
