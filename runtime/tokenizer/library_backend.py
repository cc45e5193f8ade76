"""A tokenizer as the `tokenizers` library runs it: for every kind that `ByteLevelBpe` does not cover."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from tokenizers import Tokenizer as Library

from ..errors import ConfigError

WORD_CACHE_ENTRIES = 2048
"""Words whose merges the library remembers. Its default of 10,000 lets a client that sends long random words hold 50 MB."""


class LibraryBackend:
    """The `Backend` around `library`. `special_names`: tokens that are special if the vocabulary has them."""

    def __init__(self, library: Library, special_names: Collection[str]) -> None:
        self._library = library
        library.no_truncation()
        library.no_padding()
        if hasattr(library.model, "_resize_cache"):  # BPE and Unigram have one
            library.model._resize_cache(WORD_CACHE_ENTRIES)
        special = {token.content for token in library.get_added_tokens_decoder().values() if token.special}
        missing = [text for text in special_names if text not in special and library.token_to_id(text) is not None]
        library.add_special_tokens(missing)  # as Hugging Face tokenizers do
        added = library.get_added_tokens_decoder()
        self.special_ids = {token.content: token_id for token_id, token in added.items() if token.special}
        self.decoder = library.decoder
        vocab = library.get_vocab(with_added_tokens=True)
        self.num_tokens = len(vocab)
        self.max_token_id = max(vocab.values(), default=-1)
        self.max_token_bytes = max((len(text.encode("utf-8", "replace")) for text in vocab), default=1)
        self._literal_ids = self._encoded_literally()

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        token_ids: list[int] = self._library.encode(text, add_special_tokens=add_special_tokens).ids
        return token_ids

    def encode_special_text(self, text: str) -> list[int]:
        return self._literal_ids[text]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        return self._library.decode(list(token_ids), skip_special_tokens=skip_special_tokens)

    def token_to_id(self, text: str) -> int | None:
        return self._library.token_to_id(text)

    def id_to_token(self, token_id: int) -> str | None:
        return self._library.id_to_token(token_id)

    def _encoded_literally(self) -> dict[str, list[int]]:
        """The tokens of each special token's text where it is no more than text. Now, while nobody else uses the library's object."""
        self._library.encode_special_tokens = True
        ids_of = {text: self.encode(text, add_special_tokens=False) for text in self.special_ids}
        for text, token_id in self.special_ids.items():
            if token_id in ids_of[text]:  # the model has it as a word too
                ids_of[text] = [found for half in (text[:1], text[1:]) for found in self.encode(half, add_special_tokens=False)]
        self._library.encode_special_tokens = False
        return ids_of


def read_library_backend(data: bytes, special_names: Collection[str], where: Path | str) -> LibraryBackend:
    """Raises ConfigError when the library cannot read `data`, a tokenizer.json."""
    try:
        library = Library.from_buffer(data)
    except Exception as error:  # the library raises bare Exception for anything wrong in the file
        raise ConfigError(
            f"tokenizer.json cannot be read: {error}",
            where=str(where),
            hint="compile again from a checkpoint whose tokenizer.json loads in the `tokenizers` library",
        ) from None
    return LibraryBackend(library, special_names)
