"""Writes packed weights as safetensors shards, one tensor at a time: the layout of every file is known before its first byte.

    plan_shards(specs)          which tensor goes where: files of at most 2 GiB, every tensor at a multiple of 64 bytes
    write_shard(...)            header, then each tensor as it is computed; filler tensors `pad.N` keep the alignment

Format: the safetensors specification (huggingface/safetensors, README). Nothing here depends on time or place: same inputs, same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..plan.model import ALIGNMENT, WeightSpec

MAX_SHARD_BYTES = 2 << 30  # some filesystems and tools stumble over larger files
SAFETENSORS_DTYPES = {"f32": "F32", "bf16": "BF16", "i32": "I32", "bool": "BOOL", "f16": "F16", "u8": "U8"}


@dataclass(frozen=True, slots=True)
class Shard:
    """One file: its tensors in order."""

    file_name: str
    specs: tuple[WeightSpec, ...]


def plan_shards(specs: Sequence[WeightSpec], max_shard_bytes: int = MAX_SHARD_BYTES) -> list[Shard]:
    """Fills files in the order of `specs`; a tensor larger than the limit has a file of its own."""
    groups: list[list[WeightSpec]] = []
    used = 0
    for spec in specs:
        num_bytes = sum(_aligned(tensor.num_bytes) for tensor in spec.tensors)
        if not groups or used + num_bytes > max_shard_bytes:
            groups.append([])
            used = 0
        groups[-1].append(spec)
        used += num_bytes
    return [Shard(f"weights-{number:05d}.safetensors", tuple(group)) for number, group in enumerate(groups, 1)]


def write_shard(path: Path, shard: Shard, compute: Callable[[WeightSpec], Sequence[np.ndarray]]) -> None:
    """Writes the file; `compute(spec)` gives the tensors of `spec.tensors` (layouts.pack). OSError passes through."""
    with path.open("wb") as file:
        file.write(_header(shard.specs))
        for spec in shard.specs:
            for tensor, array in zip(spec.tensors, compute(spec), strict=True):
                packed = np.ascontiguousarray(array)
                if packed.nbytes != tensor.num_bytes:
                    raise ValueError(f"'{tensor.name}' was packed into {packed.nbytes} bytes, the plan has {tensor.num_bytes}")
                file.write(packed.data if packed.ndim else packed.tobytes())
                file.write(bytes(_aligned(tensor.num_bytes) - tensor.num_bytes))


def _header(specs: Sequence[WeightSpec]) -> bytes:
    """Length and JSON, padded with spaces so that the data starts at a multiple of 64 bytes."""
    entries: dict[str, Any] = {}
    offset = 0
    for tensor in (tensor for spec in specs for tensor in spec.tensors):
        end = offset + tensor.num_bytes
        entries[tensor.name] = {"dtype": SAFETENSORS_DTYPES[tensor.dtype], "shape": list(tensor.dims), "data_offsets": [offset, end]}
        offset = _aligned(end)
        if offset > end:
            entries[f"pad.{len(entries)}"] = {"dtype": "U8", "shape": [offset - end], "data_offsets": [end, offset]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (_aligned(8 + len(text)) - 8 - len(text))
    return len(text).to_bytes(8, "little") + text


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT
