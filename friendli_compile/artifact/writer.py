"""Writes the files of an artifact into a folder: plan.json, weight shards, tokenizer files, call vectors, report.json, manifest.json.

    write_plan(folder, plan)
    write_weights(folder, plan, read)       read(param_name) -> float32 array; one expression's tensors in memory at a time
    copy_tokenizer(folder, files)
    write_call_vectors(folder, vectors)
    write_report(folder, report)
    write_manifest(folder, head)            last: it holds the size and hash of every other file

JSON is written in a fixed order, without times or paths: the same inputs give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..plan.model import SCHEMA_VERSION, Plan, WeightSpec
from ..quantize.round_weight import Rounding
from .folder import CALL_VECTORS, MANIFEST
from .layouts import pack, pack_quantized, round_to_bf16
from .shards import plan_shards, write_shard

_HASH_CHUNK_BYTES = 1 << 22

ReadParam = Callable[[str], np.ndarray]  # parameter name → its data, float32
OnBytes = Callable[[int], None]  # called after each tensor with the bytes packed so far


def write_plan(folder: Path, plan: Plan) -> None:
    _write_json(folder / "plan.json", plan.to_json(), indent=None)


def write_weights(folder: Path, plan: Plan, read: ReadParam, on_bytes: OnBytes | None = None, rounding: Rounding | None = None) -> int:
    """Evaluates, packs and writes every weight of the plan; returns the bytes packed. `rounding`: how quantized ones are rounded."""
    rounding = rounding or Rounding()
    num_bytes = 0

    def read_rounded(name: str) -> np.ndarray:
        array = read(name)
        return round_to_bf16(array) if name in plan.rounded_params else array

    def compute(spec: WeightSpec) -> tuple[np.ndarray, ...]:
        nonlocal num_bytes
        array = spec.expression.evaluate(read_rounded)
        if spec.format is None:
            packed: tuple[np.ndarray, ...] = (pack(array, spec),)
        else:
            packed = pack_quantized(rounding.round(spec.name, array, spec.format), spec)
        num_bytes += spec.num_bytes
        if on_bytes is not None:
            on_bytes(num_bytes)
        return packed

    for shard in plan_shards(plan.weights):
        write_shard(folder / shard.file_name, shard, compute)
    return num_bytes


def copy_tokenizer(folder: Path, files: Iterable[Path]) -> list[str]:
    """Copies tokenizer files byte for byte; returns their names."""
    names = []
    for source in files:
        target = folder / "tokenizer" / source.name
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(source.read_bytes())
        names.append(source.name)
    return names


def write_call_vectors(folder: Path, vectors: list[dict[str, Any]]) -> None:
    """Tool calls as the chat template writes them, for `fmo check-template`; no file where it writes none."""
    if vectors:
        _write_json(folder / CALL_VECTORS, {"schema_version": SCHEMA_VERSION, "vectors": vectors})


def write_report(folder: Path, report: Mapping[str, Any]) -> None:
    _write_json(folder / "report.json", report)


def write_manifest(folder: Path, head: Mapping[str, Any]) -> None:
    """`head` (model, target, provenance, self_check) plus schema version and the hashes of all other files."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    files = {path.relative_to(folder).as_posix(): {"sha256": _sha256(path), "bytes": path.stat().st_size} for path in paths}
    _write_json(folder / MANIFEST, {"schema_version": SCHEMA_VERSION, **head, "files": files})


def _write_json(path: Path, value: Any, indent: int | None = 1) -> None:
    separators = (",", ":") if indent is None else None
    path.write_text(json.dumps(value, indent=indent, separators=separators, ensure_ascii=False) + "\n")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
