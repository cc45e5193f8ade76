"""Finds packed weights inside the safetensors files of an artifact, without reading or copying them.

    ┌ 8 bytes ┬ header: JSON ──────────────────────────┬ data ───────────────────────────┐
    │ length  │ {"name": {dtype, shape, data_offsets}} │ tensors, each 64-byte aligned    │
    └─────────┴────────────────────────────────────────┴─────────────────────────────────┘

Nothing that a header says is believed before it is checked against the size of the file: the lengths are bounded, offsets must lie
inside the data, must not overlap and must fit dtype × shape. Format: the safetensors specification (huggingface/safetensors, README).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import CorruptArtifact

MAX_HEADER_BYTES = 100_000_000  # the bound of the specification
ALIGNMENT = 64  # bytes
DTYPE_BYTES = {"F32": 4, "I32": 4, "BF16": 2, "F16": 2, "BOOL": 1, "U8": 1}
FILLER_PREFIX = "pad."  # filler tensors keep the others aligned


@dataclass(frozen=True, slots=True)
class WeightLocation:
    """Where the bytes of one packed weight are."""

    path: Path
    offset: int  # bytes from the start of the file, a multiple of 64
    num_bytes: int


def locate_weights(paths: Iterable[Path]) -> dict[str, WeightLocation]:
    """Every tensor of the files, except fillers. Raises CorruptArtifact naming file and tensor."""
    found: dict[str, WeightLocation] = {}
    for path in paths:
        for name, location in _tensors_of(path).items():
            if name in found:
                raise _corrupt(path, f"tensor '{name}' is also in {found[name].path.name}")
            found[name] = location
    return found


def _tensors_of(path: Path) -> dict[str, WeightLocation]:
    data_start, file_bytes, header = read_header(path)
    spans: list[tuple[int, int, str]] = []
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = span_of(path, name, entry, file_bytes - data_start)
            spans.append((begin, end, name))
    spans.sort()
    position = 0
    for begin, end, name in spans:
        if begin != position:
            raise _corrupt(
                path, f"tensor '{name}' starts at byte {begin} of the data, expected {position}: tensors overlap or leave a hole"
            )
        position = end
    if position != file_bytes - data_start:
        raise _corrupt(path, f"the tensors end at byte {position} of the data, the file holds {file_bytes - data_start}")
    located = {}
    for begin, end, name in spans:
        if name.startswith(FILLER_PREFIX):
            continue
        if (data_start + begin) % ALIGNMENT:
            raise _corrupt(path, f"tensor '{name}' starts at byte {data_start + begin}, which is no multiple of {ALIGNMENT}")
        located[name] = WeightLocation(path, data_start + begin, end - begin)
    return located


def read_header(path: Path) -> tuple[int, int, dict[str, Any]]:
    """(start of the data, size of the file, header)."""
    try:
        file_bytes = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if file_bytes < 8 or length > min(MAX_HEADER_BYTES, file_bytes - 8):
                raise _corrupt(path, f"the header claims {length} bytes, the file has {file_bytes}")
            text = file.read(length)
    except OSError as error:
        raise _corrupt(path, f"cannot be read: {error.strerror}") from None
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _corrupt(path, f"the header is not JSON: {error}") from None
    if not isinstance(header, dict):
        raise _corrupt(path, "the header is not a JSON object")
    return 8 + length, file_bytes, header


def span_of(path: Path, name: str, entry: Any, data_bytes: int) -> tuple[int, int]:
    """Byte range of a tensor inside the data, checked against its dtype and shape."""
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        item_bytes = DTYPE_BYTES[dtype]
        are_sizes = all(type(n) is int and n >= 0 for n in (*shape, begin, end))
    except (KeyError, TypeError, ValueError) as error:
        raise _corrupt(path, f"the header entry of tensor '{name}' is malformed: {error!r}") from None
    if not are_sizes or not begin <= end <= data_bytes:
        raise _corrupt(path, f"tensor '{name}' claims bytes {begin} to {end}, the file holds {data_bytes}")
    if end - begin != math.prod(shape) * item_bytes:
        raise _corrupt(path, f"tensor '{name}' is {dtype} {shape} but has {end - begin} bytes")
    return begin, end


def _corrupt(path: Path, what: str) -> CorruptArtifact:
    return CorruptArtifact(what, where=str(path), hint="copy or compile the artifact again")
