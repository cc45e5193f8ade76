"""POST /v1/responses, OpenAI's newer shape of a chat, without stored state: the request becomes a ChatRequest, the answer a list of items.

instructions, input[message, function_call, function_call_output, reasoning] ─▶ ChatRequest
Choice ─▶ response{output: [reasoning, message, function_call…]} | response.created, response.output_item.added, … response.completed
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec

from ..tokenizer.sample_text import TextDelta
from ..tools.parser import CallDelta
from ..tools.request import translated_tools
from .errors import bad_request, invalid_value
from .fields import ChatRequest, StreamOptions, refuse_unknown
from .generation import Generation
from .reading import Choice, reading_of

RENAMED = {"messages": "input", "max_tokens": "max_output_tokens", "response_format": "text", "reasoning_effort": "reasoning"}
_TEXT_PARTS = ("input_text", "output_text", "text")


class ResponsesRequest(msgspec.Struct, kw_only=True):
    """The fields that are read. Nothing is stored, so `previous_response_id` and `conversation` are not among them."""

    input: str | list[dict[str, Any]]
    model: str | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stream: bool | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None
    truncation: str | None = None
    background: bool | None = None


def chat_request(request: ResponsesRequest) -> ChatRequest:
    """The same request to /v1/chat/completions. Raises ApiError."""
    if request.background:
        raise invalid_value("'background' is not supported by this server; leave it out", "background", "unsupported_field")
    if request.truncation not in (None, "disabled"):
        raise invalid_value("'truncation' is not supported by this server; leave it out", "truncation", "unsupported_field")
    messages: list[dict[str, Any]] = [{"role": "system", "content": request.instructions}] if request.instructions else []
    items = [{"role": "user", "content": request.input}] if isinstance(request.input, str) else request.input
    for i, item in enumerate(items):
        _add_item(messages, item, f"input[{i}]")
    choice = request.tool_choice
    if isinstance(choice, dict) and "name" in choice:
        refuse_unknown(choice, ("type", "name"), "tool_choice")
        choice = {"type": "function", "function": {"name": choice["name"]}}
    return ChatRequest(
        messages=messages,
        model=request.model,
        max_tokens=request.max_output_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        stream=request.stream,
        stream_options=StreamOptions(include_usage=True) if request.stream else None,
        tools=translated_tools(request.tools, _tool),
        tool_choice=choice,
        parallel_tool_calls=request.parallel_tool_calls,
        response_format=_format(request.text),
        parse_reasoning=True,
        reasoning_effort=_effort(request.reasoning),
    )


def _add_item(messages: list[dict[str, Any]], item: dict[str, Any], where: str) -> None:
    kind = item.get("type", "message")
    if kind == "message":
        messages.append({"role": item.get("role"), "content": _text(item.get("content"), f"{where}.content")})
    elif kind == "function_call":
        function = {"name": item.get("name"), "arguments": item.get("arguments", "{}")}
        call = {"id": item.get("call_id"), "type": "function", "function": function}
        if messages and messages[-1].get("tool_calls"):
            messages[-1]["tool_calls"].append(call)
        else:
            messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
    elif kind == "function_call_output":
        output = _text(item.get("output"), f"{where}.output")
        messages.append({"role": "tool", "tool_call_id": str(item.get("call_id", "")), "content": output})
    elif kind != "reasoning":  # of an earlier answer: templates drop it
        raise invalid_value(f"'{where}.type' is {str(kind)[:40]!r}, which this server does not read", "input")


def _text(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise bad_request(f"'{where}' has the wrong type: expected str or a list of parts", "input", "wrong_type")
    texts = []
    for i, part in enumerate(content):
        if not isinstance(part, dict) or part.get("type") not in _TEXT_PARTS or not isinstance(part.get("text"), str):
            raise invalid_value(f"'{where}[{i}]' is not text; this model reads only text", "input")
        texts.append(part["text"])
    return "\n".join(texts)


def _tool(tool: dict[str, Any], where: str) -> dict[str, Any]:
    if tool.get("type") != "function":
        raise invalid_value(f"'{where}.type' is {str(tool.get('type'))[:40]!r}, expected 'function'", "tools")
    return {"type": "function", "function": {key: value for key, value in tool.items() if key != "type"}}


def _format(text: dict[str, Any] | None) -> dict[str, Any] | None:
    """`text.format` as a `response_format`. Raises ApiError."""
    given = (text or {}).get("format")
    refuse_unknown(text or {}, ("format", "verbosity"), "text")
    if (text or {}).get("verbosity") not in (None, "medium"):
        raise invalid_value("'text.verbosity' is not supported by this server; leave it out", "text", "unsupported_field")
    if given is None:
        return None
    if not isinstance(given, dict):
        raise bad_request("'text.format' has the wrong type: expected an object", "text", "wrong_type")
    if given.get("type") != "json_schema":
        return given
    return {"type": "json_schema", "json_schema": {key: value for key, value in given.items() if key != "type"}}


def _effort(reasoning: dict[str, Any] | None) -> str | None:
    refuse_unknown(reasoning or {}, ("effort", "summary", "generate_summary"), "reasoning")
    effort = (reasoning or {}).get("effort")
    if effort is not None and not isinstance(effort, str):
        raise bad_request("'reasoning.effort' has the wrong type: expected str", "reasoning", "wrong_type")
    return effort


class ResponsesAnswer:
    """Deltas to the events of a stream, or to one response. Both build the same items."""

    def __init__(
        self, generation: Generation, answer_id: str, model: str, request: ResponsesRequest, new_call_id: Callable[[], str]
    ) -> None:
        self._generation = generation
        self._id, self._model, self._request = answer_id, model, request
        self._new_call_id = new_call_id
        self._choice = Choice.of(reading_of(generation))
        self._created = int(time.time())
        self._items: list[dict[str, Any]] = []
        self._num_events = 0
        self._open_kind = ""

    def add(self, choice_idx: int, delta: TextDelta) -> None:
        self._advance(delta)

    def whole(self) -> dict[str, Any]:
        return self._response()

    def events(self, choice_idx: int, delta: TextDelta) -> list[dict[str, Any]]:
        events: list[dict[str, Any]] = []
        if self._num_events == 0:
            events = [{"type": f"response.{what}", "response": self._response()} for what in ("created", "in_progress")]
        events += self._advance(delta)
        if self._choice.finish_reason is not None:
            response = self._response()
            events.append({"type": f"response.{response['status']}", "response": response})
        for event in events:
            event["sequence_number"] = self._num_events
            self._num_events += 1
        return events

    def _advance(self, delta: TextDelta) -> list[dict[str, Any]]:
        piece = self._choice.read(delta, self._generation.usage)
        events: list[dict[str, Any]] = []
        if piece.reasoning:
            events += self._text_events("reasoning", piece.reasoning)
        if piece.content:
            events += self._text_events("message", piece.content)
        for call in piece.calls:
            events += self._call_events(call)
        if self._choice.finish_reason is not None:
            events += self._closed("completed" if self._choice.finish_reason != "length" else "incomplete")
        return events

    # Items -------------------------------------------------------------------------------------------------------------------------------

    def _text_events(self, kind: str, text: str) -> list[dict[str, Any]]:
        events = []
        part_type = "reasoning_text" if kind == "reasoning" else "output_text"
        if self._open_kind != kind:
            events += self._closed("completed")
            empty = {"type": part_type, "text": "", **({} if kind == "reasoning" else {"annotations": [], "logprobs": []})}
            prefix = "rs" if kind == "reasoning" else "msg"
            item: dict[str, Any] = {"id": f"{prefix}_{self._id}_{len(self._items)}", "type": kind, "status": "in_progress", "content": []}
            more: dict[str, Any] = {"summary": []} if kind == "reasoning" else {"role": "assistant"}
            item |= more
            events += self._opened(kind, item)
            item["content"] = [empty]
            if kind == "message":
                events.append({"type": "response.content_part.added", **self._place(), "content_index": 0, "part": dict(empty)})
        self._items[-1]["content"][0]["text"] += text
        extra: dict[str, Any] = {} if kind == "reasoning" else {"logprobs": []}
        return [*events, {"type": f"response.{part_type}.delta", **self._place(), "content_index": 0, "delta": text, **extra}]

    def _call_events(self, call: CallDelta) -> list[dict[str, Any]]:
        events = []
        if call.name is not None:
            events += self._closed("completed")
            item = {"id": f"fc_{self._id}_{len(self._items)}", "type": "function_call", "status": "in_progress", "name": call.name}
            item |= {"call_id": call.call_id or self._new_call_id(), "arguments": ""}
            events += self._opened("function_call", item)
        if call.arguments:
            self._items[-1]["arguments"] += call.arguments
            events.append({"type": "response.function_call_arguments.delta", **self._place(), "delta": call.arguments})
        return events

    def _opened(self, kind: str, item: dict[str, Any]) -> list[dict[str, Any]]:
        self._items.append(item)
        self._open_kind = kind
        return [{"type": "response.output_item.added", "output_index": len(self._items) - 1, "item": dict(item)}]

    def _closed(self, status: str) -> list[dict[str, Any]]:
        """Ends the open item."""
        if not self._open_kind:
            return []
        kind, self._open_kind = self._open_kind, ""
        item = self._items[-1]
        item["status"] = status
        done = {"type": "response.output_item.done", "output_index": len(self._items) - 1, "item": item}
        place = self._place()
        if kind == "function_call":
            arguments = {"arguments": item["arguments"], "name": item["name"]}
            return [{"type": "response.function_call_arguments.done", **place, **arguments}, done]
        part = item["content"][0]
        if kind == "reasoning":
            return [{"type": "response.reasoning_text.done", **place, "content_index": 0, "text": part["text"]}, done]
        text_done = {"type": "response.output_text.done", **place, "content_index": 0, "text": part["text"], "logprobs": []}
        return [text_done, {"type": "response.content_part.done", **place, "content_index": 0, "part": part}, done]

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._items[-1]["id"], "output_index": len(self._items) - 1}

    def _response(self) -> dict[str, Any]:
        request = self._request
        reason = self._choice.finish_reason
        status = "in_progress" if reason is None else "incomplete" if reason == "length" else "completed"
        return {
            "id": f"resp_{self._id}",
            "object": "response",
            "created_at": self._created,
            "status": status,
            "model": self._model,
            "output": self._items if reason is not None else [],
            "usage": self._usage() if reason is not None else None,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "metadata": {},
            "parallel_tool_calls": request.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": request.reasoning or {},
            "store": False,
            "temperature": 1.0 if request.temperature is None else request.temperature,
            "text": request.text or {"format": {"type": "text"}},
            "tool_choice": request.tool_choice or "auto",
            "tools": request.tools or [],
            "top_p": 1.0 if request.top_p is None else request.top_p,
            "truncation": "disabled",
        }

    def _usage(self) -> dict[str, Any]:
        usage = self._generation.usage
        return {
            "input_tokens": usage.num_prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.num_cached_tokens},
            "output_tokens": usage.num_completion_tokens,
            "output_tokens_details": {"reasoning_tokens": usage.num_reasoning_tokens or 0},
            "total_tokens": usage.num_prompt_tokens + usage.num_completion_tokens,
        }
