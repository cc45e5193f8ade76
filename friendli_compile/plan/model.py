"""The plan as data: what plan.json says (docs/artifact-format.md), typed.

A `Plan` is an ordered list of kernel calls on views of planned memory. It holds no tensor: weights are named, and `WeightSpec.expression`
says how each is computed from the checkpoint (ADR 2). `Plan.to_json()` is the plan.json dictionary; equal plans give equal text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..quantize.schemes import Format

if TYPE_CHECKING:
    from .expression import Expression
    from .sites import Site

SCHEMA_VERSION = 1
ROW_DIMS = ("num_tokens", "num_logits")  # each has an arena whose size grows with the rows of a step
FIXED_ARENA = "fixed"
ALIGNMENT = 64  # bytes: a cache line; also the widest vector register we foresee
PANEL_ROWS = 16  # output rows per panel of a packed linear weight
BLOCK_ROWS = 8  # output rows per block of a quantized weight
LANE_BYTES = 4  # of one row in a block: 4 codes of 8 bits, or 8 of 4

ITEM_BYTES = {"f32": 4, "i32": 4, "bf16": 2, "bool": 1, "f16": 2, "u8": 1}
SCALE_STORAGE = {"f32": "f32", "f16": "f16", "e8m0": "u8"}

Dims = tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class View:
    """Where an operand is: strides and offset are in elements; stride 0 broadcasts.

    space   "buffer" (id: index into `Plan.buffers`), "weight" (id: name) or "input" (id: name)
    A weight in another layout than row_major has no strides.
    """

    space: str
    id: int | str
    dtype: str
    dims: Dims
    strides: tuple[int, ...] | None = None
    offset: int = 0

    def to_json(self) -> dict[str, Any]:
        entry: dict[str, Any] = {"space": self.space, "id": self.id, "dtype": self.dtype, "dims": list(self.dims)}
        if self.strides is not None:
            entry |= {"strides": list(self.strides), "offset": self.offset}
        return entry


@dataclass(frozen=True, slots=True)
class Buffer:
    """A piece of an arena: row `r` is at `offset × max_rows + r × row_bytes` (the fixed arena has one row)."""

    arena: str
    offset: int
    row_bytes: int


@dataclass(frozen=True, slots=True)
class Call:
    """One kernel call; `layer` is the decoder layer that it belongs to, None outside of them. `sites`: of a linear layer (sites.py)."""

    op: str
    inputs: tuple[View | None, ...]
    outputs: tuple[View, ...]
    attrs: Mapping[str, Any]
    layer: int | None
    source: str
    sites: tuple[Site, ...] = ()

    def to_json(self) -> dict[str, Any]:
        entry = {
            "op": self.op,
            "inputs": [None if view is None else view.to_json() for view in self.inputs],
            "outputs": [view.to_json() for view in self.outputs],
            "attrs": {name: _plain(value) for name, value in sorted(self.attrs.items())},
            "layer": self.layer,
            "source": self.source,
        }
        return entry | ({"sites": [site.to_json() for site in self.sites]} if self.sites else {})


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a weight file."""

    name: str
    dtype: str  # one of ITEM_BYTES
    dims: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return ITEM_BYTES[self.dtype] * math.prod(self.dims)


@dataclass(frozen=True, slots=True)
class WeightSpec:
    """One packed weight. `dims` are the logical dims, before padding to panels or blocks; `format` of a quantized one (layout block8)."""

    name: str
    dtype: str
    layout: str  # "row_major", "panel16" or "block8"
    dims: tuple[int, ...]
    expression: Expression
    format: Format | None = None

    @property
    def packed_dims(self) -> tuple[int, ...]:
        """The dims of the tensor NAME as stored; of a quantized weight: of its codes."""
        if self.layout == "row_major":
            return self.dims
        *lead, num_rows, num_columns = self.dims
        if self.format is not None:
            lane_columns = LANE_BYTES * 8 // self.format.bits
            return (*lead, -(-num_rows // BLOCK_ROWS), num_columns // lane_columns, BLOCK_ROWS, LANE_BYTES)
        return (*lead, -(-num_rows // PANEL_ROWS), num_columns, PANEL_ROWS)

    @property
    def scale_dims(self) -> tuple[int, ...]:
        """The dims of the scales (and zeros) as stored."""
        assert self.format is not None
        *lead, num_rows, num_columns = self.dims
        return (*lead, -(-num_rows // BLOCK_ROWS), num_columns // self.format.group, BLOCK_ROWS)

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        """What the weight files hold of it, in order."""
        if self.format is None:
            return (StoredTensor(self.name, self.dtype, self.packed_dims),)
        stored = [StoredTensor(self.name, "u8", self.packed_dims)]
        stored.append(StoredTensor(f"{self.name}.scales", SCALE_STORAGE[self.format.scale_dtype], self.scale_dims))
        if self.format.has_zeros:
            stored.append(StoredTensor(f"{self.name}.zeros", "u8", self.scale_dims))
        return tuple(stored)

    @property
    def num_bytes(self) -> int:
        return sum(tensor.num_bytes for tensor in self.tensors)

    def to_json(self) -> dict[str, Any]:
        entry: dict[str, Any] = {"dtype": self.dtype, "layout": self.layout, "dims": list(self.dims)}
        if self.format is not None:
            entry |= {"group": self.format.group, "scale_dtype": self.format.scale_dtype}
            entry |= {} if self.format.lane_sum is None else {"lane_sum": self.format.lane_sum}
        return entry | {"expr": str(self.expression), "params": [param.name for param in self.expression.params]}


@dataclass(frozen=True, slots=True)
class KvLayer:
    """The cache of one attention layer."""

    num_kv_heads: int
    k_head_dim: int
    v_head_dim: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that the executor needs besides the bytes of the weights."""

    vocab_size: int  # token ids that the model takes
    max_context_len: int
    kv_layers: tuple[KvLayer, ...]
    kv_dtype: str
    arenas: Mapping[str, int]  # bytes per row of each arena; of `fixed`: bytes
    buffers: tuple[Buffer, ...]
    weights: tuple[WeightSpec, ...]
    calls: tuple[Call, ...]
    logits: View
    rounded_params: frozenset[str] = field(default_factory=frozenset)  # parameters that are rounded to bf16 before anything reads them

    @property
    def output_width(self) -> int:
        """Of a row of the output: the vocabulary, or the hidden size of a model that gives embeddings."""
        width = self.logits.dims[-1]
        assert isinstance(width, int)
        return width

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "vocab_size": self.vocab_size,
            **({"output_width": self.output_width} if self.output_width != self.vocab_size else {}),
            "max_context_len": self.max_context_len,
            "kv_layers": [{"num_kv_heads": k.num_kv_heads, "k_head_dim": k.k_head_dim, "v_head_dim": k.v_head_dim} for k in self.kv_layers],
            "kv_dtype": self.kv_dtype,
            "arenas": dict(self.arenas),
            "buffers": [{"arena": b.arena, "offset": b.offset, "row_bytes": b.row_bytes} for b in self.buffers],
            "weights": {weight.name: weight.to_json() for weight in self.weights},
            "calls": [call.to_json() for call in self.calls],
            "logits": self.logits.to_json(),
        }


def _plain(value: Any) -> Any:
    """Attributes as JSON has them: tuples become lists."""
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value
