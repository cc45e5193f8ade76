"""Token ids to text, one token at a time: text that was given out never changes and never holds half a character.

`TableDetokenizer` joins the bytes of each token and lets an incremental UTF-8 decoder hold back an unfinished character: O(1) per token.
`WindowDetokenizer` serves decoders without such a table (WordPiece and the like): it decodes a short window of tokens twice and gives out
the difference. In both, the text of a continuation is what `decode(prompt + output)` has after `decode(prompt)`: a leading space survives.

    prompt "Hello"   output [▁wor][ld]   ─▶  " wor", "ld"          prompt ""   output [▁Hel][lo]   ─▶  "Hel", "lo"
"""

from __future__ import annotations

import codecs
from collections.abc import Collection, Sequence
from typing import Protocol

from .backend import Backend
from .pieces import PieceTable

_Utf8Decoder = codecs.getincrementaldecoder("utf-8")
_MAX_PENDING_TOKENS = 8
"""A character has at most 4 bytes, hence at most 4 tokens; a window that still ends in U+FFFD after 8 holds invalid bytes."""
_CONTEXT_TOKENS = 6
"""Tokens of the prompt that a window decoder sees before the first output token."""


class Detokenizer(Protocol):
    """`push(id)` gives the text that the token completes (maybe ""); `finish()` what was held back.

    `is_whole`: nothing is held back, and a token whose bytes are whole characters gives just these.
    """

    @property
    def is_whole(self) -> bool: ...

    def push(self, token_id: int) -> str: ...

    def finish(self) -> str: ...


class TableDetokenizer:
    """Streams bytes of a PieceTable through a UTF-8 decoder. `is_exact`: each token, the first too, as in the middle of a text."""

    __slots__ = ("_at_start", "_hidden", "_lead_left", "_table", "_texts", "_utf8", "is_whole")

    def __init__(self, table: PieceTable, hidden_ids: frozenset[int], is_exact: bool) -> None:
        self._table = table
        self._texts = table.texts
        self._hidden = hidden_ids
        self._utf8: codecs.IncrementalDecoder | None = None  # made when a token begins or ends within a character
        self._at_start = not is_exact
        self._lead_left = 0 if is_exact else table.lead_count
        self.is_whole = is_exact  # nothing left to strip

    def push(self, token_id: int) -> str:
        if token_id in self._hidden:
            return ""
        if self.is_whole:
            known = self._texts.get(token_id)
            if known is None:
                known = self._table.text(token_id)
            if known is not None:
                return known
        if self._at_start:
            self._at_start = False
            piece = self._table.first_piece(token_id)
        else:
            piece = self._table.piece(token_id)
        if self._utf8 is None:
            self._utf8 = _Utf8Decoder("replace")
        text = self._utf8.decode(piece)
        if self._lead_left:
            text = self._strip_lead(text)
        self.is_whole = not self._lead_left and not self._utf8.getstate()[0]
        return text

    def finish(self) -> str:
        return "" if self._utf8 is None else self._utf8.decode(b"", final=True)

    def _strip_lead(self, text: str) -> str:
        """Drops what is left of the leading characters that the decoder strips from the whole text."""
        while self._lead_left and text.startswith(self._table.lead):
            text = text[len(self._table.lead) :]
            self._lead_left -= 1
        if text:
            self._lead_left = 0
        return text


class WindowDetokenizer:
    """Streams through `decode` of the last few tokens."""

    __slots__ = ("_backend", "_hidden", "_ids", "_num_given")
    is_whole = False  # what a token gives depends on those before it

    def __init__(self, backend: Backend, hidden_ids: Collection[int], prompt_ids: Sequence[int]) -> None:
        self._backend = backend
        self._hidden = hidden_ids
        self._ids = [token_id for token_id in prompt_ids if token_id not in hidden_ids][-_CONTEXT_TOKENS:]
        self._num_given = len(self._ids)

    def push(self, token_id: int) -> str:
        if token_id in self._hidden:
            return ""
        self._ids.append(token_id)
        return self._take(final=len(self._ids) - self._num_given > _MAX_PENDING_TOKENS)

    def finish(self) -> str:
        return self._take(final=True)

    def _take(self, *, final: bool) -> str:
        given = self._decode(self._ids[: self._num_given])
        text = self._decode(self._ids)
        if len(text) <= len(given) or (text.endswith("\ufffd") and not final):
            return ""
        self._ids = self._ids[max(0, self._num_given - _CONTEXT_TOKENS) :]
        self._num_given = len(self._ids)
        return text[len(given) :]

    def _decode(self, ids: list[int]) -> str:
        return self._backend.decode(ids, skip_special_tokens=False)
