"""Streamed text to content and tool calls. What was given out never changes, however the stream is cut.

    text ─▶ trigger? ─▶ literal, NAME, literal, ARGS, literal ─▶ separator: the next call │ end │ text again

Text is held back while it may become a call. In dialects with JSON arguments white space in literals does not matter, since models are not
exact in it. What looks like a call but is none (unknown function, other punctuation) is given out as text; that can only happen to text
that no grammar constrained. White space between content and a call is dropped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .bare_values import read_value
from .dialect import CallDialect, Parameters, Part, Slot, named_id
from .reasoning import partial_len

_NAME_CHARS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.")
_ID_CHARS = _NAME_CHARS | {":"}


@dataclass(slots=True)
class CallDelta:
    """A piece of a call. `name` comes with the first piece only; `arguments` are pieces of JSON text. `call_id`: if the model wrote one."""

    call_idx: int
    name: str | None
    arguments: str
    call_id: str | None = None


@dataclass(slots=True)
class AnswerPiece:
    """What one delta adds to an answer."""

    reasoning: str = ""
    content: str = ""
    calls: list[CallDelta] = field(default_factory=list)


class _Mismatch(Exception):
    """The text is not a call after all."""


_Waits = Generator[None, None, None]
"""Yields when it needs more text."""
_WORD_END = re.compile(r"[^-+.0-9A-Za-z]")


class _JsonScan:
    """Finds the end of an object, a list or a string that comes in pieces; whether it is valid is no matter here."""

    __slots__ = ("_depth", "_in_string", "_is_escaped")

    def __init__(self) -> None:
        self._depth, self._in_string, self._is_escaped = 0, False, False

    def end(self, text: str, num_seen: int = 0) -> int | None:
        """Where the value ends in `text`, of which the first characters were seen before; None: later."""
        for pos in range(num_seen, len(text)):
            char = text[pos]
            if self._is_escaped:
                self._is_escaped = False
            elif self._in_string:
                self._is_escaped, self._in_string = char == "\\", char != '"'
            else:
                self._in_string = char == '"'
                self._depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(char, 0)
            if not self._in_string and self._depth == 0 and char in '"}]':
                return pos + 1
        return None


class CallParser:
    """`push` text, take pieces: text (str) and CallDelta. `functions`: name → schema of the parameters."""

    def __init__(self, dialect: CallDialect, functions: Mapping[str, Any]) -> None:
        self._dialect = dialect
        self._functions = functions
        self._buffer = ""
        self._taken = ""  # of the call that is being read, until its name is given out
        self._pieces: list[str | CallDelta] = []
        self._is_final = False
        self.num_calls = 0
        """Calls whose arguments are complete."""
        self._machine: _Waits | None = self._run()
        next(self._machine)

    def push(self, text: str) -> list[str | CallDelta]:
        self._buffer += text
        return self._step()

    def finish(self) -> list[str | CallDelta]:
        """What is still held, at the end of the answer."""
        self._is_final = True
        return self._step()

    def _step(self) -> list[str | CallDelta]:
        if self._machine is not None:
            try:
                next(self._machine)
            except StopIteration:
                self._machine = None
        if self._machine is None:
            self._give_text(len(self._buffer))
        pieces, self._pieces = self._pieces, []
        return pieces

    def _run(self) -> _Waits:
        yield
        if self._dialect.trigger is not None:
            yield from self._calls_anywhere(self._dialect.trigger)
        else:
            try:
                yield from self._calls()
            except _Mismatch:
                return

    def _calls_anywhere(self, trigger: str) -> _Waits:
        while True:
            at = self._buffer.find(trigger)
            if at < 0:
                self._give_all_but_trigger(trigger)
                yield
                continue
            self._give_text(len(self._buffer[:at].rstrip()))
            stripped = self._buffer.lstrip()
            space, self._buffer = self._buffer[: len(self._buffer) - len(stripped)], stripped
            try:
                yield from self._calls()
            except _Mismatch:
                self._buffer = space + self._buffer
                self._give_text(len(space) + len(trigger))

    def _give_all_but_trigger(self, trigger: str) -> None:
        if not self._is_final:
            held = partial_len(self._buffer, trigger)
            self._give_text(len(self._buffer[: len(self._buffer) - held].rstrip()))
        elif not (self.num_calls and self._buffer.isspace()):
            self._give_text(len(self._buffer))

    def _calls(self) -> _Waits:
        """Calls one after the other, then the end. Raises _Mismatch, with the text still in the buffer, when there is no call."""
        dialect = self._dialect
        yield from self._call(dialect.head)
        first = dialect.call[0]
        assert isinstance(first, str)
        while dialect.separator is not None and (yield from self._follows(dialect.separator + first)):
            try:
                yield from self._call(dialect.separator + first)
            except _Mismatch:  # the end may begin as another call does
                break
        if dialect.end and (yield from self._follows(dialect.end)):
            yield from self._literal(dialect.end)

    def _call(self, head: str) -> _Waits:
        """One call, from `head` on. Raises _Mismatch, with the text back in the buffer, when it is none."""
        self._taken = ""
        delta = CallDelta(self.num_calls, None, "")
        is_announced = False
        parts: list[Part] = [head, *self._dialect.call[1:]]
        try:
            for idx, part in enumerate(parts):
                if isinstance(part, str):
                    yield from self._literal(part)
                elif part is Slot.ARGS:
                    is_announced = True
                    self._pieces.append(delta)
                    following = parts[idx + 1] if idx + 1 < len(parts) else ""
                    yield from self._arguments(delta.name or "", following if isinstance(following, str) else "")
                    self.num_calls += 1
                else:
                    word = yield from self._word(_NAME_CHARS if part is Slot.NAME else _ID_CHARS)
                    if part is Slot.NAME:
                        if word not in self._functions:
                            raise _Mismatch
                        delta.name = word
                    elif part is Slot.ID and not is_announced:
                        delta.call_id = word
                    elif self._dialect.ids_name_functions and delta.name is not None:
                        delta.call_id = named_id(delta.name, word)
        except _Mismatch:
            if not is_announced:
                self._buffer = self._taken + self._buffer
                raise

    # Reading from the buffer -------------------------------------------------------------------------------------------------------------

    def _take(self, length: int) -> str:
        taken, self._buffer = self._buffer[:length], self._buffer[length:]
        self._taken += taken
        return taken

    def _more(self) -> _Waits:
        """Waits for more text. Raises _Mismatch when there is none."""
        if self._is_final:
            raise _Mismatch
        yield

    def _follows(self, literal: str) -> Generator[None, None, bool]:
        """Whether the buffer begins with `literal`; nothing is taken."""
        while (end := self._match(literal)) is None:
            if self._is_final:
                return False
            yield
        return end >= 0

    def _literal(self, literal: str) -> _Waits:
        while (end := self._match(literal)) is None:
            yield from self._more()
        if end < 0:
            raise _Mismatch
        self._take(end)

    def _match(self, literal: str) -> int | None:
        """The end of `literal` at the beginning of the buffer; None: more text is needed; -1: it is not there."""
        if self._dialect.parameters is None or self._dialect.parameters.is_json:
            return _loose_match(literal, self._buffer)
        return len(literal) if self._buffer.startswith(literal) else None if literal.startswith(self._buffer) else -1

    def _word(self, chars: Collection[str]) -> Generator[None, None, str]:
        """The longest run of `chars`, behind white space."""
        self._take(len(self._buffer) - len(self._buffer.lstrip()))
        while not self._buffer:
            yield from self._more()
            self._take(len(self._buffer) - len(self._buffer.lstrip()))
        while (end := next((i for i, char in enumerate(self._buffer) if char not in chars), None)) is None:
            yield from self._more()
        return self._take(end)

    def _text_until(self, mark: str) -> Generator[None, None, str]:
        """The text before `mark`; takes both."""
        while (at := self._buffer.find(mark)) < 0:
            yield from self._more()
        return self._take(at + len(mark))[:at]

    # Arguments ---------------------------------------------------------------------------------------------------------------------------

    def _arguments(self, name: str, following: str) -> _Waits:
        if self._dialect.parameters is None:
            yield from self._json_object()
        else:
            yield from self._parameters(self._dialect.parameters, self._functions[name], following)

    def _json_object(self) -> _Waits:
        """Gives out the JSON object at the beginning of the buffer as it comes."""
        while not self._buffer.lstrip():
            yield from self._more()
        self._buffer = self._buffer.lstrip()
        if self._buffer[0] != "{":
            raise _Mismatch
        scan = _JsonScan()
        while (end := scan.end(self._buffer)) is None:
            self._give_arguments(self._take(len(self._buffer)))
            yield from self._more()
        self._give_arguments(self._take(end))

    def _parameters(self, form: Parameters, schema: Any, following: str) -> _Waits:
        """Arguments one by one up to `following`; each is given out when it is complete."""
        properties = schema.get("properties", {}) if isinstance(schema, dict) else {}
        num_given = 0
        yield from self._skip_space_before(following)
        while not (yield from self._follows(following)):
            yield from self._literal((form.separator if num_given else "") + form.before)
            key = (yield from self._text_until(form.key_end)).strip()
            if form.is_json or (form.json_marks is not None and not (yield from self._is_text(form, form.json_marks[0]))):
                value = yield from self._json_value()
                yield from self._literal(form.json_marks[1] if form.json_marks is not None else form.after)
            elif form.json_marks is not None:
                value = json.dumps((yield from self._text_until(form.after)), ensure_ascii=False)
            else:
                value = read_value((yield from self._text_until(form.after)), properties.get(key, {}), schema)
            self._give_arguments(f"{', ' if num_given else '{'}{json.dumps(key, ensure_ascii=False)}: {value}")
            num_given += 1
        self._give_arguments("}" if num_given else "{}")

    def _skip_space_before(self, following: str) -> _Waits:
        """Where there are no arguments, templates may write more white space than `following` begins with."""
        mark = following.lstrip()
        while not (seen := self._buffer.lstrip()) or (mark.startswith(seen) and seen != mark):
            yield from self._more()
        if mark and seen.startswith(mark):
            self._buffer = following[: len(following) - len(mark)] + seen

    def _is_text(self, form: Parameters, json_middle: str) -> Generator[None, None, bool]:
        """Whether a value is written as text; takes what stands before it."""
        text_mark, json_mark = form.middle[len(form.key_end) :], json_middle[len(form.key_end) :]
        is_text = text_mark.startswith(json_mark) or not (yield from self._follows(json_mark))
        if is_text and json_mark != text_mark:
            is_text = yield from self._follows(text_mark)
        yield from self._literal(text_mark if is_text else json_mark)
        return is_text

    def _json_value(self) -> Generator[None, None, str]:
        """One JSON value, as its text."""
        while not self._buffer:
            yield from self._more()
        is_word = self._buffer[0] not in '{["'  # a number, true, false or null ends before what cannot be part of it
        scan, num_seen = _JsonScan(), 0
        while True:
            if is_word:
                found = _WORD_END.search(self._buffer, num_seen)
                end = found.start() if found is not None else None
            else:
                end = scan.end(self._buffer, num_seen)
            if end is not None:
                return self._take(end)
            num_seen = len(self._buffer)
            yield from self._more()

    def _give_text(self, length: int) -> None:
        if length:
            self._pieces.append(self._buffer[:length])
            self._buffer = self._buffer[length:]

    def _give_arguments(self, text: str) -> None:
        if text:
            self._pieces.append(CallDelta(self.num_calls, None, text))


def _loose_match(literal: str, text: str) -> int | None:
    """As `CallParser._match`, ignoring white space on both sides; white space after the literal is not taken."""
    pos = 0
    for char in literal:
        if char.isspace():
            continue
        while pos < len(text) and text[pos].isspace():
            pos += 1
        if pos == len(text):
            return None
        if text[pos] != char:
            return -1
        pos += 1
    return pos
