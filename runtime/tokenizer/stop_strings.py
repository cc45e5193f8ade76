"""Stop strings on a stream of text: nothing of a stop string is ever given out, and what cannot become one is not delayed.

The match that ends first in the text wins (of two that end together the longer one), whatever pieces the text arrives in. One
Knuth–Morris–Pratt automaton per string: constant work per character. The longest partial match at the end is held back until it is decided.

    stop "</a>"    push "x <"  ─▶ "x "     push "/b>"  ─▶ "</b>"     push "y</a>z"  ─▶ "y", stopped
"""

from __future__ import annotations

from collections.abc import Callable, Sequence


class StopStrings:
    """`push` text, take what is safe to show. After `stopped`, the rest of the text is dropped.

    `may_stop`: asked with all text before a match; where it says no, the match is text like any other.
    """

    __slots__ = ("_fallbacks", "_given", "_held", "_matched", "_may_stop", "_stops", "matched", "stopped")

    def __init__(self, stops: Sequence[str], may_stop: Callable[[str], bool] | None = None) -> None:
        self._stops = tuple(stops)
        self._fallbacks = [_fallback_table(stop) for stop in self._stops]
        self._matched = [0] * len(self._stops)
        self._held = ""
        self._given = ""  # kept for `may_stop` only
        self._may_stop = may_stop
        self.stopped = False
        self.matched: str | None = None
        """The stop string that was found."""

    def push(self, text: str) -> str:
        """The text that is now certain to be before any stop string."""
        if self.stopped:
            return ""
        if not self._stops:
            return text
        seen = self._held + text
        for offset, char in enumerate(text, start=len(self._held) + 1):
            matched_len = self._advance(char)
            if matched_len and self._is_allowed(seen[: offset - matched_len]):
                self.stopped = True
                self.matched = seen[offset - matched_len : offset]
                self._held = ""
                return seen[: offset - matched_len]
        held_len = max(self._matched)
        self._held = seen[len(seen) - held_len :]
        given = seen[: len(seen) - held_len]
        if self._may_stop is not None:
            self._given += given
        return given

    def finish(self) -> str:
        """The held text, at the end of a stream that did not stop."""
        held, self._held = self._held, ""
        return held

    def _is_allowed(self, text: str) -> bool:
        return self._may_stop is None or self._may_stop(self._given + text)

    def _advance(self, char: str) -> int:
        """Feeds one character to every automaton; the length of the longest stop string that ends here, or 0."""
        longest = 0
        for i, stop in enumerate(self._stops):
            matched, fallback = self._matched[i], self._fallbacks[i]
            while matched and stop[matched] != char:
                matched = fallback[matched - 1]
            if stop[matched] == char:
                matched += 1
            if matched == len(stop):
                longest = max(longest, matched)
                matched = fallback[matched - 1]
            self._matched[i] = matched
        return longest


def _fallback_table(stop: str) -> list[int]:
    """`table[i]`: length of the longest proper prefix of `stop` that is also a suffix of `stop[: i + 1]`."""
    if not stop:
        raise ValueError("a stop string is empty: it would match everywhere")
    table = [0] * len(stop)
    matched = 0
    for i in range(1, len(stop)):
        while matched and stop[matched] != stop[i]:
            matched = table[matched - 1]
        if stop[matched] == stop[i]:
            matched += 1
        table[i] = matched
    return table
