"""A tokenizer.json and its tokenizer_config.json, loaded as Hugging Face tokenizers load them, without transformers.

Text ⇄ token ids, the bytes of single tokens, streaming detokenizers, and chat prompts in which special tokens written by a user stay text.
The folder is that of an artifact (`tokenizer/`); only tokenizer.json is required. What surrounds a text (BOS, EOS) is what tokenizer.json
says; `add_bos_token` and `add_eos_token` of the config mean nothing beside it, as in transformers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from ..errors import ConfigError
from .detokenizer import Detokenizer, TableDetokenizer, WindowDetokenizer
from .pieces import piece_table
from .word_encoder import word_encoder

SPECIAL_TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_MARKS = tuple(map(chr, range(0xFDD0, 0xFDF0)))
"""Unicode non-characters: never in real text, so one that a request does not use can mark places in a rendered prompt."""

WORD_CACHE_ENTRIES = 2048
"""Words whose merges the library remembers. Its default of 10,000 lets a client that sends long random words hold 50 MB."""


class Tokenizer:
    """Encodes and decodes. `add_special_tokens`, `skip_special_tokens`: what `encode` and `decode` do unless told otherwise."""

    def __init__(
        self, backend: Backend, config: dict[str, Any] | None = None, *, add_special_tokens: bool = True, skip_special_tokens: bool = True
    ) -> None:
        self.backend = backend
        self.config = config or {}
        self.add_special_tokens = add_special_tokens
        self.skip_special_tokens = skip_special_tokens
        self.special_tokens = _named_special_tokens(self.config)
        backend.no_truncation()
        backend.no_padding()
        _bound_word_cache(backend)
        _register_named_tokens(backend, self.special_tokens)
        added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        special = {token.content: token_id for token_id, token in added.items() if token.special}
        self._special_texts = sorted(special, key=len, reverse=True)
        self._special_pattern = re.compile("|".join(map(re.escape, self._special_texts)) or "(?!)")
        self._literal_ids = _literal_ids(backend, special)
        from .. import _core  # here, so that importing this module loads no native code

        self._may_hold = _core.may_hold
        self._special_beginnings = "".join({text[:1] for text in self._special_texts})
        self._table = piece_table(backend)
        self._hidden_ids = self.special_ids if skip_special_tokens else frozenset()
        self._words = word_encoder(backend)

    @classmethod
    def load(cls, folder: Path, *, add_special_tokens: bool = True, skip_special_tokens: bool = True) -> Tokenizer:
        """Reads `folder`/tokenizer.json and, if there, tokenizer_config.json. Raises ConfigError when they are unreadable."""
        path = folder / "tokenizer.json"
        try:
            backend = Backend.from_file(str(path))
        except Exception as error:  # the library raises bare Exception for anything wrong in the file
            raise ConfigError(
                f"tokenizer.json cannot be read: {error}",
                where=str(path),
                hint="compile again from a checkpoint whose tokenizer.json loads in the `tokenizers` library",
            ) from None
        return cls(
            backend,
            read_json(folder / "tokenizer_config.json"),
            add_special_tokens=add_special_tokens,
            skip_special_tokens=skip_special_tokens,
        )

    def encode(self, text: str, *, add_special_tokens: bool | None = None) -> list[int]:
        """Token ids of `text`; special tokens written in it are parsed as such."""
        add = self.add_special_tokens if add_special_tokens is None else add_special_tokens
        if not add and self._words is not None:
            return self._words.encode(text)
        return self.backend.encode(text, add_special_tokens=add).ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool | None = None) -> str:
        """Text of `token_ids`; ids that the tokenizer does not have give nothing."""
        skip = self.skip_special_tokens if skip_special_tokens is None else skip_special_tokens
        return self.backend.decode(list(token_ids), skip_special_tokens=skip)

    @property
    def has_token_bytes(self) -> bool:
        """Whether `token_bytes` is what a token adds to any text: not so for decoders that look at several tokens."""
        return self._table is not None

    def detokenizer(self, prompt_ids: Sequence[int], *, is_exact: bool = False, shown_ids: frozenset[int] = frozenset()) -> Detokenizer:
        """A streaming decoder of the text that follows `prompt_ids`.

        `is_exact`: each token gives just its `token_bytes`, the first too. `shown_ids`: special tokens that are written nevertheless.
        """
        hidden_ids = self._hidden_ids - shown_ids if shown_ids else self._hidden_ids
        if self._table is not None:
            return TableDetokenizer(self._table, hidden_ids, is_exact or not hidden_ids.issuperset(prompt_ids))
        return WindowDetokenizer(self.backend, hidden_ids, prompt_ids)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that the token adds in the middle of a text; for a special token, its written form."""
        if token_id not in self.special_ids and self._table is not None:
            return self._table.piece(token_id)
        if token_id in self.special_ids:
            return (self.backend.id_to_token(token_id) or "").encode("utf-8", "replace")
        return self.backend.decode([token_id], skip_special_tokens=False).encode("utf-8", "replace")

    def whole_text(self, token_id: int) -> str | None:
        """What the token adds to any text; None for special tokens, and for those of which other tokens decide what they add."""
        return None if self._table is None or token_id in self.special_ids else self._table.text(token_id)

    @cached_property
    def max_token_id(self) -> int:
        """The highest id that `encode` can give."""
        return max(self.backend.get_vocab(with_added_tokens=True).values(), default=-1)

    @cached_property
    def max_token_bytes(self) -> int:
        """Bytes of the longest token: a text of B bytes has at least B / max_token_bytes tokens."""
        longest = max((len(token.encode("utf-8", "replace")) for token in self.backend.get_vocab(with_added_tokens=True)), default=1)
        return max(longest, 1)

    # Special tokens in user content ------------------------------------------------------------------------------------------------------

    def may_spell_special(self, messages: list[dict[str, Any]]) -> bool:
        """Whether a text of the messages may spell a special token. False for messages of texts that surely do not."""
        if not self._may_hold(messages, self._special_beginnings):
            return False
        spelled = self._special_pattern.search
        for message in messages:
            for key, value in message.items():
                if key != "role" and (type(value) is not str or spelled(value) is not None):
                    return True
        return False

    def mark_special_text(self, value: Any, mark: str) -> Any:
        """`value` with every special token that its strings spell broken up by `mark` after the first character."""
        if isinstance(value, str):
            return self._special_pattern.sub(lambda found: found[0][:1] + mark + found[0][1:], value)
        if isinstance(value, list):
            return [self.mark_special_text(item, mark) for item in value]
        if isinstance(value, dict):
            return {key: self.mark_special_text(item, mark) for key, item in value.items()}
        return value

    def split_special(self, text: str) -> list[str | int]:
        """`text` as ordinary text and ids of the special tokens that it spells."""
        parts: list[str | int] = []
        pos = 0
        for found in self._special_pattern.finditer(text):
            if found.start() > pos:
                parts.append(text[pos : found.start()])
            parts.append(self._special_id(found[0]))
            pos = found.end()
        return parts + ([text[pos:]] if pos < len(text) else [])

    def _special_id(self, text: str) -> int:
        token_id = self.backend.token_to_id(text)
        assert token_id is not None
        return token_id

    def encode_marked(self, text: str, mark: str) -> list[int]:
        """Token ids of a rendered chat prompt: no BOS is added (the template writes it), and marked special tokens are ordinary text."""
        if mark not in text:
            return self.encode(text, add_special_tokens=False)
        token_ids: list[int] = []
        for part in self._marked_parts(text, mark):
            token_ids += part if isinstance(part, list) else self.encode(part, add_special_tokens=False)
        return token_ids

    def _marked_parts(self, text: str, mark: str) -> Iterator[str | list[int]]:
        """The texts between the marked special tokens, and the ids of those. A mark of anything else is where a text is cut."""
        before, *others = text.split(mark)
        for part in others:
            found = self._special_pattern.match(before[-1] + part) if before else None
            if found is not None:
                before, part = before[:-1], part[len(found[0]) - 1 :]
            if before:
                yield before
            if found is not None:
                yield self._literal_ids[found[0]]
            before = part
        if before:
            yield before


