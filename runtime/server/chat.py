"""POST /v1/chat/completions: messages to a prompt through the model's template, and the answer in OpenAI's shapes, whole or in chunks.

    messages ─check─▶ plain messages ─template─▶ text ─tokenize─▶ ids          deltas ─▶ chunks: role+text, text…, finish, usage, [DONE]

What a user writes stays text: special tokens spelled in a message do not become control tokens.
"""

from __future__ import annotations

import time
from typing import Any

import msgspec

from ..tokenizer.chat_template import ChatTemplate, ChatTemplateError, encode_chat
from ..tokenizer.sample_text import TextDelta, TokenLogprob
from ..tokenizer.tokenizer import Tokenizer
from .errors import bad_request, invalid_value
from .fields import ChatRequest
from .generation import Generation
from .limits import Limits

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
_USED = frozenset({"role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "reasoning"})
_EMPTY_ONLY = frozenset({"refusal", "annotations", "audio", "function_call"})
"""Fields that OpenAI clients send back with an assistant's message; they hold nothing that a template reads."""


def chat_prompt(request: ChatRequest, tokenizer: Tokenizer, template: ChatTemplate, limits: Limits) -> list[int]:
    """Token ids of the conversation up to the assistant's turn. Raises ApiError."""
    messages = checked_messages(request.messages, limits)
    try:
        return encode_chat(template, tokenizer, messages, variables=request.chat_template_kwargs)
    except ChatTemplateError as error:
        param = "chat_template_kwargs" if "template variable" in str(error) else "messages"
        raise invalid_value(str(error), param, code="chat_template") from None


def checked_messages(messages: list[dict[str, Any]], limits: Limits) -> list[dict[str, Any]]:
    """The messages as templates expect them: roles known, content a string, tool arguments parsed. Raises ApiError."""
    if not messages:
        raise invalid_value("'messages' is empty, expected at least one message", "messages")
    if len(messages) > limits.max_messages:
        raise invalid_value(f"'messages' has {len(messages)} entries, at most {limits.max_messages} are allowed", "messages")
    return [_checked_message(message, f"messages[{i}]") for i, message in enumerate(messages)]


def _checked_message(message: dict[str, Any], where: str) -> dict[str, Any]:
    given = {key: value for key, value in message.items() if value is not None}
    role = given.get("role")
    if role is None:
        raise bad_request(f"field '{where}.role' is missing", "messages", "missing_field")
    if role not in _ROLES:
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
        plain["tool_calls"] = _checked_tool_calls(plain["tool_calls"], f"{where}.tool_calls")
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
            raise invalid_value(f"'{where}[{i}].type' is {kind!r}; this model reads only parts of type 'text'", "messages")
        if not isinstance(part.get("text"), str):
            raise bad_request(f"'{where}[{i}].text' has the wrong type: expected str", "messages", "wrong_type")
        texts.append(part["text"])
    return "\n".join(texts)


def _checked_tool_calls(calls: Any, where: str) -> list[dict[str, Any]]:
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
            try:
                arguments = msgspec.json.decode(arguments or "{}")
            except msgspec.DecodeError as error:
                raise invalid_value(f"'{where}[{i}].function.arguments' is not JSON: {error}", "messages") from None
        checked.append({"id": str(call.get("id", "")), "type": "function", "function": {"name": function["name"], "arguments": arguments}})
    return checked


class ChatAnswer:
    """Deltas to chat chunks, or to one chat completion."""

    def __init__(self, generation: Generation, answer_id: str, model: str, tokenizer: Tokenizer, *, with_logprobs: bool) -> None:
        self._generation = generation
        self._id, self._model, self._tokenizer = f"chatcmpl-{answer_id}", model, tokenizer
        self._with_logprobs = with_logprobs
        self._has_role: set[int] = set()
        self._texts: dict[int, list[str]] = {}
        self._logprobs: dict[int, list[dict[str, Any]]] = {}
        self._finish_reasons: dict[int, str] = {}

    def chunks(self, choice_idx: int, delta: TextDelta) -> list[dict[str, Any]]:
        """The frames of one delta: text if it has any, then the end if it is the last."""
        frames = []
        is_last = delta.finish_reason is not None
        if delta.text or (self._with_logprobs and delta.logprobs) or (is_last and choice_idx not in self._has_role):
            content: dict[str, Any] = {"content": delta.text}
            if choice_idx not in self._has_role:
                self._has_role.add(choice_idx)
                content = {"role": "assistant", **content}
            frames.append(self._chunk(choice_idx, content, None, delta.logprobs))
        if is_last:
            frames.append(self._chunk(choice_idx, {}, delta.finish_reason, []))
        return frames

    def usage_chunk(self) -> dict[str, Any]:
        return {**self._frame(), "choices": [], "usage": self._generation.usage.as_json()}

    def add(self, choice_idx: int, delta: TextDelta) -> None:
        """Collects a delta for `whole`."""
        self._texts.setdefault(choice_idx, []).append(delta.text)
        self._logprobs.setdefault(choice_idx, []).extend(map(self._logprob, delta.logprobs if self._with_logprobs else ()))
        if delta.finish_reason is not None:
            self._finish_reasons[choice_idx] = delta.finish_reason

    def whole(self) -> dict[str, Any]:
        choices = [
            {
                "index": i,
                "message": {"role": "assistant", "content": "".join(self._texts[i])},
                "finish_reason": reason,
                "logprobs": {"content": self._logprobs[i]} if self._with_logprobs else None,
            }
            for i, reason in sorted(self._finish_reasons.items())
        ]
        return {
            "id": self._id,
            "object": "chat.completion",
            "created": int(time.time()),
            "model": self._model,
            "choices": choices,
            "usage": self._generation.usage.as_json(),
        }

    def _frame(self) -> dict[str, Any]:
        return {"id": self._id, "object": "chat.completion.chunk", "created": int(time.time()), "model": self._model}

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
