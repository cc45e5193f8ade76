"""Token-major graph → plan: weights are split off (ADR 2), nodes become calls on views, buffers get places.

    make_plan(graph, storage_dtype="bf16", max_context_len=4096) -> Plan
    make_plan(…, formats={"lm_head.weight": Format(…)})             the same plan with these weights quantized

Deterministic: the same graph gives the same plan. Raises UnsupportedModel for what no kernel can do, with its source.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ..errors import InternalError
from ..ir.graph import Graph
from ..quantize.schemes import Format
from .allocate import allocate
from .lower import NEVER, Lowering
from .model import Call, KvLayer, Plan
from .weights import WeightTable


def make_plan(
    graph: Graph,
    *,
    storage_dtype: str,
    max_context_len: int,
    formats: Mapping[str, Format] | None = None,
    vocab_size: int | None = None,
) -> Plan:
    """`graph` after all passes; `storage_dtype` (f32 or bf16) of matrices and, at serve time by default, of the KV cache.

    `vocab_size`: token ids that the model takes; None: as many as the output is wide.

    `formats`: of the weights (by the names that a plan without it gives them) that are quantized."""
    if storage_dtype not in ("f32", "bf16"):
        raise InternalError(f"storage dtype '{storage_dtype}' is not f32 or bf16")
    weights = WeightTable(graph, storage_dtype, formats)
    lowering = Lowering(graph, weights)
    logits = lowering.run()
    weights.require_all_formats_used()
    for life in lowering.lives:
        life.dies = min(life.dies, NEVER)
    buffers, arenas = allocate(lowering.lives)
    kv_layers, kv_numbers = _number_kv_layers(lowering.kv_layers)
    output_width = logits.dims[-1]
    assert isinstance(output_width, int)
    return Plan(
        vocab_size=vocab_size or output_width,
        max_context_len=max_context_len,
        kv_layers=kv_layers,
        kv_dtype=storage_dtype,
        arenas=arenas,
        buffers=buffers,
        weights=weights.specs,
        calls=tuple(_renumbered(call, kv_numbers) for call in lowering.calls),
        logits=logits,
        rounded_params=weights.rounded_params,
    )


def _number_kv_layers(found: dict[int, KvLayer]) -> tuple[tuple[KvLayer, ...], dict[int, int]]:
    """KV layers without gaps, and the new number of each old one."""
    order = sorted(found)
    return tuple(found[old] for old in order), {old: new for new, old in enumerate(order)}


def _renumbered(call: Call, numbers: dict[int, int]) -> Call:
    if call.op != "attn.paged":
        return call
    return replace(call, attrs={**call.attrs, "kv_layer": numbers[call.attrs["kv_layer"]]})
