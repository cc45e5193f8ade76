"""What a model's answers may consist of besides text, and how one request wants them read.

`AnswerForms` belongs to the model: its dialects of calls and of reasoning. `AnswerReader` belongs to one choice of one request:

    text ─▶ ReasoningParser ─▶ content ─▶ CallParser ─▶ AnswerPiece(reasoning, content, calls)          text ─▶ ChannelParser ─▶ AnswerPiece
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..structured.after_reasoning import Marks, marks_of
from ..tokenizer.chat_template import ChatTemplate
from ..tokenizer.tokenizer import Tokenizer
from .channel_parser import ChannelParser
from .channels import ChannelDialect, derived_channels, history_message, marks_are_special, with_calls
from .dialect import CallDialect, NoDialect, Slot, derived_dialect
from .parser import AnswerPiece, CallDelta, CallParser
from .reasoning import ReasoningDialect, ReasoningParser, derived_reasoning


@dataclass(frozen=True, slots=True)
class AnswerForms:
    """`why_no_calls` says why `calls` is None. `shown_ids`: special tokens that the dialects are written with.

    With `channels`, they say how answers are read and kept to a form; `calls` and `reasoning` are then what the template writes in them.
    """

    calls: CallDialect | None
    why_no_calls: str
    reasoning: ReasoningDialect | None
    marks: Marks | None
    shown_ids: frozenset[int]
    channels: ChannelDialect | None = None

    @property
    def writes_call_ids(self) -> bool:
        """Whether ids are part of the text, where templates insist on nine letters and digits."""
        return self.calls is not None and Slot.ID in self.calls.call

    def history_message(self, message: dict[str, Any]) -> dict[str, Any]:
        """A message of the conversation so far as the template wants it: its own name for reasoning, and its form of arguments."""
        if self.channels is not None:
            message = history_message(self.channels, message)
        if self.reasoning is not None and "reasoning_content" in message and self.reasoning.history_key not in message:
            message = {**message, self.reasoning.history_key: message["reasoning_content"]}
        if self.calls is None or "tool_calls" not in message:
            return message
        calls = []
        for call in message["tool_calls"]:
            arguments = self.calls.history_arguments(call["function"]["arguments"])
            calls.append({**call, "function": {**call["function"], "arguments": arguments}})
        content = {"content": None} if self.calls.needs_no_content and not message.get("content") else {}
        return {**message, "tool_calls": calls, **content}


def answer_forms(template: ChatTemplate, tokenizer: Tokenizer, eos_ids: Sequence[int]) -> AnswerForms:
    end_texts = [tokenizer.backend.id_to_token(token_id) or "" for token_id in eos_ids]
    channels = derived_channels(template)
    if channels is not None and not marks_are_special(channels, tokenizer.split_special(channels.literals)):
        channels = None
    calls, why = None, ""
    try:
        calls = derived_dialect(template, end_texts, in_channels=channels is not None)
    except NoDialect as error:
        why = str(error)
    if channels is not None:
        return _channel_forms(with_calls(channels, calls, end_texts), calls, why, tokenizer, eos_ids)
    reasoning = derived_reasoning(template)
    literals = (calls.literals if calls is not None else "") + "\n" + (reasoning.open + reasoning.close if reasoning is not None else "")
    marks = marks_of(tokenizer, reasoning.open, reasoning.close) if reasoning is not None else None
    return AnswerForms(calls, why, reasoning, marks, _special_ids(tokenizer, literals, eos_ids))


def _channel_forms(
    channels: ChannelDialect, calls: CallDialect | None, why: str, tokenizer: Tokenizer, eos_ids: Sequence[int]
) -> AnswerForms:
    if calls is not None and channels.call is None:
        calls, why = None, "the template writes calls in another form than the other messages of an answer"
    shown_ids = _special_ids(tokenizer, channels.literals, eos_ids)
    return AnswerForms(calls, why, channels.reasoning_dialect, None, shown_ids, channels)


def _special_ids(tokenizer: Tokenizer, literals: str, eos_ids: Sequence[int]) -> frozenset[int]:
    return frozenset(part for part in tokenizer.split_special(literals) if isinstance(part, int)) - frozenset(eos_ids)


@dataclass(slots=True)
class ReadOptions:
    """How the answers of one request are read. `functions` {}: no calls. `is_open`: the prompt has opened the reasoning.

    `splits_reasoning`: it is taken out of the content; `gives_reasoning`: and given out. `begun`: of answers in channels, what the prompt
    has written of the first message. `shown_ids`: special tokens that are part of the text. `has_headers`: the text of the model holds
    headers that are taken out of it, in which no stop string may count.
    """

    forms: AnswerForms
    functions: dict[str, Any] = field(default_factory=dict)
    is_open: bool = False
    splits_reasoning: bool = False
    gives_reasoning: bool = False
    begun: str = ""

    shown_ids: frozenset[int] = field(init=False)
    has_headers: bool = field(init=False)

    def __post_init__(self) -> None:
        has_parsers = bool(self.functions) or self.splits_reasoning or self.forms.channels is not None
        self.shown_ids = self.forms.shown_ids if has_parsers else frozenset()
        self.has_headers = self.forms.channels is not None and self.splits_reasoning

    def is_in_content(self, text: str) -> bool:
        """Whether `text`, of an answer in channels, ends within content."""
        assert self.forms.channels is not None
        parser = self.channel_parser(self.forms.channels)
        parser.push(text)
        return parser.is_in_content

    def channel_parser(self, channels: ChannelDialect) -> ChannelParser:
        return ChannelParser(channels, self.functions, begun=self.begun, is_raw=not self.splits_reasoning)


class AnswerReader:
    """Reads one choice."""

    def __init__(self, options: ReadOptions) -> None:
        forms = options.forms
        self._options = options
        self._channels: ChannelParser | None = None
        self._reasoning: ReasoningParser | None = None
        self._calls: CallParser | None = None
        if not (options.splits_reasoning or options.functions):
            return
        if forms.channels is not None:
            self._channels = options.channel_parser(forms.channels)
            return
        if forms.reasoning is not None:
            self._reasoning = ReasoningParser(forms.reasoning, is_open=options.is_open, is_raw=not options.splits_reasoning)
        if options.functions and forms.calls is not None:
            self._calls = CallParser(forms.calls, options.functions)

    @property
    def is_plain(self) -> bool:
        """Whether every text from here on is content as it is."""
        return self._channels is None and self._calls is None and (self._reasoning is None or self._reasoning.is_over)

    @property
    def reasoning_mark(self) -> str | None:
        """Where every text is reasoning that is given out, until this mark."""
        if self._reasoning is None or self._calls is not None or not (self._options.splits_reasoning and self._options.gives_reasoning):
            return None
        return self._reasoning.mark

    @property
    def num_calls(self) -> int:
        parser = self._channels or self._calls
        return parser.num_calls if parser is not None else 0

    @property
    def in_reasoning(self) -> bool:
        if self._channels is not None:
            return self._channels.is_in_reasoning
        return self._reasoning is not None and self._reasoning.is_inside

    def push(self, text: str) -> AnswerPiece:
        if self.is_plain:
            return AnswerPiece("", text)
        if self._channels is not None:
            return self._wanted(self._channels.push(text))
        reasoning, content = self._reasoning.push(text) if self._reasoning is not None else ("", text)
        return self._piece(reasoning, self._calls.push(content) if self._calls is not None else [content])

    def finish(self) -> AnswerPiece:
        if self._channels is not None:
            return self._wanted(self._channels.finish())
        reasoning, content = self._reasoning.finish() if self._reasoning is not None else ("", "")
        if self._calls is None:
            return self._piece(reasoning, [content])
        return self._piece(reasoning, [*self._calls.push(content), *self._calls.finish()])

    def _wanted(self, piece: AnswerPiece) -> AnswerPiece:
        if not self._options.gives_reasoning:
            piece.reasoning = ""
        return piece

    def _piece(self, reasoning: str, items: list[str | CallDelta]) -> AnswerPiece:
        piece = AnswerPiece()
        if self._options.splits_reasoning:
            piece.reasoning = reasoning if self._options.gives_reasoning else ""
        else:
            piece.content = reasoning
        for item in items:
            if isinstance(item, str):
                piece.content += item
            elif piece.calls and item.name is None and piece.calls[-1].call_idx == item.call_idx:
                piece.calls[-1].arguments += item.arguments
            else:
                piece.calls.append(item)
        return piece
