"""POST /v1/chat/completions: messages to a prompt through the model's template, and the answer in OpenAI's shapes, whole or in chunks.

    messages ─check─▶ plain messages ─template─▶ text ─tokenize─▶ ids          deltas ─▶ chunks: role+text, text…, finish, usage, [DONE]

What a user writes stays text: special tokens spelled in a message do not become control tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec

from .._core import plain_messages
from ..tokenizer.chat_template import ChatTemplate, ChatTemplateError, encode_prompt
from ..tokenizer.sample_text import TextDelta, TokenLogprob
from ..tokenizer.tokenizer import Tokenizer
from ..tools.forms import AnswerForms
from ..tools.parser import CallDelta
from .answer_plan import ChatPlan
from .direct_stream import TextFrame
from .errors import bad_request, invalid_value
from .fields import ChatRequest
from .generation import Generation, UsageBody
from .http import encode_json, event_around, parse_json
from .limits import Limits
from .reading import Choice, reading_of

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
_PLAIN_ROLES = {name: role for name, role in _ROLES.items() if name != "tool"}
"""Of messages that need nothing but a content."""
_USED = frozenset({"role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "reasoning"})
_EMPTY_ONLY = frozenset({"refusal", "annotations", "audio", "function_call"})
"""Fields that OpenAI clients send back with an assistant's message; they hold nothing that a template reads."""


def chat_prompt(
    request: ChatRequest, tokenizer: Tokenizer, template: ChatTemplate, limits: Limits, plan: ChatPlan, forms: AnswerForms | None
) -> tuple[list[int], str]:
    """Token ids of the conversation up to the assistant's turn, and the end of its text. Raises ApiError."""
    messages = checked_messages(request.messages, limits, forms)
    tools = plan.tools.tools if plan.tools is not None else None
    try:
        return encode_prompt(template, tokenizer, messages, variables=plan.template_variables, tools=tools)
    except ChatTemplateError as error:
        param = "chat_template_kwargs" if "template variable" in str(error) else "messages"
        raise invalid_value(str(error), param, code="chat_template") from None


def checked_messages(messages: list[dict[str, Any]], limits: Limits, forms: AnswerForms | None) -> list[dict[str, Any]]:
    """The messages as templates expect them: roles known, content a string, tool arguments parsed, in the model's form. Raises ApiError."""
    if not messages:
        raise invalid_value("'messages' is empty, expected at least one message", "messages")
    if len(messages) > limits.max_messages:
        raise invalid_value(f"'messages' has {len(messages)} entries, at most {limits.max_messages} are allowed", "messages")
    plain = plain_messages(messages, _PLAIN_ROLES)
    if plain is not None:
        return plain
    checked = [_checked_message(message, f"messages[{i}]", limits) for i, message in enumerate(messages)]
    return checked if forms is None else [forms.history_message(message) for message in checked]


def _checked_message(message: dict[str, Any], where: str, limits: Limits) -> dict[str, Any]:
    given = {key: value for key, value in message.items() if value is not None}
    role = given.get("role")
    if role is None:
        raise bad_request(f"field '{where}.role' is missing", "messages", "missing_field")
    if not isinstance(role, str) or role not in _ROLES:
        raise invalid_value(f"'{where}.role' is '{str(role)[:40]}', expected one of {', '.join(_ROLES)}", "messages")
    for key, value in given.items():
        if key in _EMPTY_ONLY and value not in ("", [], {}):
            raise invalid_value(f"'{where}.{key}' is not supported by this server; leave it out", "messages", "unsupported_field")
        if key not in _USED and key not in _EMPTY_ONLY:
            raise bad_request(f"unknown field '{where}.{key[:64]}'", "messages", "unknown_field")
        if key in ("name", "tool_call_id", "reasoning_content", "reasoning") and not isinstance(value, str):
            raise bad_request(f"'{where}.{key}' has the wrong type: expected str", "messages", "wrong_type")
    plain = {key: value for key, value in given.items() if key in _USED}
    plain["role"] = _ROLES[role]
    if "reasoning" in plain:  # another client's name for the same thing
        plain.setdefault("reasoning_content", plain.pop("reasoning"))
    if "tool_calls" in plain:
        plain["tool_calls"] = _checked_tool_calls(plain["tool_calls"], f"{where}.tool_calls", limits)
    if role == "tool" and "tool_call_id" not in plain:
        raise bad_request(f"field '{where}.tool_call_id' is missing", "messages", "missing_field")
    plain["content"] = _checked_content(given.get("content"), f"{where}.content", is_needed=not plain.get("tool_calls"))
    return plain


