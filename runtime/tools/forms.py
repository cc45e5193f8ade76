"""What a model's answers may consist of besides text, and how one request wants them read.

`AnswerForms` belongs to the model: its dialects of calls and of reasoning. `AnswerReader` belongs to one choice of one request:

    text ─▶ ReasoningParser ─▶ content ─▶ CallParser ─▶ AnswerPiece(reasoning, content, calls)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..structured.after_reasoning import Marks, marks_of
from ..tokenizer.chat_template import ChatTemplate
from ..tokenizer.tokenizer import Tokenizer
from .dialect import CallDialect, NoDialect, Slot, derived_dialect
from .parser import CallDelta, CallParser
from .reasoning import ReasoningDialect, ReasoningParser, derived_reasoning


@dataclass(frozen=True, slots=True)
class AnswerForms:
    """`why_no_calls` says why `calls` is None. `shown_ids`: special tokens that the dialects are written with."""

    calls: CallDialect | None
    why_no_calls: str
    reasoning: ReasoningDialect | None
    marks: Marks | None
    shown_ids: frozenset[int]

    @property
    def writes_call_ids(self) -> bool:
        """Whether ids are part of the text, where templates insist on nine letters and digits."""
        return self.calls is not None and Slot.ID in self.calls.call


def answer_forms(template: ChatTemplate, tokenizer: Tokenizer, eos_ids: Sequence[int]) -> AnswerForms:
    end_texts = [tokenizer.backend.id_to_token(token_id) or "" for token_id in eos_ids]
    calls, why = None, ""
    try:
        calls = derived_dialect(template, end_texts)
    except NoDialect as error:
        why = str(error)
    reasoning = derived_reasoning(template)
    literals = (calls.literals if calls is not None else "") + "\n" + (reasoning.open + reasoning.close if reasoning is not None else "")
    shown = frozenset(part for part in tokenizer.split_special(literals) if isinstance(part, int)) - frozenset(eos_ids)
    marks = marks_of(tokenizer, reasoning.open, reasoning.close) if reasoning is not None else None
    return AnswerForms(calls, why, reasoning, marks, shown)


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How the answers of one request are read. `functions` {}: no calls. `is_open`: the prompt has opened the reasoning.

    `splits_reasoning`: it is taken out of the content; `gives_reasoning`: and given out.
    """

    forms: AnswerForms
    functions: dict[str, Any] = field(default_factory=dict)
    is_open: bool = False
    splits_reasoning: bool = False
    gives_reasoning: bool = False

    @property
    def shown_ids(self) -> frozenset[int]:
        return self.forms.shown_ids if self.functions or self.splits_reasoning else frozenset()


@dataclass(slots=True)
class AnswerPiece:
    """What one delta adds."""

    reasoning: str = ""
    content: str = ""
    calls: list[CallDelta] = field(default_factory=list)


class AnswerReader:
    """Reads one choice."""

    def __init__(self, options: ReadOptions) -> None:
        forms = options.forms
        self._options = options
        self._reasoning: ReasoningParser | None = None
        if forms.reasoning is not None and (options.splits_reasoning or options.functions):
            self._reasoning = ReasoningParser(forms.reasoning, is_open=options.is_open, is_raw=not options.splits_reasoning)
        self._calls = CallParser(forms.calls, options.functions) if options.functions and forms.calls is not None else None

    @property
    def is_plain(self) -> bool:
        """Whether every text is content as it is."""
        return self._reasoning is None and self._calls is None

    @property
    def num_calls(self) -> int:
        return self._calls.num_calls if self._calls is not None else 0

    @property
    def in_reasoning(self) -> bool:
        return self._reasoning is not None and self._reasoning.is_inside

    def push(self, text: str) -> AnswerPiece:
        if self.is_plain:
            return AnswerPiece("", text)
        reasoning, content = self._reasoning.push(text) if self._reasoning is not None else ("", text)
        return self._piece(reasoning, self._calls.push(content) if self._calls is not None else [content])

    def finish(self) -> AnswerPiece:
        reasoning, content = self._reasoning.finish() if self._reasoning is not None else ("", "")
        if self._calls is None:
            return self._piece(reasoning, [content])
        return self._piece(reasoning, [*self._calls.push(content), *self._calls.finish()])

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
