"""What the answers of a request may be, and how they are read: formats, tools and reasoning of a request → a constraint and ReadOptions.

                     no format or tools     tools                                 response_format
    no reasoning     any text               calls enforced from their mark on     the format from the first token on
    reasoning        a budget, if asked     after the reasoning                   after it, if it is parsed or the prompt opens it

One planner per server; `plan_*` may take long (schemas are compiled) and runs on one thread.
"""

from __future__ import annotations

import secrets
import string
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from msgspec.structs import astuple

from .._core import plain_values
from ..sampling import SamplingParams
from ..structured.after_reasoning import AfterReasoning
from ..structured.constraint import Constraint, ConstraintCompiler
from ..structured.errors import InvalidConstraint
from ..structured.response_format import grammar_of
from ..tokenizer.chat_template import ChatTemplate
from ..tokenizer.tokenizer import Tokenizer
from ..tools.channel_grammar import ChannelConstraint, ChannelWishes, channel_constraint
from ..tools.constraint import CallConstraint, call_constraint
from ..tools.forms import AnswerForms, ReadOptions, answer_forms
from ..tools.request import InvalidTools, ToolRequest, tool_request
from .errors import bad_request, invalid_value
from .fields import ChatRequest
from .limits import Limits

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max", "ultracode")
_ALPHANUMERIC = string.ascii_letters + string.digits
AnyConstraint = Constraint | CallConstraint | AfterReasoning | ChannelConstraint
_NOT_PLANNED = frozenset({"model", "messages", "stream", "stream_options"})
_PLANNED_FIELDS = sum(1 << i for i, name in enumerate(ChatRequest.__struct_fields__) if name not in _NOT_PLANNED)
"""As bits; a kind of request with more fields has them behind these."""
_MAX_REMEMBERED = 256


class ChatPlan(msgspec.Struct):
    """Of a chat request, before its prompt is known. `tools`: None when the model may not call.

    `free_answers`: how answers without a constraint are read, by whether the prompt has opened the reasoning.
    """

    tools: ToolRequest | None
    template_variables: dict[str, Any]
    parses_reasoning: bool
    gives_reasoning: bool
    free_answers: dict[bool, ReadOptions] = {}


