"""Reasoning in an answer: the marks around it, found out from the chat template, and a parser that takes it out of the stream.

    prompt … <think>   ─▶   answer: reasoning </think> content          prompt …   ─▶   answer: <think> reasoning </think> content

The marks are those that the template writes around `reasoning_content`, or tags named like thinking in its source. Line feeds around the
reasoning are no part of it, nor those between its end and the content.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ..tokenizer.chat_template import ChatTemplate, ChatTemplateError
from .dialect import common_prefix, to_mark_begin

HISTORY_KEYS = ("reasoning_content", "thinking", "reasoning")
"""Where templates read the reasoning of an earlier answer; requests give it as the first."""
_REASON, _CONTENT = "zqreason", "zqcontent"
_SOURCE_TAG = re.compile(r"</?([A-Za-z_:]*(?:think|reason|thought)[A-Za-z_:]*)>|\[/?([A-Z_]*THINK[A-Z_]*)\]")
_MARK = re.compile(r"<[^<>\s]+>|\[/?[A-Za-z_]+\]")
_USER = {"role": "user", "content": "zquser"}
_CALL = {"id": "zqid0000a", "type": "function", "function": {"name": "zqalpha", "arguments": {}}}


@dataclass(frozen=True, slots=True)
class ReasoningDialect:
    """The marks before and after reasoning, without white space around them. `history_key`: one of HISTORY_KEYS."""

    open: str
    close: str
    history_key: str = HISTORY_KEYS[0]

    def is_opened_by(self, prompt: str) -> bool:
        """Whether a prompt ends inside reasoning."""
        return prompt.rstrip().endswith(self.open)


def derived_reasoning(template: ChatTemplate) -> ReasoningDialect | None:
    """None when the template knows no reasoning."""
    return next(filter(None, (_rendered(template, key) for key in HISTORY_KEYS)), None) or _from_source(template.source)


def _rendered(template: ChatTemplate, key: str) -> ReasoningDialect | None:
    """What the template writes around the reasoning of a message with content, or else of one with a call."""
    content, call = ({"role": "assistant", "content": _CONTENT}, {"role": "assistant", "content": "", "tool_calls": [_CALL]})
    after_call = _text_after(template, {**call, key: _REASON})
    for answer in (content, call):
        try:
            text = template.render([_USER, {**answer, key: _REASON}], add_generation_prompt=False)
            plain = template.render([_USER, answer], add_generation_prompt=False)
        except ChatTemplateError:
            continue
        before, reasoned, after = text.partition(_REASON)
        close = _close(after, after_call)
        opened = before.rstrip()
        own = opened[to_mark_begin(opened, len(common_prefix(opened, plain))) :].strip()
        mark = _last_mark(own) or own or _prompt_mark(template, opened) or _last_mark(opened)
        if reasoned and mark not in ("", close) and close:
            return ReasoningDialect(mark, close, key)
    return None


def _prompt_mark(template: ChatTemplate, opened: str) -> str:
    """The mark that the prompt writes where earlier answers have their reasoning at once."""
    try:
        prompt = template.render([_USER])
    except ChatTemplateError:
        return ""
    return _last_mark(prompt[len(opened) :].rstrip()) if prompt.startswith(opened) else ""


def _text_after(template: ChatTemplate, answer: dict[str, Any]) -> str:
    """What a template writes after the reasoning of `answer`; nothing where it drops it or fails."""
    try:
        return template.render([_USER, answer], add_generation_prompt=False).partition(_REASON)[2]
    except ChatTemplateError:
        return ""


def _close(after: str, after_call: str) -> str:
    """The mark after the reasoning: what stands before content and calls alike, or before the content, or the first mark before a call."""
    between, has_content, _ = after.partition(_CONTENT)
    if not has_content:
        found = _MARK.match(after.lstrip())
        return found[0] if found else ""
    shared = len(common_prefix(between, after_call))
    return between[: to_mark_begin(between, shared)].strip() or between.strip()


def _from_source(source: str) -> ReasoningDialect | None:
    """Tags named like thinking; a template may hold one of the pair only, since the model writes the other."""
    found = _SOURCE_TAG.search(source)
    if found is None:
        return None
    return ReasoningDialect(f"<{found[1]}>", f"</{found[1]}>") if found[1] else ReasoningDialect(f"[{found[2]}]", f"[/{found[2]}]")


def _last_mark(text: str) -> str:
    """The mark that `text` ends with, or nothing."""
    found = re.search(r"(<[^<>\s]+>|\[[A-Za-z_]+\])$", text)
    return found[1] if found else ""


class ReasoningParser:
    """`push` text, take (reasoning, content) pieces. `is_open`: the prompt has opened the reasoning.

    `is_raw`: marks and line feeds stay where they are: reasoning and content together are the text.
    """

    __slots__ = ("_buffer", "_dialect", "_is_raw", "_state")

    def __init__(self, dialect: ReasoningDialect, *, is_open: bool, is_raw: bool = False) -> None:
        self._dialect = dialect
        self._buffer = ""
        self._is_raw = is_raw
        self._state = "opened" if is_open else "start"

    @property
    def is_inside(self) -> bool:
        return self._state in ("opened", "reasoning")

    @property
    def mark(self) -> str | None:
        """Within reasoning of which nothing is held back, the mark that ends it."""
        return self._dialect.close if self._state == "reasoning" and not self._buffer else None

    @property
    def is_over(self) -> bool:
        """Whether all that comes is content as it is."""
        return self._state == "content"

    def push(self, text: str) -> tuple[str, str]:
        self._buffer += text
        reasoning = ""
        if self._state == "start":
            self._look_for_open()
        if self._state == "opened":  # line feeds after the opening mark
            self._strip_line_feeds()
            if self._buffer:
                self._state = "reasoning"
        if self._state == "reasoning":
            reasoning = self._take_reasoning()
        if self._state == "closed":  # line feeds before the content
            self._strip_line_feeds()
            if self._buffer:
                self._state = "content"
        content = ""
        if self._state == "content":
            content, self._buffer = self._buffer, ""
        return reasoning, content

    def finish(self) -> tuple[str, str]:
        """What is still held, at the end of the answer."""
        held, self._buffer = self._buffer, ""
        if self._state in ("reasoning", "opened"):
            return held if self._is_raw else held.rstrip("\n"), ""
        return "", held if self._state != "closed" else ""

    def _strip_line_feeds(self) -> None:
        if not self._is_raw:
            self._buffer = self._buffer.lstrip("\n")

    def _look_for_open(self) -> None:
        seen, mark = self._buffer.lstrip(), self._dialect.open
        if seen.startswith(mark):
            self._state = "opened"
            if not self._is_raw:
                self._buffer = seen[len(mark) :]
        elif not mark.startswith(seen):
            self._state = "content"

    def _take_reasoning(self) -> str:
        before, closed, after = self._buffer.partition(self._dialect.close)
        if closed:
            self._buffer, self._state = after, "closed"
            return before + closed if self._is_raw else before.rstrip("\n")
        sure = before[: len(before) - partial_len(before, self._dialect.close)]
        held = len(before) - len(sure if self._is_raw else sure.rstrip("\n"))
        self._buffer = before[len(before) - held :]
        return before[: len(before) - held]


def is_inside(text: str, mark: str) -> bool:
    """Whether a parser that has come to reasoning up to `mark` gives out all of `text` at once, and goes on as before."""
    return mark not in text and not text.endswith("\n") and not partial_len(text, mark)


def partial_len(text: str, mark: str) -> int:
    """How many characters at the end of `text` may be the beginning of `mark`."""
    for length in range(min(len(mark) - 1, len(text)), 0, -1):
        if text.endswith(mark[:length]):
            return length
    return 0
