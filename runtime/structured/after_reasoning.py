"""A constraint for what comes after the reasoning of an answer, and a bound on the length of the reasoning.

    reasoning: any token but an end   ─ closing mark ─▶   the constraint (or any text)
                                        ▲ written for the model when the reasoning has had its tokens

The prompt may have opened the reasoning; otherwise the model may open it with the first tokens of its answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..tokenizer.tokenizer import Tokenizer
from .constraint import ConstraintCompiler, SampleMasks
from .errors import ConstraintFailed


@dataclass(frozen=True, slots=True)
class Marks:
    """`open_ids`, `close_ids`: how the marks are written where nothing else may be.

    `feed_ids`: tokens of one or two line feeds, which models write behind the closing mark.
    """

    open: bytes
    open_ids: tuple[int, ...]
    close: bytes
    close_ids: tuple[int, ...]
    feed_ids: tuple[int, ...]


def marks_of(tokenizer: Tokenizer, open_text: str, close_text: str) -> Marks:
    def ids(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    feeds = [ids(text) for text in ("\n", "\n\n")]
    feed_ids = tuple(found[0] for found in feeds if len(found) == 1)
    return Marks(open_text.encode(), tuple(ids(open_text)), close_text.encode(), tuple(ids(close_text)), feed_ids)


class Inner(Protocol):
    """The constraint after the reasoning: `Constraint` or one like it."""

    def sample(self) -> SampleMasks: ...

    def accepts(self, text: str) -> bool: ...


class AfterReasoning:
    """`inner` None: any text may follow. `budget` None: the reasoning may be as long as the answer."""

    def __init__(
        self,
        inner: Inner | None,
        marks: Marks,
        compiler: ConstraintCompiler,
        end_ids: Sequence[int],
        *,
        is_open: bool,
        budget: int | None,
    ) -> None:
        self._inner = inner
        self._marks = marks
        self._tokenizer = compiler.tokenizer
        self._any_token = compiler.any_token
        self._end_ids = tuple(end_ids)
        self._is_open = is_open
        self._budget = budget
        self.first_mask = self.sample().mask()

    def sample(self) -> ReasoningMasks:
        new_inner = self._inner.sample if self._inner is not None else None
        return ReasoningMasks(
            new_inner, self._marks, self._tokenizer, self._any_token, self._end_ids, is_open=self._is_open, budget=self._budget
        )

    def accepts(self, text: str) -> bool:
        """Whether a stop string may end the answer after `text`; where only the reasoning is bounded, anywhere."""
        if self._inner is None:
            return True
        close = self._marks.close.decode()
        _, closed, rest = text.partition(close)
        if not closed:
            return not self._is_open and self._inner.accepts(text)
        return self._inner.accepts(rest.lstrip("\n"))


class ReasoningMasks:
    """The masks of one sample: `structured.mask_feeder.Masks`."""

    def __init__(
        self,
        new_inner: Callable[[], SampleMasks] | None,
        marks: Marks,
        tokenizer: Tokenizer,
        any_token: bytes,
        end_ids: tuple[int, ...],
        *,
        is_open: bool,
        budget: int | None,
    ) -> None:
        self._new_inner = new_inner
        self._inner = new_inner() if new_inner is not None else None
        self._marks = marks
        self._tokenizer = tokenizer
        self._any_token = any_token
        self._in_reasoning = _changed(any_token, with_=marks.close_ids, without=end_ids)
        self._end_ids = end_ids
        self._state = "reasoning" if is_open else "start"
        self._num_left = budget
        self._opening: list[int] = []
        self._may_not_reason = True  # whether the inner constraint takes what was written of the opening mark
        self._tail = b""
        self._closing: list[int] = []

    def advance(self, token_id: int) -> bytes:
        if self._state == "start":
            self._open(token_id)
            if self._state != "after":
                return self.mask()
        elif self._state == "reasoning":
            self._reason(token_id)
            return self.mask()
        elif self._state == "closed":
            if not self._tokenizer.token_bytes(token_id).strip(b"\n") and token_id not in self._end_ids:
                return self.mask()  # line feeds between mark and content
            self._state = "after"
        return self._inner.advance(token_id) if self._inner is not None else _changed(self._any_token, with_=self._end_ids)

    def mask(self) -> bytes:
        if self._closing:
            return _changed(bytes(len(self._any_token)), with_=self._closing[:1])
        if self._state == "reasoning":
            return self._in_reasoning
        free = _changed(self._any_token, with_=self._end_ids)
        mask = self._inner.mask() if self._inner is not None else free
        if self._state == "start":
            written, marks = tuple(self._opening), self._marks.open_ids
            next_ids = marks[len(written) : len(written) + 1] if written == marks[: len(written)] else ()
            return _changed(mask if self._may_not_reason else bytes(len(mask)), with_=next_ids)
        if self._state == "closed":
            return _changed(mask, with_=self._marks.feed_ids)
        return mask

    def _open(self, token_id: int) -> None:
        """The next token of an answer that may begin with the opening mark."""
        self._opening.append(token_id)
        seen = b"".join(map(self._tokenizer.token_bytes, self._opening)).lstrip()
        if seen.startswith(self._marks.open):
            self._state = "reasoning"
            if len(self._opening) > 1 and self._new_inner is not None:
                self._inner = self._new_inner()
        elif not self._marks.open.startswith(seen) or token_id in self._end_ids:
            self._state = "after"
        elif self._inner is not None and self._may_not_reason:
            self._may_not_reason = bool(self._inner.mask()[token_id // 8] >> token_id % 8 & 1)
            if self._may_not_reason:
                self._inner.advance(token_id)

    def _reason(self, token_id: int) -> None:
        if self._closing:
            self._closing.pop(0)
        self._tail += self._tokenizer.token_bytes(token_id)
        at = self._tail.find(self._marks.close)
        if at >= 0:
            rest = self._tail[at + len(self._marks.close) :]
            if rest.strip(b"\n") and self._inner is not None:
                raise ConstraintFailed("the reasoning ended in the middle of a token")
            self._state, self._closing = "closed", []
            return
        self._tail = self._tail[-len(self._marks.close) :]
        if self._num_left is not None and not self._closing:
            self._num_left -= 1
            if self._num_left <= 0:
                self._tail = b""
                self._closing = list(self._marks.close_ids)


def _changed(mask: bytes, *, with_: Sequence[int] = (), without: Sequence[int] = ()) -> bytes:
    changed = bytearray(mask)
    for token_id in with_:
        changed[token_id // 8] |= 1 << token_id % 8
    for token_id in without:
        changed[token_id // 8] &= ~(1 << token_id % 8)
    return bytes(changed)
