"""The grammar of answers in channels: what a request asks for, in the messages that the model writes.

    auto       (reasoning | preamble)* (final | call)          response_format   reasoning* final, whose body has the format
    required   reasoning* call                                 a budget alone    (reasoning | preamble)* final

With a budget of reasoning there is at most one message of it, which is closed when its tokens are used up. A call may name its function in
either place of its header, as models do whatever their template writes, with a mark of its own before the word for its kind.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..structured.constraint import Constraint, ConstraintCompiler, SampleMasks
from ..structured.response_format import Grammar
from ..tokenizer.tokenizer import Tokenizer
from .channels import ChannelCall, ChannelDialect
from .grammar import ANY_TEXT, json_rule, regex_terminal, special_literal
from .request import ToolRequest


class ChannelConstraint:
    """As `structured.constraint.Constraint`; a stop string counts in content with which the answer may end."""

    def __init__(self, inner: Constraint, is_in_content: Callable[[str], bool]) -> None:
        self._inner = inner
        self._is_in_content = is_in_content
        self.first_mask = inner.first_mask

    def sample(self) -> SampleMasks:
        return self._inner.sample()

    def accepts(self, text: str) -> bool:
        return self._is_in_content(text) and self._inner.accepts(text, has_marks=True)


@dataclass(frozen=True, slots=True)
class ChannelWishes:
    """What a request asks for. `content`: what its format wants of it; not together with `tools`. `budget`: tokens of reasoning."""

    tools: ToolRequest | None
    content: Grammar | None
    budget: int | None


def channel_constraint(
    wishes: ChannelWishes,
    channels: ChannelDialect,
    compiler: ConstraintCompiler,
    end_ids: Sequence[int],
    begun: str,
    is_in_content: Callable[[str], bool],
) -> ChannelConstraint | None:
    """None when nothing is asked for. `begun`: what the prompt has written of the first message. Raises InvalidConstraint."""
    if wishes == ChannelWishes(None, None, None):
        return None
    grammar = channel_grammar(wishes, channels, compiler.tokenizer, end_ids)
    begun_ids = compiler.tokenizer.encode(begun, add_special_tokens=False) if begun else ()
    param = "tools" if wishes.tools is not None else "response_format" if wishes.content is not None else "reasoning_budget"
    return ChannelConstraint(compiler.compile(grammar, end_ids, param=param, begun_ids=begun_ids), is_in_content)


def channel_grammar(wishes: ChannelWishes, channels: ChannelDialect, tokenizer: Tokenizer, end_ids: Sequence[int]) -> Grammar:
    tools, content, budget = wishes.tools, wishes.content, wishes.budget
    writer = _Writer(channels, tokenizer, end_ids)
    writer.add_reasoning(budget)
    is_free = content is None and not (tools is not None and tools.is_required) and channels.call is not None
    if is_free:
        writer.add_preamble()
    last = []
    if tools is None or not tools.is_required:
        writer.add_final(content)
        last.append("final")
    if tools is not None:
        assert channels.call is not None
        writer.add_calls(tools, channels.call)
        last.append("calls")
    before = "reasoning*" if not is_free else "(reasoning | preamble)*"
    if budget is not None:
        before = "reasoning?" if not is_free else "preamble* (reasoning preamble*)?"
    return Grammar("lark", "\n".join(["%llguidance {}", f"start: {before} ({' | '.join(last)})", *writer.rules]) + "\n")


class _Writer:
    def __init__(self, channels: ChannelDialect, tokenizer: Tokenizer, end_ids: Sequence[int]) -> None:
        self._channels = channels
        self._tokenizer = tokenizer
        self._end_ids = frozenset(end_ids)
        self.rules: list[str] = []

    def add_reasoning(self, budget: int | None) -> None:
        limit = f"[max_tokens={budget}]" if budget is not None else ""
        self.rules.append(f"thought{limit}: {ANY_TEXT}")
        self.rules.append(f"reasoning: {self._header(self._channels.reasoning)} thought {self._next()}")

    def add_preamble(self) -> None:
        assert self._channels.call is not None
        self.rules.append(f"preamble: {self._header(self._channels.call.channel)} {ANY_TEXT} {self._next()}")

    def add_final(self, content: Grammar | None) -> None:
        self.rules.append(f"final: {self._header(self._channels.content)} content ({self._literal(self._channels.end)})?")
        if content is None:
            self.rules.append(f"content: {ANY_TEXT}")
        elif content.kind == "regex":
            self.rules.append(f"content: {regex_terminal(content.source)}")
        else:
            self.rules.append(f"content: {json_rule(json.loads(content.source))}")

    def add_calls(self, tools: ToolRequest, call: ChannelCall) -> None:
        channels = self._channels
        end = self._literal(call.end)
        more = f"({end} {self._literal(channels.opening)} call)*" if tools.is_parallel and call.is_parallel else ""
        self.rules.append(f"calls: call {more} {f'({end})?' if end else ''}")
        self.rules.append("call: " + " | ".join(f"call_{idx}" for idx in range(len(tools.schemas))))
        self.rules.append(f"kind: {self._kind(call)}")
        for idx, (name, schema) in enumerate(tools.schemas.items()):
            recipient = json.dumps(" " + call.recipient + name)
            mark, channel = self._literal(channels.mark), json.dumps(call.channel)
            headers = f"({recipient} {mark} {channel} | {mark} {channel} {recipient})"
            self.rules.append(f"call_{idx}: {headers} kind {self._literal(channels.body_mark)} args_{idx}")
            self.rules.append(f"args_{idx}: {json_rule(schema)}")

    def _kind(self, call: ChannelCall) -> str:
        """Nothing, or the word for the kind of the body, with or without a special token before it."""
        if not call.kind:
            return '""'
        own = {part for part in self._tokenizer.split_special(self._channels.literals) if isinstance(part, int)}
        others = sorted(self._tokenizer.special_ids - own - self._end_ids)
        mark = f"(<[{','.join(map(str, others))}]>)?" if others else ""
        return f'(" " {mark} {json.dumps(call.kind)})?'  # without a space it would be part of the name of the function before it

    def _header(self, name: str) -> str:
        return f"{self._literal(self._channels.mark)} {json.dumps(name)} {self._literal(self._channels.body_mark)}"

    def _next(self) -> str:
        """The end of a message after which another one comes."""
        return self._literal(self._channels.end) + " " + self._literal(self._channels.opening)

    def _literal(self, text: str) -> str:
        return special_literal(self._tokenizer, text)
