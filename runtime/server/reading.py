"""One choice of a chat-like answer, read piece by piece: reasoning, content, calls and why it ended.

Shared by /v1/chat/completions, /v1/messages and /v1/responses, which differ in how they write it down.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from ..tokenizer.sample_text import TextDelta
from ..tools.forms import AnswerReader, ReadOptions
from ..tools.parser import AnswerPiece, CallDelta
from .generation import Generation, Usage


def reading_of(generation: Generation) -> ReadOptions:
    """How the answers of a chat are to be read; from here on reasoning tokens are counted, if they are told apart."""
    reading = generation.prompts[0].reading
    assert reading is not None
    if reading.splits_reasoning and reading.forms.reasoning is not None:
        generation.usage.num_reasoning_tokens = 0
    return reading


class Choice(msgspec.Struct, eq=False):
    """`read` each delta; `collect` what it gave when the answer is wanted as a whole. `is_plain`: every text from here on is content."""

    _reader: AnswerReader | None
    is_plain: bool
    has_role: bool = False
    reasoning: list[str] = []
    content: list[str] = []
    calls: list[CallDelta] = []
    logprobs: list[dict[str, Any]] = []
    finish_reason: str | None = None
    stop_string: str | None = None

    @staticmethod
    def of(reading: ReadOptions) -> Choice:
        """One of which nothing has been read."""
        reader = AnswerReader(reading) if reading.splits_reasoning or reading.functions else None
        return Choice(reader, reader is None or reader.is_plain)

    def read(self, delta: TextDelta, usage: Usage) -> AnswerPiece:
        """What a delta adds; the last one sets the finish reason: `stop`, `length` or `tool_calls`."""
        reader = self._reader
        if reader is None:
            self.finish_reason, self.stop_string = delta.finish_reason, delta.stop_string
            return AnswerPiece("", delta.text)
        self.count(delta.num_tokens, usage)
        piece = reader.push(delta.text)
        self.is_plain = reader.is_plain
        if delta.finish_reason is not None:
            last = reader.finish()
            piece = AnswerPiece(piece.reasoning + last.reasoning, piece.content + last.content, [*piece.calls, *last.calls])
            is_call = delta.finish_reason == "stop" and reader.num_calls > 0
            self.finish_reason = "tool_calls" if is_call else delta.finish_reason
            self.stop_string = delta.stop_string
        return piece

    @property
    def reasoning_mark(self) -> str | None:
        """Where every text is reasoning that is given out, until this mark."""
        return self._reader.reasoning_mark if self._reader is not None else None

    def count(self, num_tokens: int, usage: Usage) -> None:
        """The next tokens, which the core has written if they are not about to be read."""
        if usage.num_reasoning_tokens is not None and self._reader is not None and self._reader.in_reasoning:
            usage.num_reasoning_tokens += num_tokens

    def collect(self, piece: AnswerPiece, new_call_id: Callable[[], str]) -> None:
        """Keeps a piece; every call gets an id."""
        self.content.append(piece.content)
        if piece.reasoning:
            self.reasoning.append(piece.reasoning)
        for call in piece.calls:
            if call.name is not None:
                self.calls.append(CallDelta(call.call_idx, call.name, call.arguments, call.call_id or new_call_id()))
            else:
                self.calls[-1].arguments += call.arguments

    def message(self) -> dict[str, Any]:
        """What was collected, as the assistant's message of a conversation."""
        content = "".join(self.content)
        message: dict[str, Any] = {"role": "assistant", "content": content if content or not self.calls else None}
        if reasoning := "".join(self.reasoning):
            message["reasoning_content"] = reasoning
        if self.calls:
            message["tool_calls"] = [
                {"id": call.call_id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in self.calls
            ]
        return message
