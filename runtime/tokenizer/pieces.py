"""Which bytes a token id stands for: the decoder of a tokenizer.json, turned into a lookup per token.

A decoder of the `tokenizers` library maps a whole list of tokens to text. The kinds that language models use work on one token at a time,
except at the very start of the text, so their work can be done once per token id and the stream put together from bytes:

    token 4213 ─▶ "Ġworld" ─ByteLevel─▶ b" world"     token 29871 ─▶ "▁" ─Replace─▶ b" "     token 243 ─▶ "<0xF0>" ─ByteFallback─▶ b"\\xf0"

`piece_table` gives None for a decoder whose steps are not known to work that way; the caller then decodes windows of tokens instead.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .backend import Backend

Step = Callable[[str], str | bytes]
"""One decoder step on one token; bytes are final: no later step touches them."""

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(slots=True)
class PieceTable:
    """`piece(id)`: the bytes of a token inside a text. `first_piece(id)`: its bytes when it is the first of the text.

    `texts`: what `text` has given so far.
    `lead`, `lead_count`: the finished text loses up to `lead_count` characters `lead` at its start.
    """

    backend: Backend
    steps: list[Step]
    first_step: Step | None = None
    lead: str = ""
    lead_count: int = 0
    _pieces: dict[int, bytes] = field(default_factory=dict)
    texts: dict[int, str | None] = field(default_factory=dict)

    def piece(self, token_id: int) -> bytes:
        """The bytes of `token_id`, b"" for an id that the tokenizer does not have (padded vocabularies)."""
        found = self._pieces.get(token_id)
        if found is None:
            found = self._pieces[token_id] = self._run(token_id, self.steps)
        return found

    def text(self, token_id: int) -> str | None:
        """The piece as text; None when it begins or ends within a character."""
        try:
            return self.texts[token_id]
        except KeyError:
            try:
                text = self.piece(token_id).decode()
            except UnicodeDecodeError:
                text = None
            self.texts[token_id] = text
            return text

    def first_piece(self, token_id: int) -> bytes:
        return self.piece(token_id) if self.first_step is None else self._run(token_id, [self.first_step, *self.steps])

    def _run(self, token_id: int, steps: list[Step]) -> bytes:
        token: str | bytes | None = self.backend.id_to_token(token_id)
        if token is None:
            return b""
        for step in steps:
            if isinstance(token, bytes):
                return token
            token = step(token)
        return token if isinstance(token, bytes) else token.encode("utf-8", "replace")


def piece_table(backend: Backend) -> PieceTable | None:
    """The table of a tokenizer's decoder, or None when its decoder does not work token by token."""
    if backend.decoder is None:  # tokens are joined with spaces
        return PieceTable(backend, [lambda token: " " + token], lead=" ", lead_count=1)
    table = PieceTable(backend, [])
    fused = False
    for stage in _stages(json.loads(backend.decoder.__getstate__())):
        kind = stage["type"]
        if kind == "Fuse":
            fused = True
        elif kind == "Strip" and fused and stage["stop"] == 0 and not table.lead:
            table.lead, table.lead_count = stage["content"], stage["start"]
        elif fused or not _add_step(table, stage):
            return None
    return table


def _stages(decoder: dict[str, Any]) -> list[dict[str, Any]]:
    if decoder["type"] != "Sequence":
        return [decoder]
    return [stage for child in decoder["decoders"] for stage in _stages(child)]


def _add_step(table: PieceTable, stage: dict[str, Any]) -> bool:
    """Appends the step of one decoder stage; False if the stage is not known to work token by token."""
    kind = stage["type"]
    if kind == "ByteLevel":
        table.steps.append(_byte_level)
    elif kind == "ByteFallback":
        table.steps.append(_byte_fallback)
    elif kind == "Replace" and "String" in stage["pattern"]:
        old, new = stage["pattern"]["String"], stage["content"]
        table.steps.append(lambda token: token.replace(old, new))
    elif kind == "Metaspace" and table.first_step is None and not table.steps:
        mark = stage["replacement"]
        table.steps.append(lambda token: token.replace(mark, " "))
        if stage.get("prepend_scheme", "always") != "never":  # the marks of the first token are the tokenizer's own
            table.first_step = lambda token: token.replace(mark, "")
    else:
        return False
    return True


def _byte_alphabet() -> dict[str, int]:
    """The printable stand-ins of byte-level BPE: printable Latin-1 bytes stand for themselves, the other 68 for U+0100 onwards.

    Source: the byte encoder of GPT-2.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


BYTE_OF_CHAR = _byte_alphabet()


def _byte_level(token: str) -> bytes:
    try:
        return bytes([BYTE_OF_CHAR[char] for char in token])
    except KeyError:  # an added token that was never byte-encoded
        return token.encode("utf-8", "replace")


def _byte_fallback(token: str) -> str | bytes:
    match = _BYTE_TOKEN.fullmatch(token)
    return token if match is None else bytes([int(match[1], 16)])
