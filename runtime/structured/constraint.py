"""Grammars compiled for one tokenizer, and the tokens that may come next at each place of an answer.

    Grammar ─ConstraintCompiler─▶ Constraint ─sample()─▶ SampleMasks ─advance(token)─▶ mask of the next token, …

A mask has one bit per token of the model's vocabulary (bit t%32 of 32-bit word t/32). Tokens that end an answer are allowed exactly where
the text so far satisfies the grammar. All methods may be called from any thread; one SampleMasks at a time by one thread.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..tokenizer.tokenizer import Tokenizer
from .errors import ConstraintFailed, InvalidConstraint
from .response_format import Grammar

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

JSON_WHITESPACE_CHARS = r"[ \n\r\t]"
JSON_WHITESPACE = JSON_WHITESPACE_CHARS + "{1,40}"
"""Between two tokens of JSON: enough for any indentation, and no model can go on with white space for ever."""
MAX_CACHED_CONSTRAINTS = 128
MAX_CACHED_BYTES = 4 * 2**20
"""Of grammar texts; a compiled grammar is about ten times as large."""
_LIMITS = {
    "initial_lexer_fuel": 1_000_000,  # about 20 ms
    "step_lexer_fuel": 200_000,  # about 15 ms for one mask
    "step_max_items": 50_000,
    "max_lexer_states": 50_000,  # 1 to 2 kB each
    "max_grammar_size": 250_000,
    "verbose_errors": False,
}


class Constraint:
    """A compiled grammar, shared by all samples that follow it."""

    def __init__(self, matcher: LLMatcher, tokenizer: LLTokenizer, end_ids: Sequence[int]) -> None:
        self._matcher = matcher
        self._tokenizer = tokenizer
        self._end_ids = tuple(end_ids)
        self.first_mask = self.sample().mask()

    def sample(self) -> SampleMasks:
        """The state of one answer, before its first token."""
        return SampleMasks(self._matcher.deep_copy(), self._end_ids, num_mask_bytes(self._tokenizer.vocab_size))

    def accepts(self, text: str, *, has_marks: bool = False) -> bool:
        """Whether `text` is a whole answer. `has_marks`: what it spells like special tokens is such."""
        matcher = self._matcher.deep_copy()
        token_ids = self._tokenizer.tokenize_str(text, parse_special=True) if has_marks else self._tokenizer.greedy_tokenize(text)
        return matcher.try_consume_tokens(token_ids) == len(token_ids) and matcher.is_accepting()


class SampleMasks:
    """Follows one answer token by token."""

    __slots__ = ("_end_ids", "_matcher", "_num_bytes")

    def __init__(self, matcher: LLMatcher, end_ids: tuple[int, ...], num_bytes: int) -> None:
        self._matcher = matcher
        self._end_ids = end_ids
        self._num_bytes = num_bytes

    def advance(self, token_id: int) -> bytes:
        """The mask of the token after `token_id`. Raises ConstraintFailed."""
        self._matcher.consume_token(token_id)
        return self.mask()

    def mask(self) -> bytes:
        """The tokens that may come next. Raises ConstraintFailed when there is none, or when it costs too much to find out."""
        mask = bytearray(self._matcher.compute_bitmask()[: self._num_bytes])  # the library's may be a word longer
        if self._matcher.is_error():
            raise ConstraintFailed(_first_line(self._matcher.get_error()))
        may_end = self._matcher.is_accepting()
        for token_id in self._end_ids:
            bit = 1 << token_id % 8
            mask[token_id // 8] = mask[token_id // 8] | bit if may_end else mask[token_id // 8] & ~bit
        if not any(mask):
            raise ConstraintFailed("no token of the model can follow here")
        return bytes(mask)


def num_mask_bytes(vocab_size: int) -> int:
    return (vocab_size + 31) // 32 * 4


class ConstraintCompiler:
    """Compiles grammars for `tokenizer` and a model of `vocab_size` logits; the last ones used are kept."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_ids: Sequence[int]) -> None:
        self.tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_ids = tuple(eos_ids)
        self._lock = threading.Lock()
        self._cache: OrderedDict[Grammar, LLMatcher] = OrderedDict()
        self._num_cached_bytes = 0

    def compile(
        self, grammar: Grammar, end_ids: Sequence[int], *, param: str = "response_format", begun_ids: Sequence[int] = ()
    ) -> Constraint:
        """`end_ids`: every token that ends the answer. `begun_ids`: what the prompt has already written of what the grammar describes.

        Raises InvalidConstraint when the grammar cannot be compiled, has no text, or none that goes on like that.
        """
        try:
            matcher = self._matcher(grammar, param)
            if begun_ids:
                matcher = matcher.deep_copy()
                if matcher.try_consume_tokens(list(begun_ids)) < len(begun_ids):
                    raise InvalidConstraint("the prompt begins the answer in a way that the constraint does not allow", param)
            return Constraint(matcher, self._ll_tokenizer, end_ids)
        except ConstraintFailed as error:
            raise InvalidConstraint(f"no text of this model satisfies the constraint: {error}", param) from None

    def warm_up(self) -> None:
        """Makes what all grammars share. A tokenizer that cannot have grammars is no error here."""
        with contextlib.suppress(InvalidConstraint):
            self.compile(Grammar("regex", "a"), self._eos_ids)

    @cached_property
    def any_token(self) -> bytes:
        """The mask of all tokens that have text and are no special ones."""
        mask = bytearray(num_mask_bytes(self._vocab_size))
        for token_id in range(min(self._vocab_size, self.tokenizer.backend.num_tokens)):
            if token_id not in self.tokenizer.special_ids:
                mask[token_id // 8] |= 1 << token_id % 8
        return bytes(mask)

    def _matcher(self, grammar: Grammar, param: str) -> LLMatcher:
        with self._lock:
            found = self._cache.get(grammar)
            if found is not None:
                self._cache.move_to_end(grammar)
                return found
            tokenizer = self._ll_tokenizer
        matcher = _compiled(grammar, tokenizer, param)
        with self._lock:
            self._keep(grammar, matcher)
        return matcher

    def _keep(self, grammar: Grammar, matcher: LLMatcher) -> None:
        if grammar in self._cache:
            return
        self._cache[grammar] = matcher
        self._num_cached_bytes += len(grammar.source)
        while len(self._cache) > MAX_CACHED_CONSTRAINTS or self._num_cached_bytes > MAX_CACHED_BYTES:
            dropped, _ = self._cache.popitem(last=False)
            self._num_cached_bytes -= len(dropped.source)

    @cached_property
    def _ll_tokenizer(self) -> LLTokenizer:
        from llguidance import LLTokenizer, TokenizerWrapper

        if not self._eos_ids:
            raise InvalidConstraint("this model has no end-of-sequence token, so a constrained answer could not end")
        if not self.tokenizer.has_token_bytes:
            raise InvalidConstraint("the tokenizer of this model does not say which bytes its tokens stand for")
        wrapper = TokenizerWrapper(_Vocabulary(self.tokenizer, self._vocab_size, self._eos_ids[0]))
        return LLTokenizer(wrapper, n_vocab=self._vocab_size, eos_token=list(self._eos_ids))


class _Vocabulary:
    """A tokenizer as the grammar library wants it."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_id: int) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = eos_id
        self.bos_token_id = None
        self.tokens = [tokenizer.token_bytes(token_id) for token_id in range(vocab_size)]
        self.special_token_ids = sorted(token_id for token_id in tokenizer.special_ids if token_id < vocab_size)
        special = frozenset(self.special_token_ids)
        self._ids = {data: token_id for token_id, data in enumerate(self.tokens) if data and token_id not in special}
        self._max_len = max(map(len, self._ids), default=1)

    def __call__(self, text: str | bytes) -> list[int]:
        """Tokens that spell just `text`: where a grammar leaves no choice, they are the ones allowed."""
        data = text if isinstance(text, bytes) else text.encode()
        try:
            token_ids = self._tokenizer.encode(data.decode(), add_special_tokens=False)
        except UnicodeDecodeError:  # part of a character
            return self._greedy(data)
        spelled = b"".join(self.tokens[token_id] for token_id in token_ids)
        return token_ids if spelled == data else self._greedy(data)  # some tokenizers put a space before

    def _greedy(self, data: bytes) -> list[int]:
        """The longest token at each place; ends before a byte that no token begins with."""
        token_ids: list[int] = []
        start = 0
        while start < len(data):
            ends = range(min(len(data), start + self._max_len), start, -1)
            end = next((end for end in ends if data[start:end] in self._ids), None)
            if end is None:
                break
            token_ids.append(self._ids[data[start:end]])
            start = end
        return token_ids


def _compiled(grammar: Grammar, tokenizer: LLTokenizer, param: str) -> LLMatcher:
    from llguidance import LLMatcher, LLParserLimits

    try:
        matcher = LLMatcher(tokenizer, _library_grammar(grammar), limits=LLParserLimits(**_limits()), log_level=0)
    except ValueError as error:
        raise InvalidConstraint(f"the constraint cannot be compiled: {_first_line(str(error))}", param) from None
    if matcher.is_error():
        raise InvalidConstraint(f"the constraint cannot be compiled: {_first_line(matcher.get_error())}", param)
    return matcher


def _limits() -> dict[str, Any]:
    return dict(_LIMITS)


def _library_grammar(grammar: Grammar) -> str:
    from llguidance import LLMatcher

    if grammar.kind == "json_schema":
        return LLMatcher.grammar_from_json_schema(grammar.source, overrides={"whitespace_pattern": JSON_WHITESPACE})
    if grammar.kind == "regex":
        return LLMatcher.grammar_from_regex(grammar.source)
    return LLMatcher.grammar_from_lark(grammar.source)


def _first_line(text: str) -> str:
    """The library's message without its listings and hints about options that requests do not have."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    what = next((line for line in lines if line.startswith("error:")), lines[0] if lines else "unknown error")
    return what.removeprefix("error:").partition(" Enable 'coerce_one_of'")[0].strip()[:300]
