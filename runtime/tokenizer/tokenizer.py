"""A tokenizer.json and its tokenizer_config.json, loaded as Hugging Face tokenizers load them, without transformers.

Text ⇄ token ids, the bytes of single tokens, streaming detokenizers, and chat prompts in which special tokens written by a user stay text.
The folder is that of an artifact (`tokenizer/`); only tokenizer.json is required. What surrounds a text (BOS, EOS) is what tokenizer.json
says; `add_bos_token` and `add_eos_token` of the config mean nothing beside it, as in transformers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .backend import Backend
from .byte_level_bpe import read_byte_level_bpe
from .detokenizer import Detokenizer, TableDetokenizer, WindowDetokenizer
from .library_backend import read_library_backend
from .pieces import piece_table

SPECIAL_TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_MARKS = tuple(map(chr, range(0xFDD0, 0xFDF0)))
"""Unicode non-characters: never in real text, so one that a request does not use can mark places in a rendered prompt."""


class Tokenizer:
    """Encodes and decodes. `add_special_tokens`, `skip_special_tokens`: what `encode` and `decode` do unless told otherwise."""

    def __init__(
        self, backend: Backend, config: dict[str, Any], *, add_special_tokens: bool = True, skip_special_tokens: bool = True
    ) -> None:
        from .. import _core  # here, so that importing this module loads no native code

        self.backend = backend
        self.config = config
        self.add_special_tokens = add_special_tokens
        self.skip_special_tokens = skip_special_tokens
        self.special_tokens = _named_special_tokens(config)
        self.special_ids = frozenset(backend.special_ids.values())
        special_texts = sorted(backend.special_ids, key=len, reverse=True)
        self._special_pattern = re.compile("|".join(map(re.escape, special_texts)) or "(?!)")
        self._special_beginnings = "".join({text[:1] for text in special_texts})
        self._may_hold = _core.may_hold
        self._table = piece_table(backend)
        self._hidden_ids = self.special_ids if skip_special_tokens else frozenset()
        self.max_token_id = backend.max_token_id
        self.max_token_bytes = max(backend.max_token_bytes, 1)

    @classmethod
    def load(cls, folder: Path, *, add_special_tokens: bool = True, skip_special_tokens: bool = True) -> Tokenizer:
        """Reads `folder`/tokenizer.json and, if there, tokenizer_config.json. Raises ConfigError when they are unreadable."""
        config = read_json(folder / "tokenizer_config.json")
        path = folder / "tokenizer.json"
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ConfigError(f"tokenizer.json cannot be read: {error}", where=str(path), hint="compile the artifact again") from None
        return cls(_backend(data, config, path), config, add_special_tokens=add_special_tokens, skip_special_tokens=skip_special_tokens)

    @classmethod
    def from_json(
        cls, text: str, config: dict[str, Any] | None = None, *, add_special_tokens: bool = True, skip_special_tokens: bool = True
    ) -> Tokenizer:
        """As `load`, from the text of a tokenizer.json and what tokenizer_config.json holds."""
        backend = _backend(text.encode(), config or {}, "tokenizer.json")
        return cls(backend, config or {}, add_special_tokens=add_special_tokens, skip_special_tokens=skip_special_tokens)

    def encode(self, text: str, *, add_special_tokens: bool | None = None) -> list[int]:
        """Token ids of `text`; special tokens written in it are parsed as such."""
        return self.backend.encode(text, add_special_tokens=self.add_special_tokens if add_special_tokens is None else add_special_tokens)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool | None = None) -> str:
        """Text of `token_ids`; ids that the tokenizer does not have give nothing."""
        skip = self.skip_special_tokens if skip_special_tokens is None else skip_special_tokens
        return self.backend.decode(token_ids, skip_special_tokens=skip)

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
            parts.append(self.backend.special_ids[found[0]])
            pos = found.end()
        return parts + ([text[pos:]] if pos < len(text) else [])

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
                yield self.backend.encode_special_text(found[0])
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


def _backend(data: bytes, config: dict[str, Any], where: Path | str) -> Backend:
    names = _named_special_tokens(config).values()
    return read_byte_level_bpe(data, names) or read_library_backend(data, names, where)
