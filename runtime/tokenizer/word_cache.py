"""Token ids of words that were seen before, in front of a tokenizer whose words do not depend on each other.

    "The cat, the mat"  ─▶  "The" · " cat," · " the" · " mat"  ─▶  ids of each piece, remembered  ─▶  ids

Byte-level tokenizers cut a text into words by a pattern, then encode each word. The patterns below never let a word reach from a visible
ASCII character over a space to a letter, and look no further ahead than that; so a text may be cut there and its pieces encoded one by one.
`word_cache` gives None for every other tokenizer.
"""

from __future__ import annotations

import json
import re
from typing import Any

from tokenizers import Tokenizer as Backend

_CUT = re.compile(r"(?<=[!-~])(?= [A-Za-z])")
_PATTERNS = frozenset(
    {
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    }
)
"""The words of GPT-2, of Llama 3 and of Qwen 2, and of the many models that took them over."""

MAX_WORDS = 16384
MAX_WORD_CHARS = 48
"""Longer pieces are not remembered. Together: less than 10 MB."""


class WordCache:
    """`encode` may be called from several threads."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._ids_of: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """As the backend encodes `text` without adding special tokens."""
        token_ids: list[int] = []
        ids_of = self._ids_of
        for piece in _CUT.split(text):
            found = ids_of.get(piece)
            token_ids += found if found is not None else self._encode(piece)
        return token_ids

    def _encode(self, piece: str) -> list[int]:
        token_ids: list[int] = self._backend.encode(piece, add_special_tokens=False).ids
        if len(piece) <= MAX_WORD_CHARS:
            if len(self._ids_of) >= MAX_WORDS:
                self._ids_of.clear()  # the common words are back soon
            self._ids_of[piece] = token_ids
        return token_ids


def word_cache(backend: Backend) -> WordCache | None:
    """The cache for a tokenizer that may be cut at words, else None."""
    parts = json.loads(backend.to_str())
    model, normalizer = parts["model"], parts["normalizer"]
    is_local = model["type"] == "BPE" and not model.get("dropout") and (normalizer is None or normalizer["type"] == "NFC")
    if not is_local or not _cuts_words(parts["pre_tokenizer"]) or any(map(_may_cross, parts["added_tokens"])):
        return None
    return WordCache(backend)


def _cuts_words(pre_tokenizer: dict[str, Any] | None) -> bool:
    """Whether words are cut by a known pattern, and by nothing else."""
    match pre_tokenizer:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}:
            return True
        case {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        }:
            return pattern in _PATTERNS
    return False


def _may_cross(token: dict[str, Any]) -> bool:
    """Whether an added token reads over a place where a text is cut."""
    return " " in token["content"] or token["lstrip"] or token["rstrip"] or token["single_word"]
