"""Byte-level BPE in C++ for the tokenizers whose words are cut as GPT-2, Llama 3 or Qwen 2 cut them.

    "The café is"  ─▶  "The" · " is": csrc/tokenizer          " café": cut by the library, remembered          ─▶  merges  ─▶  ids

Words of ASCII are cut there, all words are merged there. A piece of text that is not ASCII is normalized and cut by the library: no word
reaches from a visible character over a space, and none looks further ahead than that. The vocabulary is read once, into C++ only: the
library's object for it takes half a second and 100 MB for 128,000 tokens. `read_byte_level_bpe` gives None for every other tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

from tokenizers import Tokenizer as Library

from .pieces import BYTE_OF_CHAR

_RULES = {
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+": "gpt2",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": "llama3",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": "qwen2",
}
"""Patterns of words → their names in csrc/tokenizer/words.h; many models took them over."""

_BYTE_TEXTS = sorted(BYTE_OF_CHAR, key=BYTE_OF_CHAR.__getitem__)
"""The character that stands for each byte."""


class ByteLevelBpe:
    """The `Backend` of tokenizers that qualify: `settings` is a tokenizer.json, `vocab` and `merges` what it says of these, as JSON.

    `encode` may be called from several threads. Raises ValueError when the parts do not go together as expected.
    """

    def __init__(self, settings: dict[str, Any], vocab: bytes, merges: bytes, rule: str, special_names: Collection[str]) -> None:
        from .. import _core  # here, so that importing this module loads no native code

        rules = _rules_only(settings)
        self.decoder = rules.decoder
        self._normalize = None if rules.normalizer is None else rules.normalizer.normalize_str
        self._cut = rules.pre_tokenizer.pre_tokenize_str
        self._before, self._after = _affixes(rules)
        vocab.decode()  # the core takes any bytes
        ignores_merges = bool(settings["model"].get("ignore_merges"))
        self._core = _core.BytePairEncoder(rule, vocab, merges, byte_texts=_BYTE_TEXTS, ignores_merges=ignores_merges)
        added = self._added_tokens(settings["added_tokens"], special_names)
        self._added_ids = {token["content"]: token["id"] for token in added}
        self._added_texts = {token["id"]: token["content"] for token in added}
        self.special_ids = {token["content"]: token["id"] for token in added if token["special"]}
        self._hidden_ids = frozenset(self.special_ids.values())
        first, later = ([(token["content"], token["id"]) for token in added if token["normalized"] == after] for after in (False, True))
        self._core.look_for(first, later)
        self.num_tokens = self._core.num_tokens + sum(self._core.id_of(text) is None for text in self._added_ids)
        self.max_token_id = max(self._core.max_token_id, *self._added_texts, -1)
        self.max_token_bytes = max([self._core.max_text_bytes, *(len(text.encode("utf-8", "replace")) for text in self._added_ids)])

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        token_ids: list[int] = self._core.encode(text, self._words_of, True)
        return self._before + token_ids + self._after if add_special_tokens else token_ids

    def encode_special_text(self, text: str) -> list[int]:
        token_ids: list[int] = self._core.encode(text, self._words_of, False)
        if self.special_ids[text] not in token_ids:
            return token_ids
        return [found for half in (text[:1], text[1:]) for found in self._core.encode(half, self._words_of, False)]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        hidden = self._hidden_ids if skip_special_tokens else ()
        texts = [text for token_id in token_ids if token_id not in hidden and (text := self.id_to_token(token_id)) is not None]
        return " ".join(texts) if self.decoder is None else self.decoder.decode(texts)

    def token_to_id(self, text: str) -> int | None:
        found: int | None = self._added_ids.get(text)
        return self._core.id_of(text) if found is None else found

    def id_to_token(self, token_id: int) -> str | None:
        found: str | None = self._added_texts.get(token_id)
        return self._core.text_of(token_id) if found is None else found

    def _words_of(self, piece: str) -> list[str]:
        return [word for word, _ in self._cut(piece if self._normalize is None else self._normalize(piece))]

    def _added_tokens(self, listed: list[dict[str, Any]], special_names: Collection[str]) -> list[dict[str, Any]]:
        """The added tokens as the library would hold them: tokens that are special by name are added with no condition."""
        next_id = self._core.num_tokens
        for token in listed:
            own_id = self._core.id_of(token["content"])
            if token["id"] != (next_id if own_id is None else own_id):
                raise ValueError(f"added token '{token['content']}' has id {token['id']}, where the library would give it another")
            next_id = max(next_id, token["id"] + 1)
        added = {token["content"]: token for token in listed}
        for text in special_names:
            token_id = added[text]["id"] if text in added else self._core.id_of(text)
            if token_id is not None and not (text in added and added[text]["special"]):
                added[text] = {"content": text, "id": token_id, "special": True, "normalized": False}
        return list(added.values())


def read_byte_level_bpe(data: bytes, special_names: Collection[str]) -> ByteLevelBpe | None:
    """None for a tokenizer.json that does not qualify, or has mistakes."""
    from .. import _core

    try:
        rest, vocab, merges = _core.split_tokenizer_json(data)
        settings = json.loads(rest)
        rule = _word_rule(settings["pre_tokenizer"])
        if rule is None or not _is_local(settings):
            return None
        return ByteLevelBpe(settings, vocab, merges, rule, special_names)
    except (ValueError, KeyError, TypeError):
        return None


def _is_local(settings: dict[str, Any]) -> bool:
    """Whether the tokens of a word are found by merges alone and depend on nothing around it."""
    model, normalizer = settings["model"], settings["normalizer"]
    if model["type"] != "BPE" or model.get("dropout") or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return False
    return (normalizer is None or normalizer["type"] == "NFC") and not any(map(_may_cross, settings["added_tokens"]))


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


def _may_cross(token: dict[str, Any]) -> bool:
    """Whether an added token reads over a place where a text is cut."""
    return not token["content"] or " " in token["content"] or token["lstrip"] or token["rstrip"] or token["single_word"]


def _rules_only(settings: dict[str, Any]) -> Library:
    """A tokenizer of the library that does all as `settings` say, but has one token, `a`."""
    model = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
    try:
        return Library.from_str(json.dumps(settings | {"model": model, "added_tokens": [], "truncation": None, "padding": None}))
    except Exception as error:  # the library raises bare Exception for anything wrong in the file
        raise ValueError(str(error)) from None


def _affixes(rules: Library) -> tuple[list[int], list[int]]:
    """The special tokens that come before and after every text."""
    encoding = rules.encode("a", add_special_tokens=True)
    if encoding.special_tokens_mask.count(0) != 1:
        raise ValueError("special tokens do not surround a text as a whole")
    place = encoding.special_tokens_mask.index(0)
    return encoding.ids[:place], encoding.ids[place + 1 :]
