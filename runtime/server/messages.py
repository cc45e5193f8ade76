"""POST /v1/messages, Anthropic's shape of a chat: the request becomes a ChatRequest, the answer a message of content blocks. And
POST /v1/messages/count_tokens: how long its prompt is.

    system, messages[text, tool_use, tool_result, thinking] ─▶ ChatRequest    Choice ─▶ message | message_start, content_block_*, message_*

`thinking` enabled gives the model's reasoning as blocks of their own, at most `budget_tokens` of it; otherwise reasoning is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from ..tokenizer.sample_text import TextDelta
from ..tools.request import translated_tools
from .direct_stream import TextFrame
from .errors import bad_request, invalid_value
from .fields import ChatRequest, StreamOptions, refuse_unknown
from .generation import Generation
from .http import event_around
from .reading import Choice, reading_of

RENAMED = {"stop": "stop_sequences", "response_format": "output_config", "reasoning_effort": "output_config"}
_TOOL_KEYS = ("type", "name", "description", "input_schema", "strict", "cache_control", "input_examples", "eager_input_streaming")
"""The last four ask for nothing that is not done anyway."""
_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


class MessagesRequest(msgspec.Struct, kw_only=True):
    """The fields that are read; those that say nothing about the answer are in `fields.IGNORED`."""

    messages: list[dict[str, Any]]
    max_tokens: int
    model: str | None = None
    system: str | list[dict[str, Any]] | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None


class CountTokensRequest(msgspec.Struct, kw_only=True):
    """What of a MessagesRequest the prompt is made of."""

    messages: list[dict[str, Any]]
    model: str | None = None
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None

    def as_messages_request(self) -> MessagesRequest:
        return MessagesRequest(max_tokens=1, **{name: getattr(self, name) for name in CountTokensRequest.__struct_fields__})


def chat_request(request: MessagesRequest, *, has_reasoning: bool) -> ChatRequest:
    """The same request to /v1/chat/completions. Raises ApiError."""
    budget = _thinking_budget(request.thinking, request.max_tokens)
    is_thinking = budget is not None
    messages = [{"role": "system", "content": _text(request.system, "system")}] if request.system else []
    for i, message in enumerate(request.messages):
        messages += _messages(message, f"messages[{i}]")
    if messages and messages[-1]["role"] == "assistant":
        raise invalid_value("the last message is the assistant's; answers cannot be continued", "messages")
    choice, parallel = _tool_choice(request.tool_choice)
    effort, response_format = _output_config(request.output_config or {})
    return ChatRequest(
        messages=messages,
        model=request.model,
        max_tokens=request.max_tokens,
        stop=request.stop_sequences,
        stream=request.stream,
        stream_options=StreamOptions(include_usage=True) if request.stream else None,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        tools=translated_tools(request.tools, _tool),
        tool_choice=choice,
        parallel_tool_calls=parallel,
        response_format=response_format,
        reasoning_effort=effort,
        parse_reasoning=True,
        include_reasoning=is_thinking and (request.thinking or {}).get("display") != "omitted",
        reasoning_budget=budget if is_thinking and has_reasoning else None,
    )


def _thinking_budget(thinking: dict[str, Any] | None, max_tokens: int) -> int | None:
    if thinking is None or thinking.get("type") == "disabled":
        return None
    refuse_unknown(thinking, ("type", "budget_tokens", "display"), "thinking")
    budget = thinking.get("budget_tokens", max_tokens)
    if thinking.get("type") not in ("enabled", "adaptive") or not isinstance(budget, int) or isinstance(budget, bool) or budget < 1:
        raise invalid_value("'thinking' is not {type: enabled, budget_tokens} or {type: disabled}", "thinking")
    return budget


def _output_config(config: dict[str, Any]) -> tuple[str | None, dict[str, Any] | None]:
    """Effort and `response_format` of {effort, format: {type: json_schema, schema}}."""
    refuse_unknown(config, ("effort", "format"), "output_config")
    effort, form = config.get("effort"), config.get("format")
    if effort is not None and not isinstance(effort, str):
        raise bad_request("'output_config.effort' has the wrong type: expected str", "output_config", "wrong_type")
    if form is None:
        return effort, None
    if not isinstance(form, dict) or form.get("type") != "json_schema" or not isinstance(form.get("schema"), dict):
        raise bad_request("'output_config.format' is not {type: json_schema, schema: {…}}", "output_config", "wrong_type")
    return effort, {"type": "json_schema", "json_schema": {"schema": form["schema"]}}


def _messages(message: dict[str, Any], where: str) -> list[dict[str, Any]]:
    """One message as one or, with tool results in it, several."""
    role, content = message.get("role"), message.get("content")
    if role not in ("user", "assistant"):
        raise invalid_value(f"'{where}.role' is {str(role)[:40]!r}, expected 'user' or 'assistant'", "messages")
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    if not isinstance(content, list) or not all(isinstance(block, dict) for block in content):
        raise bad_request(f"'{where}.content' has the wrong type: expected str or a list of blocks", "messages", "wrong_type")
    made: list[dict[str, Any]] = []
    whole: dict[str, Any] = {"role": role, "content": ""}
    for i, block in enumerate(content):
        kind = block.get("type")
        if kind == "text" and isinstance(block.get("text"), str):
            whole["content"] += block["text"]
        elif kind == "tool_result" and role == "user":
            result = _text(block.get("content") or "", f"{where}.content[{i}].content")
            made.append({"role": "tool", "tool_call_id": str(block.get("tool_use_id", "")), "content": result})
        elif kind == "tool_use" and role == "assistant":
            function = {"name": block.get("name"), "arguments": block.get("input", {})}
            whole.setdefault("tool_calls", []).append({"id": block.get("id"), "type": "function", "function": function})
        elif kind == "thinking" and role == "assistant":
            whole["reasoning_content"] = whole.get("reasoning_content", "") + str(block.get("thinking", ""))
        elif kind != "redacted_thinking":
            raise invalid_value(f"'{where}.content[{i}].type' is {str(kind)[:40]!r}, which this model does not read", "messages")
    if whole["content"] or "tool_calls" in whole or not made:
        made.append(whole)
    return made


def _text(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    texts = [block.get("text") for block in content if isinstance(block, dict)] if isinstance(content, list) else [None]
    if not all(isinstance(text, str) for text in texts):
        raise invalid_value(f"'{where}' is not text", where.partition("[")[0])
    return "\n".join(text for text in texts if text is not None)


def _tool(tool: dict[str, Any], where: str) -> dict[str, Any]:
    if tool.get("type", "custom") != "custom" or "input_schema" not in tool:
        raise invalid_value(f"'{where}' is not {{name, description, input_schema}}", "tools")
    refuse_unknown(tool, _TOOL_KEYS, where)
    return {
        "type": "function",
        "function": {"name": tool.get("name"), "description": tool.get("description"), "parameters": tool["input_schema"]},
    }


def _tool_choice(choice: dict[str, Any] | None) -> tuple[Any, bool | None]:
    """`tool_choice` and `parallel_tool_calls` of a chat."""
    if choice is None:
        return None, None
    refuse_unknown(choice, ("type", "name", "disable_parallel_tool_use"), "tool_choice")
    parallel = False if choice.get("disable_parallel_tool_use") else None
    kinds = {"auto": "auto", "any": "required", "none": "none"}
    if choice.get("type") == "tool":
        return {"type": "function", "function": {"name": choice.get("name")}}, parallel
    if not isinstance(choice.get("type"), str) or choice["type"] not in kinds:
        raise invalid_value(f"'tool_choice.type' is {str(choice.get('type'))[:40]!r}, expected auto, any, tool or none", "tool_choice")
    return kinds[choice["type"]], parallel


class MessagesAnswer:
    """Deltas to the events of a stream, or to one message."""

    def __init__(self, generation: Generation, answer_id: str, model: str, new_call_id: Callable[[], str]) -> None:
        self._generation = generation
        self._id, self._model = f"msg_{answer_id}", model
        self._new_call_id = new_call_id
        self._choice = Choice.of(reading_of(generation))
        self._is_started = False
        self._num_blocks = 0
        self._open_kind = ""
        self._text_frames: dict[str, TextFrame] = {}

    def add(self, choice_idx: int, delta: TextDelta) -> None:
        self._choice.collect(self._choice.read(delta, self._generation.usage), self._new_call_id)

    def whole(self) -> dict[str, Any]:
        choice = self._choice
        blocks: list[dict[str, Any]] = []
        if reasoning := "".join(choice.reasoning):
            blocks.append({"type": "thinking", "thinking": reasoning, "signature": ""})
        if content := "".join(choice.content):
            blocks.append({"type": "text", "text": content})
        for call in choice.calls:
            blocks.append({"type": "tool_use", "id": call.call_id, "name": call.name, "input": _parsed(call.arguments)})
        return self._message(blocks, self._stop_reason(), self._usage())

    def events(self, choice_idx: int, delta: TextDelta) -> list[dict[str, Any]]:
        """The events of one delta: blocks begin and end as their kinds change; the last delta ends the message."""
        piece = self._choice.read(delta, self._generation.usage)
        events: list[dict[str, Any]] = []
        if not self._is_started:
            self._is_started = True
            usage = {**self._usage(), "output_tokens": 0}
            events.append({"type": "message_start", "message": self._message([], None, usage)})
        if piece.reasoning:
            events += self._opened("thinking", {"type": "thinking", "thinking": "", "signature": ""})
            events.append(self._delta({"type": "thinking_delta", "thinking": piece.reasoning}))
        if piece.content:
            events += self._opened("text", {"type": "text", "text": ""})
            events.append(self._delta({"type": "text_delta", "text": piece.content}))
        for call in piece.calls:
            if call.name is not None:
                block = {"type": "tool_use", "id": call.call_id or self._new_call_id(), "name": call.name, "input": {}}
                events += self._opened(f"call {call.call_idx}", block)
            if call.arguments:
                events.append(self._delta({"type": "input_json_delta", "partial_json": call.arguments}))
        if self._choice.finish_reason is not None:
            events += self._closed()
            delta_of_message = {"stop_reason": self._stop_reason(), "stop_sequence": self._choice.stop_string}
            events.append({"type": "message_delta", "delta": delta_of_message, "usage": self._usage()})
            events.append({"type": "message_stop"})
        return events

    def text_frame(self, choice_idx: int) -> TextFrame | None:
        """See `direct_stream.Framed`."""
        kind = self._open_kind
        mark = "" if self._choice.is_plain else self._choice.reasoning_mark
        if mark is None or kind != ("thinking" if mark else "text"):
            return None
        if kind not in self._text_frames:  # an answer has one block of each
            text = f"{kind} of {self._id}"
            delta = self._delta({"type": f"{kind}_delta", kind: text})
            self._text_frames[kind] = TextFrame(*event_around(text, delta, named=True), end_mark=mark)
        return self._text_frames[kind]

    def count_direct(self, choice_idx: int, num_tokens: int) -> None:
        """See `direct_stream.Framed`."""
        self._choice.count(num_tokens, self._generation.usage)

    def _opened(self, kind: str, block: dict[str, Any]) -> list[dict[str, Any]]:
        if kind == self._open_kind:
            return []
        events = self._closed()
        self._open_kind = kind
        self._num_blocks += 1
        return [*events, {"type": "content_block_start", "index": self._num_blocks - 1, "content_block": block}]

    def _closed(self) -> list[dict[str, Any]]:
        if not self._open_kind:
            return []
        self._open_kind = ""
        return [{"type": "content_block_stop", "index": self._num_blocks - 1}]

    def _delta(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": self._num_blocks - 1, "delta": delta}

    def _stop_reason(self) -> str:
        return "stop_sequence" if self._choice.stop_string is not None else _STOP_REASONS[self._choice.finish_reason or "stop"]

    def _message(self, blocks: list[dict[str, Any]], stop_reason: str | None, usage: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": blocks,
            "stop_reason": stop_reason,
            "stop_sequence": self._choice.stop_string,
            "usage": usage,
        }

    def _usage(self) -> dict[str, Any]:
        usage = self._generation.usage
        return {
            "input_tokens": usage.num_prompt_tokens - usage.num_cached_tokens,
            "cache_read_input_tokens": usage.num_cached_tokens,
            "cache_creation_input_tokens": 0,
            "output_tokens": usage.num_completion_tokens,
        }


def _parsed(arguments: str) -> Any:
    """The arguments of a call as an object; those that were cut off, or nest too deep to be read, come as text."""
    try:
        return msgspec.json.decode(arguments)
    except (msgspec.DecodeError, RecursionError):
        return {"incomplete": arguments}
