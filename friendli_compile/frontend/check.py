"""Answers "can this model be compiled, how much memory does it take, where does it fit" without reading a weight.

The model is traced like `fmo compile` does it, so "supported" means: every op has a translation and no layer mixes packed sequences.
Bytes are counted from the graph: matrices in the storage dtype, vectors in float32, keys and values per token of every attention layer.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ..errors import UnsupportedModel
from ..ir.graph import Graph
from .source import load_source
from .trace import TracedModel, trace_model

ITEM_BYTES = {"fp32": 4, "bf16": 2}
MACHINES_GIB = (4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)  # memory sizes that are sold
RUNTIME_BYTES = 1 << 29  # interpreter, engine, activations of a step: a round upper bound
V_HEAD_DIM_MULTIPLE = 8  # the cache pads value heads to it


@dataclass
class CheckReport:
    """What `fmo check` prints. Of an unsupported model only the first part is filled."""

    model: str
    supported: bool
    architecture: str = ""
    why: str = ""  # of a refusal
    module: str = ""
    op: str = ""
    source_line: str = ""
    hint: str = ""
    num_params: int = 0
    max_context_len: int = 0
    weight_bytes: dict[str, int] = field(default_factory=dict)  # storage dtype, or preset of --quantize → bytes
    kv_bytes_per_token: dict[str, int] = field(default_factory=dict)  # KV dtype → bytes, all layers
    serve_bytes: dict[str, int] = field(default_factory=dict)  # weights, one full-length sequence and the runtime
    fits_in_gib: dict[str, int | None] = field(default_factory=dict)  # smallest usual memory size that holds serve_bytes
    fits_here: dict[str, bool | None] = field(default_factory=dict)  # this machine's memory; None where it cannot be asked
    num_kv_layers: int = 0
    num_nodes: int = 0
    trace_seconds: float = 0.0
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def check_model(model: str, *, revision: str | None = None, max_context_len: int | None = None) -> CheckReport:
    """The report for a folder or a hub id. Raises SourceError when there is no readable config; a refusal is a report."""
    source = load_source(model, revision=revision, weights=False)
    names = source.config_dict.get("architectures") or [source.config.model_type]
    try:
        traced = trace_model(source, max_context_len=max_context_len)
    except UnsupportedModel as refusal:
        return CheckReport(
            model,
            False,
            str(names[0]),
            why=refusal.what,
            module=refusal.module,
            op=refusal.op,
            source_line=refusal.source_line,
            hint=refusal.hint,
        )
    return report_of(model, traced)


def report_of(model: str, traced: TracedModel, quantized_bytes: Mapping[str, int] | None = None) -> CheckReport:
    """The report for a model that has been traced; `quantized_bytes`: of the weights, by preset of --quantize."""
    weights = {dtype: weight_bytes(traced.param_shapes, item) for dtype, item in ITEM_BYTES.items()} | dict(quantized_bytes or {})
    kv = {dtype: kv_bytes_per_token(traced.graph, item) for dtype, item in ITEM_BYTES.items()}
    serve = {dtype: num_bytes + kv.get(dtype, kv["bf16"]) * traced.max_context_len + RUNTIME_BYTES for dtype, num_bytes in weights.items()}
    here = _machine_bytes()
    return CheckReport(
        model=model,
        supported=True,
        architecture=traced.architecture,
        num_params=traced.num_params,
        max_context_len=traced.max_context_len,
        weight_bytes=weights,
        kv_bytes_per_token=kv,
        serve_bytes=serve,
        fits_in_gib={dtype: next((gib for gib in MACHINES_GIB if need <= gib << 30), None) for dtype, need in serve.items()},
        fits_here={dtype: None if here is None else need <= here for dtype, need in serve.items()},
        num_kv_layers=sum(node.op == "attn.paged" for node in traced.graph.nodes),
        num_nodes=len(traced.graph.nodes),
        trace_seconds=round(traced.trace_seconds, 2),
        notes=traced.notes,
    )


def weight_bytes(param_shapes: dict[str, tuple[int, ...]], item_bytes: int) -> int:
    """Bytes of the parameters that the graph reads: matrices of `item_bytes` each, vectors in float32."""
    return sum(math.prod(shape) * (item_bytes if len(shape) > 1 else 4) for shape in param_shapes.values())


def kv_bytes_per_token(graph: Graph, item_bytes: int) -> int:
    """Bytes that one token takes in the KV cache over all layers."""
    total = 0
    for node in graph.nodes:
        if node.op == "attn.paged":
            k, v = node.inputs[1], node.inputs[2]
            assert k is not None and v is not None
            num_kv_heads, k_head_dim, v_head_dim = k.dims[1], k.dims[-1], v.dims[-1]
            assert isinstance(num_kv_heads, int) and isinstance(k_head_dim, int) and isinstance(v_head_dim, int)
            padded = -(-v_head_dim // V_HEAD_DIM_MULTIPLE) * V_HEAD_DIM_MULTIPLE
            total += num_kv_heads * (k_head_dim + padded) * item_bytes
    return total


def _machine_bytes() -> int | None:
    """Physical memory of this machine."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None
