"""A chat without a server: the fields of /v1/chat/completions, planned and read by the code that serves them.

    messages, tools, … ─decode─▶ ChatRequest ─planner─▶ prompt, constraint, ReadOptions        deltas ─▶ ChatReader ─▶ ChatDelta … message

What is wrong with a field is an InvalidChat that names it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from .sampling import SamplingParams
from .server.answer_plan import AnswerPlanner, AnyConstraint
from .server.chat import chat_prompt
from .server.errors import ApiError
from .server.fields import ChatRequest, decode_request
from .server.generation import Usage
from .server.limits import Limits
from .server.reading import Choice
from .tokenizer.chat_template import ChatTemplate
from .tokenizer.sample_text import TextDelta
from .tokenizer.tokenizer import Tokenizer
from .tools.forms import ReadOptions
from .tools.parser import CallDelta

_LIMITS = Limits()


class InvalidChat(ValueError):
    """A field of a chat is wrong or cannot be honoured by the model's template. `field` names it, where one is to blame."""

    def __init__(self, message: str, field_name: str | None) -> None:
        super().__init__(message)
        self.field = field_name


@dataclass(slots=True)
class ChatDelta:
    """What a step adds to one sample of a chat. The first piece of a call has its name and id, later ones more of its arguments."""

    sample_idx: int
    content: str
    reasoning: str
    calls: list[CallDelta]
    num_tokens: int
    finish_reason: str | None


@dataclass(slots=True)
class PlannedChat:
    """A chat that may be submitted, once `params` are bound to it (`bound`)."""

    token_ids: list[int]
    bound: Callable[[SamplingParams], tuple[AnyConstraint | None, ReadOptions]]
    """Takes the parameters with all that ends an answer in them. Raises InvalidChat."""


_FIELDS = (
    *("tools", "tool_choice", "parallel_tool_calls", "chat_template_kwargs"),
    *("parse_reasoning", "include_reasoning", "reasoning_effort", "reasoning_budget"),
)


def check_fields(fields: Mapping[str, Any]) -> None:
    """Raises InvalidChat for a name that is none of a chat's."""
    for name in fields:
        if name not in _FIELDS:
            near = get_close_matches(name, _FIELDS, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"a chat has {', '.join(_FIELDS)}; sampling parameters go into SamplingParams"
            raise InvalidChat(f"unknown field '{name}'; {hint}", name)


def planned_chat(
    fields: Mapping[str, Any], params: SamplingParams, planner: AnswerPlanner, tokenizer: Tokenizer, template: ChatTemplate
) -> PlannedChat:
    """`fields`: those of a request that are not in `params`. Raises InvalidChat."""
    with _naming_fields():
        request = decode_request(dict(fields), ChatRequest)
        plan = planner.plan_chat(request, params)
        token_ids, tail = chat_prompt(request, tokenizer, template, _LIMITS, plan, planner.forms)

    def bound(params: SamplingParams) -> tuple[AnyConstraint | None, ReadOptions]:
        with _naming_fields():
            return planner.plan_answer(plan, request, params, tail)

    return PlannedChat(token_ids, bound)


def planner_for(tokenizer: Tokenizer | None, template: ChatTemplate | None, vocab_size: int, eos_ids: Sequence[int]) -> AnswerPlanner:
    """Reasoning is taken apart unless a chat says otherwise."""
    return AnswerPlanner(tokenizer, template, vocab_size, eos_ids, _LIMITS, parse_reasoning=True)


@dataclass(slots=True)
class ChatReader:
    """Reads the samples of one chat."""

    reading: ReadOptions
    new_call_id: Callable[[], str]
    _choices: dict[int, Choice] = field(default_factory=dict)
    _usage: Usage = field(default_factory=Usage)

    def read(self, delta: TextDelta) -> ChatDelta:
        choice = self.choice(delta.sample_idx)
        piece = choice.read(delta, self._usage)
        for call in piece.calls:
            if call.name is not None and call.call_id is None:
                call.call_id = self.new_call_id()
        choice.collect(piece, self.new_call_id)
        return ChatDelta(delta.sample_idx, piece.content, piece.reasoning, piece.calls, delta.num_tokens, choice.finish_reason)

    def choice(self, sample_idx: int) -> Choice:
        """What was read of a sample so far."""
        return self._choices.setdefault(sample_idx, Choice.of(self.reading))


@contextmanager
def _naming_fields() -> Iterator[None]:
    try:
        yield
    except ApiError as error:
        raise InvalidChat(error.message, error.param) from None
