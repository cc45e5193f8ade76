"""`fmo check` as a library: the whole compile side but the weights, so that "supported" means that `fmo compile` gets to the packing.

    source (config only) ─▶ trace ─▶ passes ─▶ plan ─▶ CheckReport: how much memory it takes, where it fits

Bytes are counted from the parameters (matrices in the storage dtype, vectors in float32), from quantized plans, and from the KV cache as it
is laid out.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from .compile import kv_bytes_per_token, plan_model
from .errors import UnsupportedModel
from .frontend.source import load_source
from .frontend.trace import TracedModel, trace_model
from .ir.graph import Graph
from .plan.model import Plan
from .progress import Progress
from .quantization import quantize_plan
from .quantize.assign import Policy

SHOWN_PRESETS = ("8bit", "4bit")
MATRIX_BYTES = {"fp32": 4, "bf16": 2}
KV_DTYPES = {"fp32": "f32", "bf16": "bf16", "int8": "i8"}
MACHINES_GIB = (4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)  # memory sizes that are sold
RUNTIME_BYTES = 1 << 29  # interpreter, engine, activations of a step: a round upper bound


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


def check(model: str, *, revision: str | None = None, max_context_len: int | None = None, progress: Progress | None = None) -> CheckReport:
    """The report for a folder or a hub id, without reading or downloading weights.

    Raises SourceError when there is no readable config; a refusal is a report."""
    progress = progress or Progress()
    with progress.phase("load"):
        source = load_source(model, revision=revision, weights=False)
    try:
        with progress.phase("trace"):
            traced = trace_model(source, max_context_len=max_context_len)
        graph, plan = plan_model(traced, "bf16", progress)
    except UnsupportedModel as refusal:
        names = source.config_dict.get("architectures") or [source.config.model_type]
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
    return report_of(model, traced, graph, plan)


def report_of(model: str, traced: TracedModel, graph: Graph, plan: Plan) -> CheckReport:
    """The report for a model that has been traced and planned in bf16."""
    weights = {dtype: _matrix_bytes(traced.param_shapes, item) for dtype, item in MATRIX_BYTES.items()}
    weights |= {preset: _quantized_bytes(graph, plan, preset) for preset in SHOWN_PRESETS}
    kv = {name: kv_bytes_per_token(plan, dtype) for name, dtype in KV_DTYPES.items()}
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
        num_kv_layers=len(plan.kv_layers),
        num_nodes=len(traced.graph.nodes),
        trace_seconds=round(traced.trace_seconds, 2),
        notes=traced.notes,
    )


def _matrix_bytes(param_shapes: Mapping[str, tuple[int, ...]], item_bytes: int) -> int:
    """Bytes of the parameters that the graph reads: matrices of `item_bytes` each, vectors in float32."""
    return sum(math.prod(shape) * (item_bytes if len(shape) > 1 else 4) for shape in param_shapes.values())


def _quantized_bytes(graph: Graph, plan: Plan, preset: str) -> int:
    """What the weights would take, quantized by a preset; scales as the scheme would have them."""
    quantized = quantize_plan(graph, plan, Policy(preset, is_lenient=True), "bf16", read=None)
    return sum(spec.num_bytes for spec in quantized.plan.weights)


def _machine_bytes() -> int | None:
    """Physical memory of this machine."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None
