"""Builds tiny plans around single ops and runs them in the C++ executor: the helper of all kernel tests.

    plan = TinyPlan()
    x = plan.rows(width=24)                                  # a buffer [num_tokens, 24], filled from the embedding of the token id
    y = plan.call("nn.softmax", [x], [plan.row_buffer(24)], {"dim": 1})
    out = plan.run(y, x=values)                              # f32 [num_tokens, …]

Values enter through an embedding table: token i of the batch has id i, and row i of the table is row i of the array. They leave as logits:
the output, copied dense, is the logits of all rows. Buffers never share memory here.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from friendli_runtime._core import Executor

ALIGNMENT = 64
View = dict[str, Any]
ITEM_BYTES = {"f32": 4, "i32": 4, "bool": 1, "bf16": 2, "f16": 2}
NUMPY_DTYPES = {"f32": np.float32, "i32": np.int32, "bool": np.uint8}


def to_bf16(x: np.ndarray) -> np.ndarray:
    """f32 to the 16 bits of bf16, round to nearest even."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(x: np.ndarray) -> np.ndarray:
    return (x.astype(np.uint32) << 16).view(np.float32)


def round_bf16(x: np.ndarray) -> np.ndarray:
    return from_bf16(to_bf16(x)).reshape(x.shape)


def pack_panel16(w: np.ndarray, dtype: str) -> np.ndarray:
    """[N, K] or [E, N, K] f32 to the layout panel16 of docs/artifact-format.md."""
    *lead, num_rows, num_columns = w.shape
    padded = np.zeros((*lead, -(-num_rows // 16) * 16, num_columns), np.float32)
    padded[..., :num_rows, :] = w
    panels = padded.reshape(*lead, -1, 16, num_columns).swapaxes(-1, -2)  # [..., N/16, K, 16]
    if dtype == "f32":
        return np.ascontiguousarray(panels)
    halves = to_bf16(panels).reshape(panels.shape)
    return np.ascontiguousarray(np.stack([halves[..., :8], halves[..., 8:]], -1).reshape(panels.shape))


def dense(dims: Sequence[int]) -> list[int]:
    strides, step = [], 1
    for dim in reversed(dims):
        strides.append(step)
        step *= dim
    return strides[::-1]


@dataclass
class TinyPlan:
    vocab_size: int = 1
    kv_layers: list[tuple[int, int, int]] = field(default_factory=list)
    max_num_tokens: int = 64
    buffers: list[View] = field(default_factory=list)
    arenas: dict[str, int] = field(default_factory=lambda: {"num_tokens": 0, "num_logits": 0, "fixed": 0})
    weights: dict[str, dict[str, Any]] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    calls: list[dict[str, Any]] = field(default_factory=list)

    # --- operands

    def buffer(self, dims: Sequence[int | str], dtype: str = "f32") -> View:
        """A dense buffer; dims may start with num_tokens or num_logits."""
        arena = str(dims[0]) if dims and isinstance(dims[0], str) else "fixed"
        tail = [int(d) for d in (dims[1:] if arena != "fixed" else dims)]
        row_bytes = max(ALIGNMENT, -(-int(np.prod(tail, initial=1)) * ITEM_BYTES[dtype] // ALIGNMENT) * ALIGNMENT)
        self.buffers.append({"arena": arena, "offset": self.arenas[arena], "row_bytes": row_bytes})
        self.arenas[arena] += row_bytes
        strides = dense(tail)
        if arena != "fixed":
            strides = [row_bytes // ITEM_BYTES[dtype], *strides]
        return {"space": "buffer", "id": len(self.buffers) - 1, "dtype": dtype, "dims": list(dims), "strides": strides, "offset": 0}

    def weight(self, array: np.ndarray, dtype: str = "f32", layout: str = "row_major") -> View:
        name = f"w{len(self.weights)}"
        if layout == "panel16":
            packed = pack_panel16(array, dtype)
        elif dtype == "bf16":
            packed = to_bf16(array).reshape(array.shape)
        elif dtype == "f16":
            packed = array.astype(np.float16)
        else:
            packed = np.ascontiguousarray(array, NUMPY_DTYPES[dtype])
        self.weights[name] = {"dtype": dtype, "layout": layout, "dims": list(array.shape)}
        self.arrays[name] = packed
        return {"space": "weight", "id": name, "dtype": dtype, "dims": list(array.shape)}

    def per_token(self, array: np.ndarray, dtype: str = "f32") -> View:
        """[num_tokens, …] values in a buffer: row i belongs to token i. i32 and bool values must be exact in f32."""
        tail = list(array.shape[1:])
        width = int(np.prod(tail, initial=1))
        table = self.weight(np.asarray(array, np.float32).reshape(len(array), width))
        values = self.buffer(["num_tokens", *tail])
        flat = {**values, "dims": ["num_tokens", width], "strides": [values["strides"][0], 1]}
        self.call("nn.embedding", [table, self.input("input_ids")], [flat])
        self.vocab_size = max(self.vocab_size, len(array))
        if dtype == "f32":
            return values
        return self.call("tensor.copy", [values], [self.buffer(["num_tokens", *tail], dtype)])

    def input(self, name: str) -> View:
        rows = "num_logits" if name == "logit_rows" else "num_tokens"
        return {"space": "input", "id": name, "dtype": "i32", "dims": [rows], "strides": [1], "offset": 0}

    def call(self, op: str, inputs: Sequence[View | None], outputs: Sequence[View], attrs: Mapping[str, Any] | None = None) -> View:
        """Appends a call; returns its first output."""
        self.calls.append(
            {"op": op, "inputs": list(inputs), "outputs": list(outputs), "attrs": dict(attrs or {}), "layer": None, "source": "test"}
        )
        return outputs[0]

    # --- running

    def finish(self, output: View) -> dict[str, Any]:
        """plan.json with `output` [num_tokens | fixed, …] as the logits of the rows asked for."""
        dims = output["dims"]
        tail = [int(d) for d in dims[1:]]
        width = int(np.prod(tail, initial=1))
        as_f32 = self.call("tensor.copy", [output], [self.buffer(dims)])
        flat = {**as_f32, "dims": [dims[0], width], "strides": [as_f32["strides"][0], 1]}
        logits = self.buffer(["num_logits", max(width, self.vocab_size)])
        self.call("tensor.gather_rows", [flat, self.input("logit_rows")], [{**logits, "dims": ["num_logits", width]}])
        return {
            "schema_version": 1,
            "vocab_size": logits["dims"][1],
            "max_context_len": 4096,
            "kv_layers": [{"num_kv_heads": h, "k_head_dim": k, "v_head_dim": v} for h, k, v in self.kv_layers],
            "kv_dtype": "f32",
            "arenas": self.arenas,
            "buffers": self.buffers,
            "weights": self.weights,
            "calls": self.calls,
            "logits": logits,
        }

    def bind(self, plan: dict[str, Any], **options: Any) -> Executor:
        options = {
            "num_threads": 1,
            "max_num_tokens": self.max_num_tokens,
            "max_num_logits": self.max_num_tokens,
            "num_blocks": 64,
        } | options
        with tempfile.TemporaryDirectory() as folder:  # the mapping outlives the name of the file
            return Executor(plan, write_weights(Path(folder) / "weights.bin", self.arrays), **options)

    def run(self, output: View, num_tokens: int, **options: Any) -> np.ndarray:
        """All rows of `output` for one sequence of `num_tokens` tokens: f32 [num_tokens, …]."""
        executor = self.bind(self.finish(output), **options)
        tail = [int(d) for d in output["dims"][1:]]
        out = forward(executor, [num_tokens])
        return out[:, : int(np.prod(tail, initial=1))].reshape(num_tokens, *tail)


def write_weights(path: Path, arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[str, int, int]]:
    """Writes arrays to one file, aligned: name → (path, offset, number of bytes)."""
    places, position = {}, 0
    with path.open("wb") as file:
        for name, array in arrays.items():
            data = array.tobytes()
            places[name] = (str(path), position, len(data))
            file.write(data + bytes(-len(data) % ALIGNMENT))
            position = file.tell()
        file.write(bytes(ALIGNMENT))  # an empty file cannot be mapped
    return places


def forward(
    executor: Executor,
    lengths: Sequence[int],
    contexts: Sequence[int] | None = None,
    tokens: np.ndarray | None = None,
    tables: np.ndarray | None = None,
) -> np.ndarray:
    """One step of sequences with so many new tokens; token ids count up from 0, blocks are dealt in order. Logits of all rows."""
    contexts = [0] * len(lengths) if contexts is None else list(contexts)
    total = sum(lengths)
    if tables is None:
        blocks = max(-(-(n + c) // 16) for n, c in zip(lengths, contexts, strict=True))
        tables = np.arange(len(lengths) * blocks, dtype=np.int32).reshape(len(lengths), blocks)
    positions = [np.arange(c, c + n, dtype=np.int32) for n, c in zip(lengths, contexts, strict=True)]
    return executor.forward(
        np.arange(total, dtype=np.int32) if tokens is None else tokens.astype(np.int32),
        np.concatenate(positions),
        np.cumsum([0, *lengths]).astype(np.int32),
        np.array(contexts, np.int32),
        np.ascontiguousarray(tables, np.int32),
        np.arange(total, dtype=np.int32),
    )
