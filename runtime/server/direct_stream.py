"""Streams of which the core writes the tokens itself (csrc/http/token_streams.h), as long as only their text differs from frame to frame.

    Generation: flush ─▶ arm the choices that are plain now ─▶ the core takes their tokens … ─▶ one that it does not take: put, flush, arm …

A choice is plain while each token gives just its own text (`SampleText.is_whole`) and the answer writes each text into the same frame
(`text_frame`): content, or reasoning, where a text must not touch the mark that ends it. The core leaves everything else to the generation,
in order: ends, errors, tokens within a character. It knows the text of a token once that has come this way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from .._core import TokenStream, TokenStreams
from ..tokenizer.tokenizer import Tokenizer
from ..tools.reasoning import is_inside
from .exchange import Exchange
from .http import encode_json

_MAX_KINDS = 32


class TextFrame(NamedTuple):
    """What stands before and after the text of a token, and between the text and a token id if that is written too.

    `end_mark`: of reasoning; a text that may be part of it needs another frame.
    """

    before: bytes
    after: bytes
    between: bytes = b""
    end_mark: str = ""


class Framed(Protocol):
    """An answer that may be written in frames."""

    def text_frame(self, choice_idx: int) -> TextFrame | None:
        """None: the next token of the choice may need another frame."""

    def count_direct(self, choice_idx: int, num_tokens: int) -> None:
        """The core has written so many tokens of the choice."""


class TokenTexts:
    """What the core knows of the tokens of a tokenizer. A kind of text is one that does not touch a mark; "" is none."""

    def __init__(self, streams: TokenStreams, tokenizer: Tokenizer) -> None:
        self.streams = streams
        self._tokenizer = tokenizer
        self._marks = [""]
        self._seen: set[int] = set()

    def kind_of(self, mark: str) -> int | None:
        """None where there are too many kinds already."""
        if mark not in self._marks:
            if len(self._marks) == _MAX_KINDS:
                return None
            self._marks.append(mark)
            self._seen.clear()  # they are learned once more
        return self._marks.index(mark)

    def learn(self, token_ids: Sequence[int]) -> None:
        for token_id in token_ids:
            if token_id not in self._seen:
                self._seen.add(token_id)
                if text := self._tokenizer.whole_text(token_id):
                    kinds = sum(1 << kind for kind, mark in enumerate(self._marks) if not mark or is_inside(text, mark))
                    self.streams.learn(token_id, encode_json(text), kinds)


class DirectStream:
    """The way of one answer. It begins with the first `arm` and ends with `close`."""

    __slots__ = ("_answer", "_exchange", "_stream", "_texts")

    def __init__(self, texts: TokenTexts, exchange: Exchange, answer: Framed) -> None:
        self._texts, self._exchange, self._answer = texts, exchange, answer
        self._stream: TokenStream | None = None

    def arm(self, choice_idx: int, token_ids: Sequence[int], engine_request_ids: list[int], num_samples: int) -> None:
        """Leaves the next tokens of a choice to the core, if its answer allows. `token_ids`: those that came this way."""
        frame = self._answer.text_frame(choice_idx)
        kind = self._texts.kind_of(frame.end_mark) if frame is not None else None
        if frame is None or kind is None:
            return
        self._texts.learn(token_ids)
        if self._stream is None:
            self._stream = self._exchange.token_stream(self._texts.streams, engine_request_ids, num_samples)
        self._stream.arm(choice_idx, frame.before, frame.after, frame.between, kind)

    def take_counts(self) -> list[tuple[int, int]]:
        """(Choice, tokens that the core took since the last time)."""
        counts = self._stream.take_counts() if self._stream is not None else []
        for choice_idx, num_tokens in counts:
            self._answer.count_direct(choice_idx, num_tokens)
        return counts

    def close(self) -> None:
        self._stream = None