def unused_mark(text: str) -> str | None:
    """A character that `text` does not hold, to mark places with; None when it holds all candidates."""
    return next((mark for mark in _MARKS if mark not in text), None)


def read_json(path: Path) -> dict[str, Any]:
    """The object in `path`, {} if there is no such file. Raises ConfigError when it is not a JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ConfigError(f"{path.name} is not JSON: {error}", where=str(path), hint="compile the artifact again") from None
    if not isinstance(value, dict):
        raise ConfigError(
            f"{path.name} holds a {type(value).__name__}, expected an object", where=str(path), hint="compile the artifact again"
        )
    return value


def _named_special_tokens(config: dict[str, Any]) -> dict[str, str]:
    """`bos_token` … → its text; a token is written as a string or as an object with `content`."""
    named = {}
    for name in SPECIAL_TOKEN_NAMES:
        value = config.get(name)
        content = value.get("content") if isinstance(value, dict) else value
        if isinstance(content, str):
            named[name] = content
    return named


def _bound_word_cache(backend: Backend) -> None:
    if hasattr(backend.model, "_resize_cache"):  # BPE and Unigram have one
        backend.model._resize_cache(WORD_CACHE_ENTRIES)


def _literal_ids(backend: Backend, special: Mapping[str, int]) -> dict[str, list[int]]:
    """The tokens of each special token's text where it is no more than text. Before anybody else uses the backend."""

    def encode(text: str) -> list[int]:
        ids: list[int] = backend.encode(text, add_special_tokens=False).ids
        return ids

    backend.encode_special_tokens = True
    token_ids = {text: encode(text) for text in special}
    for text, token_id in special.items():
        if token_id in token_ids[text]:  # the model has it as a word too
            token_ids[text] = encode(text[:1]) + encode(text[1:])
    backend.encode_special_tokens = False
    return token_ids


def _register_named_tokens(backend: Backend, named: dict[str, str]) -> None:
    """Makes special what the config names as special and the vocabulary has, as Hugging Face tokenizers do."""
    special = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    missing = [text for text in named.values() if text not in special and backend.token_to_id(text) is not None]
    if missing:
        backend.add_special_tokens(missing)
