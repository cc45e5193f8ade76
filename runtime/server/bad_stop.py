"""`--bad-stop-file-path`: stop phrases and bad words that hold for every request, beside its own.

A JSON object with the names of request fields, each optional:

    {"stop": ["\\n\\n"], "stop_tokens": [{"tokens": [13, 13]}], "bad_words": ["damn"], "bad_word_tokens": [{"tokens": [42]}]}
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from ..errors import ConfigError
from ..sampling import SamplingParams
from ..tokenizer.tokenizer import Tokenizer
from .fields import TokenSequence


class _File(msgspec.Struct, forbid_unknown_fields=True):
    stop: list[str] = []
    stop_tokens: list[TokenSequence] = []
    bad_words: list[str] = []
    bad_word_tokens: list[TokenSequence] = []


@dataclass(frozen=True, slots=True)
class BadStop:
    """What is added to the parameters of every request. `stop` is text, the rest token ids."""

    stop: tuple[str, ...] = ()
    stop_sequences: tuple[tuple[int, ...], ...] = ()
    bad_words_ids: tuple[tuple[int, ...], ...] = ()

    def added_to(self, params: SamplingParams) -> SamplingParams:
        """An answer with a format ends where the format allows it, so sequences of several stop tokens do not count there."""
        if not (self.stop or self.stop_sequences or self.bad_words_ids):
            return params
        singles = tuple(sequence[0] for sequence in self.stop_sequences if len(sequence) == 1)
        several = () if params.is_constrained else tuple(sequence for sequence in self.stop_sequences if len(sequence) > 1)
        return replace(
            params,
            stop=(*params.stop, *self.stop),
            stop_token_ids=(*params.stop_token_ids, *singles),
            stop_token_sequences=(*params.stop_token_sequences, *several),
            bad_words_ids=(*params.bad_words_ids, *self.bad_words_ids),
        )


def read_bad_stop(path: Path, tokenizer: Tokenizer | None, vocab_size: int) -> BadStop:
    """Raises ConfigError naming what is wrong in the file."""
    try:
        given = msgspec.json.decode(path.read_bytes(), type=_File)
    except OSError as error:
        raise _error(path, f"the file cannot be read: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _error(path, f"the file is not what is expected: {error}") from None
    sequences = [tuple(one.tokens) for one in (*given.stop_tokens, *given.bad_word_tokens)]
    for sequence in sequences:
        if not sequence or not all(0 <= token_id < vocab_size for token_id in sequence):
            raise _error(path, f"{list(sequence)} is not a list of token ids from 0 to {vocab_size - 1}")
    if not all([*given.stop, *given.bad_words]):
        raise _error(path, "a phrase is empty")
    if tokenizer is None and (given.stop or given.bad_words):
        raise _error(path, "the model has no tokenizer, so phrases cannot be used; give token ids")
    bad_words = [tuple(one.tokens) for one in given.bad_word_tokens]
    for phrase in given.bad_words:
        assert tokenizer is not None
        bad_words += bad_word_ids(phrase, tokenizer)
    return BadStop(tuple(given.stop), tuple(tuple(one.tokens) for one in given.stop_tokens), tuple(dict.fromkeys(bad_words)))


def bad_word_ids(phrase: str, tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    """A phrase as it is tokenized at the start of a text and after a space."""
    return [tuple(tokenizer.encode(text, add_special_tokens=False)) for text in (phrase, " " + phrase)]


def _error(path: Path, what: str) -> ConfigError:
    hint = 'for instance {"stop": ["\\n\\n"], "bad_word_tokens": [{"tokens": [42]}]}'
    return ConfigError(what, where=f"--bad-stop-file-path {path}", hint=hint)
