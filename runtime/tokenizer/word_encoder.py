"""Byte-level BPE in C++ for the tokenizers whose words are cut as GPT-2, Llama 3 or Qwen 2 cut them; their library does the rest.

    "The café is"  ─▶  "The" · " is": csrc/tokenizer          " café": the library, remembered          ─▶  ids

Words of ASCII are cut, merged and remembered there. A piece of text that is not ASCII is encoded by the library alone: no word reaches from
a visible character over a space, and none looks further ahead than that. `word_encoder` gives None for every other tokenizer.
"""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer as Backend

from .pieces import BYTE_OF_CHAR

_RULES = {
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+": "gpt2",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": "llama3",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": "qwen2",
}
"""Patterns of words → their names in csrc/tokenizer/words.h; many models took them over."""

MAX_PIECES = 16384
MAX_PIECE_CHARS = 48
"""Longer pieces that are not ASCII are not remembered. Together: less than 10 MB."""


class WordEncoder:
    """`encode` may be called from several threads."""

    def __init__(self, backend: Backend, model: dict[str, Any], rule: str, added_tokens: list[dict[str, Any]]) -> None:
        from .. import _core  # here, so that importing this module loads no native code

        self._backend = backend
        self._ids_of: dict[str, list[int]] = {}
        first, later = (
            [(token["content"], token["id"]) for token in added_tokens if token["normalized"] == normalized] for normalized in (False, True)
        )
        self._core = _core.BytePairEncoder(
            rule,
            model["vocab"],
            model["merges"],
            byte_texts=_byte_texts(),
            ignores_merges=bool(model.get("ignore_merges")),
            first_tokens=first,
            later_tokens=later,
        )

    def encode(self, text: str) -> list[int]:
        """As the backend encodes `text` without adding special tokens."""
        ids: list[int] = self._core.encode(text, self._encode_piece)
        return ids

    def _encode_piece(self, piece: str) -> list[int]:
        found = self._ids_of.get(piece)
        if found is not None:
            return found
        token_ids: list[int] = self._backend.encode(piece, add_special_tokens=False).ids
        if len(piece) <= MAX_PIECE_CHARS:
            if len(self._ids_of) >= MAX_PIECES:
                self._ids_of.clear()  # the common ones are back soon
            self._ids_of[piece] = token_ids
        return token_ids


def word_encoder(backend: Backend) -> WordEncoder | None:
    """The encoder of a tokenizer that may be cut at words, else None."""
    parts = json.loads(backend.to_str())
    model, normalizer, added = parts["model"], parts["normalizer"], parts["added_tokens"]
    rule = _word_rule(parts["pre_tokenizer"])
    is_local = model["type"] == "BPE" and not model.get("dropout") and (normalizer is None or normalizer["type"] == "NFC")
    has_affixes = model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")
    if rule is None or not is_local or has_affixes or any(map(_may_cross, added)):
        return None
    if not all(text in model["vocab"] for text in _byte_texts()):
        return None
    return WordEncoder(backend, model, rule, added)


def _word_rule(pre_tokenizer: dict[str, Any] | None) -> str | None:
    """The name of the rule if words are cut by a known pattern, and by nothing else."""
    match pre_tokenizer:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}:
            return "gpt2"
        case {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        }:
            return _RULES.get(pattern)
    return None


def _byte_texts() -> list[str]:
    """The character that stands for each byte."""
    return sorted(BYTE_OF_CHAR, key=BYTE_OF_CHAR.__getitem__)


def _may_cross(token: dict[str, Any]) -> bool:
    """Whether an added token reads over a place where a text is cut."""
    return not token["content"] or " " in token["content"] or token["lstrip"] or token["rstrip"] or token["single_word"]