def _checked_content(content: Any, where: str, *, is_needed: bool) -> str:
    """Text of a message; several text parts are joined by line feeds."""
    if content is None and not is_needed:
        return ""
    if content is None:
        raise bad_request(f"field '{where}' is missing", "messages", "missing_field")
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise bad_request(f"'{where}' has the wrong type: expected str or a list of parts", "messages", "wrong_type")
    texts = []
    for i, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            raise invalid_value(f"'{where}[{i}].type' is {str(kind)[:40]!r}; this model reads only parts of type 'text'", "messages")
        if not isinstance(part.get("text"), str):
            raise bad_request(f"'{where}[{i}].text' has the wrong type: expected str", "messages", "wrong_type")
        texts.append(part["text"])
    return "\n".join(texts)


def _checked_tool_calls(calls: Any, where: str, limits: Limits) -> list[dict[str, Any]]:
    """Calls that the assistant made earlier. `arguments` arrive as JSON text; templates print them as objects."""
    if not isinstance(calls, list):
        raise bad_request(f"'{where}' has the wrong type: expected a list", "messages", "wrong_type")
    checked = []
    for i, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise bad_request(
                f"'{where}[{i}]' is not a function call: expected {{id, type, function: {{name, arguments}}}}", "messages", "wrong_type"
            )
        arguments = function.get("arguments", "{}")
        if isinstance(arguments, str):
            arguments = parse_json((arguments or "{}").encode(), limits, f"'{where}[{i}].function.arguments'", "messages")
        checked.append({"id": str(call.get("id", "")), "type": "function", "function": {"name": function["name"], "arguments": arguments}})
    return checked


class ChatChoice(msgspec.Struct):
    index: int
    message: dict[str, Any]
    finish_reason: str | None
    logprobs: dict[str, Any] | None


class ChatCompletion(msgspec.Struct):
    """The answer as a whole."""

    id: str
    object: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageBody


