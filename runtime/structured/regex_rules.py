r"""Patterns of requests, rewritten for the regex engine of the grammar library, which reads some of them differently.

A pattern describes the whole text. Class escapes (\d \w \s and their opposites) cover ASCII only. Refused: look-around, anchors and word
boundaries, back-references, conditionals, Unicode classes (\p \P \N), inline flags. Inside [...], what the library would take for a nested
class or a set operation is meant literally.

    [\w.]+@\d{2}    ─▶    [0-9A-Za-z_.]+@[0-9]{2}            ^(a|b)$ (only in JSON schemas)    ─▶    (a|b)
    ^a|b (in names of properties, where a pattern is searched)    ─▶    a(?s:.*)|(?s:.*)b(?s:.*)
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator

from .errors import InvalidConstraint

_CLASSES = {"d": "0-9", "w": "0-9A-Za-z_", "s": r" \t\n\r\x0b\x0c"}
_CONTROLS = {"n": r"\n", "t": r"\t", "r": r"\r", "f": r"\x0c", "v": r"\x0b", "0": r"\x00"}
_HEX_LENGTHS = {"x": 2, "u": 4}
_ANCHOR_ESCAPES = "AabBGzZ<>"
_TOKEN = re.compile(r"\\(?P<escape>[\s\S])|(?P<class>\[)|(?P<group>\(\?[^)]?[=!]?)|(?P<char>[\s\S])")
_ANYTHING = "(?s:.*)"
_MAX_REPEATS = 100_000
_REPEAT = re.compile(r"\{(\d+)(?:,(\d*))?\}")


def translated_regex(pattern: str, *, strip_anchors: bool = False, is_searched: bool = False, param: str = "response_format") -> str:
    """`pattern` for the grammar library. `strip_anchors`: ^ and $ at the ends of the outermost alternatives are allowed and dropped.

    `is_searched`: where such an anchor is missing, anything may stand there.
    Raises InvalidConstraint for what is not supported, with the place in the pattern.
    """
    return "".join(_Translator(pattern, strip_anchors=strip_anchors, padding=_ANYTHING if is_searched else "", param=param).parts())


class _Translator:
    def __init__(self, pattern: str, *, strip_anchors: bool, padding: str, param: str) -> None:
        self._pattern = pattern
        self._padding = padding
        self._has_end = False  # an anchor, at the end of the outermost alternative so far
        self._strip_anchors = strip_anchors
        self._param = param
        self._pos = 0
        self._depth = 0
        self._repeats = [1]  # of each open group: the most often that something in it is repeated by counts
        self._last_repeats = 1  # the same of the last character, class or group

    def parts(self) -> Iterator[str]:
        yield self._start_of_alternative()
        while self._pos < len(self._pattern):
            start = self._pos
            match = _TOKEN.match(self._pattern, start)
            assert match is not None
            self._pos = match.end()
            if match["char"] == "|" and self._depth == 0:
                yield self._end_of_alternative() + "|" + self._start_of_alternative()
                continue
            self._has_end = match["char"] == "$"
            if match["char"] not in ("{", ")"):
                self._last_repeats = 1
            if match["escape"] is not None:
                yield self._escape(match["escape"], start, in_class=False)
            elif match["class"]:
                yield "".join(self._class(start))
            elif match["group"]:
                yield self._group(match["group"], start)
            else:
                yield self._char(match["char"], start)
        yield self._end_of_alternative()

    def _start_of_alternative(self) -> str:
        self._has_end, self._last_repeats = False, 1
        return "" if self._pattern.startswith("^", self._pos) else self._padding

    def _end_of_alternative(self) -> str:
        return "" if self._has_end else self._padding

    def _char(self, char: str, start: int) -> str:
        if char == "\\":
            raise InvalidConstraint("the pattern ends in a backslash, which stands for no character", self._param)
        if char in "^$":
            if self._strip_anchors and self._depth == 0 and self._is_at_edge(char, start):
                return ""
            raise self._unsupported(char, start, "anchors: a pattern describes the whole text")
        if char == "(":
            self._open_group()
        elif char == ")" and self._depth:
            self._depth -= 1
            self._last_repeats = self._repeats.pop()
            self._repeats[-1] = max(self._repeats[-1], self._last_repeats)
        if char == "{":
            return self._repeat(start)
        return char

    def _open_group(self) -> None:
        self._depth += 1
        self._repeats.append(1)

    def _is_at_edge(self, char: str, start: int) -> bool:
        neighbour = self._pattern[start - 1 : start] if char == "^" else self._pattern[start + 1 : start + 2]
        return neighbour in ("", "|")

    def _repeat(self, start: int) -> str:
        """A count in braces; a brace that starts none is a literal."""
        match = _REPEAT.match(self._pattern, start)
        if match is None:
            return r"\{"
        self._last_repeats *= max(int(number[:9]) for number in match.groups() if number)
        if self._last_repeats > _MAX_REPEATS:
            raise self._unsupported(match[0][:24], start, f"repeating something more than {_MAX_REPEATS} times")
        self._repeats[-1] = max(self._repeats[-1], self._last_repeats)
        self._pos = match.end()
        return match[0]

    def _group(self, opening: str, start: int) -> str:
        if opening.startswith("(?:"):
            self._pos = start + 3
            self._open_group()
            return "(?:"
        what = {"=": "look-around", "!": "look-around", "<": "look-around or named groups", "P": "named groups", "(": "conditionals"}
        raise self._unsupported(opening, start, what.get(opening[2:3], "inline flags"))

    def _escape(self, char: str, start: int, *, in_class: bool) -> str:
        if char in _CLASSES:
            return _CLASSES[char] if in_class else f"[{_CLASSES[char]}]"
        if char.lower() in _CLASSES:
            return f"[^{_CLASSES[char.lower()]}]"  # inside a class: a nested one
        if char in _CONTROLS:
            return _CONTROLS[char]
        if char in _HEX_LENGTHS:
            return self._hex(char, start)
        if in_class and char == "b":
            return r"\x08"
        if char in _ANCHOR_ESCAPES:
            raise self._unsupported("\\" + char, start, "anchors: a pattern describes the whole text")
        if char.isdigit():
            raise self._unsupported("\\" + char, start, "back-references")
        if char.isalpha():
            raise self._unsupported("\\" + char, start, "this escape")
        return "\\" + char if char.isascii() and not char.isspace() else char

    def _hex(self, kind: str, start: int) -> str:
        digits = self._pattern[self._pos : self._pos + _HEX_LENGTHS[kind]]
        if not (len(digits) == _HEX_LENGTHS[kind] and set(digits) <= set(string.hexdigits)):
            raise self._unsupported(f"\\{kind}", start, f"\\{kind} without {_HEX_LENGTHS[kind]} hexadecimal digits")
        self._pos += len(digits)
        if 0xD800 <= int(digits, 16) < 0xE000:
            raise self._unsupported(f"\\{kind}{digits}", start, "surrogates")
        return rf"\x{{{digits}}}"

    def _class(self, start: int) -> Iterator[str]:
        """From [ to ]. A ] directly after the opening is a literal."""
        yield "["
        if self._pattern.startswith("^", self._pos):
            self._pos += 1
            yield "^"
        is_first = True
        while self._pos < len(self._pattern):
            place, char = self._pos, self._pattern[self._pos]
            self._pos += 1
            if char == "]" and not is_first:
                yield "]"
                return
            if char == "[" and self._pattern.startswith(":", self._pos):
                raise self._unsupported("[:", place, "named classes: write the characters")
            if char == "\\" and self._pos < len(self._pattern):
                self._pos += 1
                yield self._escape(self._pattern[place + 1], place, in_class=True)
            else:
                yield "\\" + char if char in "[]&~^" else char
            is_first = False
        raise InvalidConstraint(f"the pattern has a '[' at {start} without its ']'", self._param)

    def _unsupported(self, found: str, place: int, what: str) -> InvalidConstraint:
        return InvalidConstraint(f"the pattern has '{found}' at {place}; not supported: {what}", self._param)
