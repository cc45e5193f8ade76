"""Streamed text of an answer in channels to reasoning, content and calls. What was given out never changes, however the stream is cut.

    header: held until its body mark is there    body: given out as it comes, but for what may be the beginning of a mark

A body in the reasoning channel is reasoning; one whose header names a known function is the arguments of a call; others are content.
Several bodies of a kind are put together with an empty line between them. Text that no header precedes is content.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from enum import Enum
from typing import Any

from .channels import ChannelDialect
from .parser import AnswerPiece, CallDelta
from .reasoning import partial_len

_MAX_HEADER_CHARS = 512
"""A longer header is none, and its text is not held back any more."""
_BETWEEN = "\n\n"


class _Body(Enum):
    """What the body of a message is."""

    REASONING = "reasoning"
    CONTENT = "content"
    CALL = "call"


class ChannelParser:
    """`push` text, take what it adds. `functions`: name → schema of those that may be called. `begun`: what the prompt has written of it.

    `is_raw`: headers and marks stay where they are, in the content together with the reasoning.
    """

    def __init__(self, dialect: ChannelDialect, functions: Mapping[str, Any], *, begun: str = "", is_raw: bool = False) -> None:
        self._dialect = dialect
        self._functions = functions
        self._is_raw = is_raw
        self._body: _Body | None = None  # None: in a header
        self._buffer = ""
        self._arguments = ""
        self._piece = AnswerPiece()
        self._has_begun = {_Body.REASONING: False, _Body.CONTENT: False}
        """Whether text of that kind was given out by the message before the next one."""
        self._needs_gap = {_Body.REASONING: False, _Body.CONTENT: False}
        self._num_begun = 0
        self.num_calls = 0
        """Calls whose arguments are complete."""
        call = dialect.call
        self._recipient = re.compile(rf"(?:^|\s){re.escape(call.recipient)}([A-Za-z0-9_.-]+)") if call is not None else None
        self._header_starts = [dialect.opening, dialect.mark, dialect.body_mark, *([call.recipient] if call is not None else [])]
        self._ends = [dialect.end, dialect.opening, *([call.end] if call is not None and call.end else [])]
        if begun:
            self.push(begun)
            self._has_begun = dict.fromkeys(self._has_begun, False)

    @property
    def is_in_reasoning(self) -> bool:
        return self._body is _Body.REASONING

    @property
    def is_in_content(self) -> bool:
        return self._body is _Body.CONTENT

    def push(self, text: str) -> AnswerPiece:
        self._buffer += text
        while self._read_body() if self._body is not None else self._read_header():
            pass
        return self._taken()

    def finish(self) -> AnswerPiece:
        """What is still held, at the end of the answer; half a header is no part of it."""
        rest, self._buffer = self._buffer, ""
        if self._body is not None:
            self._give(rest)
            self._end_body()
        elif self._is_raw or not rest.lstrip().startswith(tuple(self._header_starts)):
            self._body = _Body.CONTENT
            self._give(rest)
        return self._taken()

    def _taken(self) -> AnswerPiece:
        piece, self._piece = self._piece, AnswerPiece()
        return piece

    def _read_header(self) -> bool:
        """Whether the buffer held a whole header, or begins with none."""
        seen = self._buffer.lstrip()
        header, marked, rest = self._buffer.partition(self._dialect.body_mark)
        begins = any(seen.startswith(start) or start.startswith(seen) for start in self._header_starts)
        if not begins or len(header) > _MAX_HEADER_CHARS:
            self._body, self._buffer = _Body.CONTENT, ""
            self._give(seen[:1])
            self._buffer = seen[1:]
            return bool(self._buffer)
        if not marked:
            return False
        self._buffer = rest
        self._begin_body(header)
        if self._is_raw and self._body is not _Body.CALL:
            self._piece.content += header + marked
        return True

    def _begin_body(self, header: str) -> None:
        words = header.lstrip().removeprefix(self._dialect.opening)
        before, _, named = words.partition(self._dialect.mark)
        called = self._recipient.search(f"{before} {named}") if self._recipient is not None else None
        if called is not None and called[1] in self._functions:
            self._body, self._arguments = _Body.CALL, ""
            self._num_begun += 1
            self._piece.calls.append(CallDelta(self._num_begun - 1, called[1], ""))
        elif named.split()[:1] == [self._dialect.reasoning]:
            self._body = _Body.REASONING
        else:
            self._body = _Body.CONTENT

    def _read_body(self) -> bool:
        """Gives out the body as far as it is in the buffer; whether its end is there too."""
        places = [(at, end) for end in self._ends if (at := self._buffer.find(end)) >= 0]
        if not places:
            held = max(partial_len(self._buffer, end) for end in self._ends)
            text, self._buffer = self._buffer[: len(self._buffer) - held], self._buffer[len(self._buffer) - held :]
            self._give(text)
            return False
        at, end = min(places)
        self._give(self._buffer[:at])
        closing = end if end != self._dialect.opening else ""  # a message that begins ends the one before
        self._buffer = self._buffer[at + len(closing) :]
        if self._is_raw and self._body is not _Body.CALL:
            self._piece.content += closing
        self._end_body()
        return True

    def _end_body(self) -> None:
        if self._body is _Body.CALL and _is_json(self._arguments):
            self.num_calls += 1
        self._body = None
        self._needs_gap = dict(self._has_begun)

    def _give(self, text: str) -> None:
        if not text:
            return
        if self._body is _Body.CALL:
            self._arguments += text
            self._add_arguments(text)
        elif self._is_raw:
            self._piece.content += text
        else:
            assert self._body is not None
            gap = _BETWEEN if self._needs_gap[self._body] else ""
            self._needs_gap[self._body], self._has_begun[self._body] = False, True
            if self._body is _Body.REASONING:
                self._piece.reasoning += gap + text
            else:
                self._piece.content += gap + text

    def _add_arguments(self, text: str) -> None:
        """At most one piece of a call in what is given out at a time."""
        calls = self._piece.calls
        if calls and calls[-1].call_idx == self._num_begun - 1:
            calls[-1].arguments += text
        else:
            calls.append(CallDelta(self._num_begun - 1, None, text))


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