class ChatAnswer:
    """Deltas to chat chunks, or to one chat completion."""

    def __init__(
        self,
        generation: Generation,
        answer_id: str,
        model: str,
        tokenizer: Tokenizer,
        *,
        with_logprobs: bool,
        new_call_id: Callable[[], str],
    ) -> None:
        self._generation = generation
        self._id, self._model, self._tokenizer = f"chatcmpl-{answer_id}", model, tokenizer
        self._with_logprobs = with_logprobs
        self._new_call_id = new_call_id
        self._created = int(time.time())
        self._choices = list(map(Choice.of, [reading_of(generation)] * generation.num_samples))
        self._text_frames: dict[tuple[int, str], TextFrame] = {}

    def chunks(self, choice_idx: int, delta: TextDelta) -> list[dict[str, Any] | bytes]:
        """The frames of one delta: reasoning, text and calls if it has any, then the end if it is the last. Bytes are events already."""
        choice = self._choices[choice_idx]
        if choice.is_plain and choice.has_role and delta.finish_reason is None and not delta.logprobs:
            return [self._text_event(choice_idx, delta.text)] if delta.text else []
        piece = choice.read(delta, self._generation.usage)
        if choice.has_role and choice.finish_reason is None and not (piece.reasoning or piece.calls or delta.logprobs):
            return [self._text_event(choice_idx, piece.content)] if piece.content else []
        contents: list[dict[str, Any]] = []
        if piece.reasoning:
            contents.append({"reasoning_content": piece.reasoning})
        if piece.content:
            contents.append({"content": piece.content})
        for call in piece.calls:
            contents.append({"tool_calls": [self._call_delta(call)]})
        if not contents and ((self._with_logprobs and delta.logprobs) or (choice.finish_reason and not choice.has_role)):
            contents.append({"content": ""})
        frames: list[dict[str, Any] | bytes] = []
        for number, content in enumerate(contents):
            role = {} if choice.has_role else {"role": "assistant"}
            choice.has_role = True
            frames.append(self._chunk(choice_idx, {**role, **content}, None, delta.logprobs if number == 0 else []))
        if choice.finish_reason is not None:
            frames.append(self._chunk(choice_idx, {}, choice.finish_reason, []))
        return frames

    def text_frame(self, choice_idx: int) -> TextFrame | None:
        """See `direct_stream.Framed`."""
        choice = self._choices[choice_idx]
        if not choice.has_role:
            return None
        if choice.is_plain:
            return self._frame_of(choice_idx, "content")
        mark = choice.reasoning_mark
        return self._frame_of(choice_idx, "reasoning_content", mark) if mark is not None else None

    def count_direct(self, choice_idx: int, num_tokens: int) -> None:
        """See `direct_stream.Framed`."""
        self._choices[choice_idx].count(num_tokens, self._generation.usage)

    def _frame_of(self, choice_idx: int, field: str, end_mark: str = "") -> TextFrame:
        """What stands around a piece of text: the same for every piece."""
        frame = self._text_frames.get((choice_idx, field))
        if frame is None:
            text = f"{field} of {self._id}"
            around = event_around(text, self._chunk(choice_idx, {field: text}, None, []))
            frame = self._text_frames[choice_idx, field] = TextFrame(*around, end_mark=end_mark)
        return frame

    def _text_event(self, choice_idx: int, text: str) -> bytes:
        frame = self._frame_of(choice_idx, "content")
        return frame.before + encode_json(text) + frame.after

    def usage_chunk(self) -> dict[str, Any]:
        return {**self._frame(), "choices": [], "usage": self._generation.usage.as_json()}

    def add(self, choice_idx: int, delta: TextDelta) -> None:
        """Collects a delta for `whole`."""
        choice = self._choices[choice_idx]
        choice.collect(choice.read(delta, self._generation.usage), self._new_call_id)
        if self._with_logprobs:
            choice.logprobs.extend(map(self._logprob, delta.logprobs))

    def whole(self) -> ChatCompletion:
        choices = []
        for i, choice in enumerate(self._choices):  # a comprehension costs as much as the rest of this
            if choice.finish_reason is not None:
                choices.append(self._whole_choice(i, choice))
        return ChatCompletion(self._id, "chat.completion", self._created, self._model, choices, self._generation.usage.as_json())

    def _whole_choice(self, index: int, choice: Choice) -> ChatChoice:
        return ChatChoice(index, choice.message(), choice.finish_reason, {"content": choice.logprobs} if self._with_logprobs else None)

    def _call_delta(self, call: CallDelta) -> dict[str, Any]:
        """One entry of `tool_calls`; the first of a call has its id and name."""
        if call.name is None:
            return {"index": call.call_idx, "type": "function", "function": {"arguments": call.arguments}}
        function = {"name": call.name, "arguments": call.arguments}
        return {"index": call.call_idx, "id": call.call_id or self._new_call_id(), "type": "function", "function": function}

    def _frame(self) -> dict[str, Any]:
        return {"id": self._id, "object": "chat.completion.chunk", "created": self._created, "model": self._model}

    def _chunk(self, choice_idx: int, content: dict[str, Any], finish_reason: str | None, logprobs: list[TokenLogprob]) -> dict[str, Any]:
        listed = {"content": [self._logprob(entry) for entry in logprobs]} if self._with_logprobs and logprobs else None
        choice = {"index": choice_idx, "delta": content, "finish_reason": finish_reason, "logprobs": listed}
        return {**self._frame(), "choices": [choice], "usage": None}

    def _logprob(self, entry: TokenLogprob) -> dict[str, Any]:
        top = [self._token(token_id, logprob) for token_id, logprob in entry.top]
        return {**self._token(entry.token_id, entry.logprob), "top_logprobs": top}

    def _token(self, token_id: int, logprob: float) -> dict[str, Any]:
        data = self._tokenizer.token_bytes(token_id)
        return {"token": data.decode("utf-8", "replace"), "logprob": finite(logprob), "bytes": list(data)}


def finite(logprob: float) -> float:
    """JSON has no infinities: an impossible token gets the lowest value that clients expect."""
    return max(logprob, -9999.0)