class AnswerPlanner:
    """`template` None: a model without chat. `parse_reasoning`: what requests that do not say want."""

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        template: ChatTemplate | None,
        vocab_size: int,
        eos_ids: Sequence[int],
        limits: Limits,
        *,
        parse_reasoning: bool = False,
    ) -> None:
        self._template = template
        self._max_tools, self._constraint_limits = limits.max_tools, limits.of_constraints
        self._parse_reasoning = parse_reasoning
        self._compiler = ConstraintCompiler(tokenizer, vocab_size, eos_ids) if tokenizer is not None else None
        self._remembered: dict[tuple[object, ...], tuple[SamplingParams, ChatPlan]] = {}
        self.forms: AnswerForms | None = None
        if tokenizer is not None and template is not None:
            self.forms = answer_forms(template, tokenizer, eos_ids)

    def warm_up(self) -> None:
        """Makes what all grammars share, which takes about a second for a large vocabulary. May run on any thread."""
        if self._compiler is not None:
            self._compiler.warm_up()

    def plan_format(self, params: SamplingParams) -> Constraint | None:
        """What `response_format` asks for; None: anything. Raises ApiError 400."""
        try:
            return self._format(params)
        except InvalidConstraint as error:
            raise bad_request(str(error), error.param, "invalid_constraint") from None

    def params_and_plan(self, request: ChatRequest, params_of: Callable[[ChatRequest], SamplingParams]) -> tuple[SamplingParams, ChatPlan]:
        """`params_of(request)` and the plan for them, the same objects for requests that differ in their messages only.

        `params_of`: always the same function. Raises ApiError.
        """
        key = plain_values(astuple(request), _PLANNED_FIELDS)
        remembered = self._remembered.get(key) if key is not None else None
        if remembered is not None:
            return remembered
        params = params_of(request)
        made = params, self.plan_chat(request, params)
        if key is not None:
            if len(self._remembered) >= _MAX_REMEMBERED:
                self._remembered.clear()  # the common ones are back soon
            self._remembered[key] = made
        return made

    def plan_chat(self, request: ChatRequest, params: SamplingParams) -> ChatPlan:
        """Checks the fields. Raises ApiError."""
        parses = request.parse_reasoning
        if parses is None:  # in channels, text that is not taken apart is not an answer
            parses = self._parse_reasoning or (self.forms is not None and self.forms.channels is not None)
        if request.include_reasoning is False and not parses:
            raise invalid_value("'include_reasoning' false needs 'parse_reasoning': true", "include_reasoning")
        if request.reasoning_budget is not None and request.reasoning_budget < 1:
            raise invalid_value(f"'reasoning_budget' is {request.reasoning_budget}, expected 1 or more", "reasoning_budget")
        if request.reasoning_budget is not None and (self.forms is None or self.forms.reasoning is None):
            raise invalid_value("the chat template of this model knows no reasoning", "reasoning_budget", "unsupported_field")
        return ChatPlan(self._tools(request, params), self._variables(request), parses, request.include_reasoning is not False)

    def plan_answer(
        self, plan: ChatPlan, request: ChatRequest, params: SamplingParams, prompt_tail: str
    ) -> tuple[AnyConstraint | None, ReadOptions]:
        """The constraint of the answer and how to read it, given how the prompt ends. Raises ApiError."""
        assert self.forms is not None
        reasoning = self.forms.reasoning
        is_open = reasoning is not None and reasoning.is_opened_by(prompt_tail)
        if is_open in plan.free_answers:
            return None, plan.free_answers[is_open]
        functions = dict(plan.tools.schemas) if plan.tools is not None else {}
        channels = self.forms.channels
        splits = plan.parses_reasoning or (params.is_constrained and (is_open or channels is not None))
        begun = channels.begun_by(prompt_tail) if channels is not None else ""
        options = ReadOptions(self.forms, functions, is_open, splits, plan.parses_reasoning and plan.gives_reasoning, begun)
        try:
            constraint = self._constraint(plan, request, params, options)
            if constraint is None and channels is None:
                plan.free_answers[is_open] = options
            return constraint, options
        except InvalidConstraint as error:
            raise bad_request(str(error), error.param, "invalid_constraint") from None

    def new_call_id(self) -> str:
        """In the form that the model's own template takes back."""
        if self.forms is not None and self.forms.writes_call_ids:
            return "".join(secrets.choice(_ALPHANUMERIC) for _ in range(9))
        return "call_" + "".join(secrets.choice(_ALPHANUMERIC) for _ in range(24))

    def _format(self, params: SamplingParams) -> Constraint | None:
        grammar = grammar_of(params.response_format, self._constraint_limits)
        if grammar is None:
            return None
        return self._needed_compiler().compile(grammar, _end_ids(params))

    def _needed_compiler(self) -> ConstraintCompiler:
        if self._compiler is None:
            raise InvalidConstraint("this model has no tokenizer, so its answers cannot be kept to a format")
        return self._compiler

    def _constraint(self, plan: ChatPlan, request: ChatRequest, params: SamplingParams, options: ReadOptions) -> AnyConstraint | None:
        if options.forms.channels is not None:
            content = grammar_of(params.response_format, self._constraint_limits)
            wishes = ChannelWishes(plan.tools, content, request.reasoning_budget)
            return channel_constraint(
                wishes, options.forms.channels, self._needed_compiler(), _end_ids(params), options.begun, options.is_in_content
            )
        inner: Constraint | CallConstraint | None = self._format(params)
        if plan.tools is not None and options.forms.calls is not None:
            inner = call_constraint(plan.tools, options.forms.calls, self._needed_compiler(), _end_ids(params))
        marks = options.forms.marks
        may_reason = marks is not None and (options.is_open or options.splits_reasoning or not params.is_constrained)
        if marks is None or not may_reason or (inner is None and request.reasoning_budget is None):
            return inner
        return AfterReasoning(
            inner, marks, self._needed_compiler(), _end_ids(params), is_open=options.is_open, budget=request.reasoning_budget
        )

    def _tools(self, request: ChatRequest, params: SamplingParams) -> ToolRequest | None:
        try:
            tools = tool_request(request.tools, request.tool_choice, request.parallel_tool_calls, self._max_tools, self._constraint_limits)
        except InvalidTools as error:
            raise (bad_request if error.is_type else invalid_value)(str(error), error.param) from None
        except InvalidConstraint as error:
            raise bad_request(str(error), error.param, "invalid_constraint") from None
        if tools is None:
            return None
        if self.forms is None or self.forms.calls is None:
            why = self.forms.why_no_calls if self.forms is not None else "there is none"
            raise invalid_value(f"the chat template of this model has no usable form of tool calls: {why}", "tools", "unsupported_field")
        if params.is_constrained:
            raise invalid_value("'response_format' cannot be combined with 'tools'", "response_format")
        for name in ("min_tokens", "ignore_eos"):
            if getattr(params, name):
                raise invalid_value(f"'{name}' cannot be combined with 'tools'", name)
        return tools

    def _variables(self, request: ChatRequest) -> dict[str, Any]:
        """`reasoning_effort` as the template knows it. Raises ApiError when it does not."""
        given = dict(request.chat_template_kwargs or {})
        effort = request.reasoning_effort
        if effort is None:
            return given
        if effort not in EFFORTS:
            raise invalid_value(f"'reasoning_effort' is '{effort[:40]}', expected one of {', '.join(EFFORTS)}", "reasoning_effort")
        known = self._template.variables if self._template is not None else frozenset()
        if "reasoning_effort" in known:
            return {"reasoning_effort": effort, **given}
        for name in ("enable_thinking", "thinking"):
            if name in known:
                return {name: effort not in ("none", "minimal"), **given}
        if effort == "none" and (self.forms is None or self.forms.reasoning is None):
            return given
        raise invalid_value("the chat template of this model knows no effort of reasoning", "reasoning_effort", "unsupported_field")


def _end_ids(params: SamplingParams) -> tuple[int, ...]:
    return (*params.eos_token_ids, *params.stop_token_ids)
