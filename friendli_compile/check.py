"""`fmo check` as a library: the whole compile side but the weights, so that "supported" means that `fmo compile` gets to the packing.

source (config only) ─▶ trace ─▶ passes ─▶ plan ─▶ CheckReport
"""

from __future__ import annotations

from .compile import plan_model
from .errors import UnsupportedModel
from .frontend.check import CheckReport, report_of
from .frontend.source import load_source
from .frontend.trace import trace_model
from .ir.graph import Graph
from .plan.model import Plan
from .progress import Progress
from .quantization import quantize_plan
from .quantize.assign import Policy

SHOWN_PRESETS = ("8bit", "4bit")


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
    return report_of(model, traced, {preset: _weight_bytes(graph, plan, preset) for preset in SHOWN_PRESETS})


def _weight_bytes(graph: Graph, plan: Plan, preset: str) -> int:
    """What the weights would take, quantized by a preset; scales as the scheme would have them."""
    quantized = quantize_plan(graph, plan, Policy(preset, is_lenient=True), "bf16", read=None)
    return sum(spec.num_bytes for spec in quantized.plan.weights)
