"""What a tokenizer needs of whoever reads its tokenizer.json: `ByteLevelBpe` where that can, else `LibraryBackend`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class Backend(Protocol):
    """`special_ids`: the special tokens by text. `decoder`: one of the library's; None: tokens are joined with spaces.

    `max_token_id`: the highest that `encode` can give. `max_token_bytes`: of the longest token; a text of B bytes has at least
    B / max_token_bytes tokens.
    """

    special_ids: dict[str, int]
    decoder: Any
    num_tokens: int
    max_token_id: int
    max_token_bytes: int

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...

    def encode_special_text(self, text: str) -> list[int]:
        """The tokens of a special token's text where it is no more than text."""
        ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str: ...

    def token_to_id(self, text: str) -> int | None: ...

    def id_to_token(self, token_id: int) -> str | None: ...
