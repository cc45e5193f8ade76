"""`fmo explain`: what an artifact holds, from its own files; the kernels are those that this machine would run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .quality_text import quality_line, quality_text
from .table import size, table

if TYPE_CHECKING:
    from friendli_runtime.artifact import Artifact

EXAMPLES = """\b
Examples:
  fmo explain build/stdlib-coder
  fmo explain build/stdlib-coder --layer 0
  fmo explain build/stdlib-coder --quality"""


@click.command(epilog=EXAMPLES)
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--layer", type=int, metavar="N", help="Also list every call of decoder layer N.")
@click.option("--quality", is_flag=True, help="Also what quantization costs: figures with intervals, and the worst layers.")
@click.option("--verify", is_flag=True, help="Also hash every file.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def explain(artifact: Path, layer: int | None, quality: bool, verify: bool, as_json: bool) -> None:
    """Show what ARTIFACT holds: model, memory by part, kernels per op, self-check, quality."""
    from friendli_runtime.artifact import Artifact

    opened = Artifact.open(artifact)
    if verify:
        opened.verify()
    facts = explain_artifact(opened, layer)
    click.echo(json.dumps(facts, indent=2) if as_json else render(facts, with_quality=quality))


def explain_artifact(artifact: Artifact, layer: int | None = None) -> dict[str, Any]:
    """The facts as one JSON object."""
    report = json.loads((artifact.folder / "report.json").read_bytes())
    calls = artifact.plan["calls"]
    kernels = _kernels(artifact)
    facts = {
        "model": artifact.manifest["model"],
        "target": artifact.manifest["target"],
        "provenance": artifact.manifest["provenance"],
        "self_check": artifact.manifest["self_check"],
        "quality": report.get("quality"),
        "memory": report["memory"],
        "kv_layers": len(artifact.plan["kv_layers"]),
        "num_calls": len(calls),
        "ops": _per_op(artifact, calls, kernels),
        "notes": report.get("notes", []),
        "files": {name: entry["bytes"] for name, entry in artifact.manifest["files"].items()},
    }
    if layer is not None:
        facts["calls"] = [_call_facts(artifact, call, kernels.get(i)) for i, call in enumerate(calls) if call["layer"] == layer]
    return facts


def _kernels(artifact: Artifact) -> dict[int, str]:
    """Call index → kernel on this machine; empty where the C++ core is not built."""
    try:
        from friendli_runtime.executor import kernels_of_calls
    except ImportError:
        return {}
    return dict(enumerate(kernels_of_calls(artifact)))


def _per_op(artifact: Artifact, calls: list[dict[str, Any]], kernels: Mapping[int, str]) -> list[dict[str, Any]]:
    """One row per (op, kernel, shape of its weight), largest first."""
    count, num_bytes = Counter[tuple[str, str, str]](), Counter[tuple[str, str, str]]()
    for i, call in enumerate(calls):
        facts = _call_facts(artifact, call, kernels.get(i))
        key = (facts["op"], facts["kernel"] or "", facts["shape"])
        count[key] += 1
        num_bytes[key] += facts["weight_bytes"]
    order = sorted(count, key=lambda key: (-num_bytes[key], key))
    return [
        {
            "op": op,
            "kernel": kernel or None,
            "shape": shape,
            "calls": count[op, kernel, shape],
            "weight_bytes": num_bytes[op, kernel, shape],
        }
        for op, kernel, shape in order
    ]


def _call_facts(artifact: Artifact, call: Mapping[str, Any], kernel: str | None) -> dict[str, Any]:
    weights = [view for view in call["inputs"] if view and view["space"] == "weight"]
    num_bytes = {view["id"]: _stored_bytes(artifact, view["id"]) for view in weights}
    shown = max(weights, key=lambda view: num_bytes[view["id"]], default=call["outputs"][0])
    return {
        "op": call["op"],
        "kernel": kernel,
        "shape": "×".join(str(dim) for dim in shown["dims"]) + f" {_stored_as(artifact, shown)}",
        "weight_bytes": sum(num_bytes.values()),
        "source": call["source"],
    }


def _stored_bytes(artifact: Artifact, name: str) -> int:
    """Of a weight with its scales and zero points."""
    from friendli_runtime.artifact import tensors_of

    return sum(artifact.weights[tensor].num_bytes for tensor in tensors_of(name, artifact.plan["weights"][name]))


def _stored_as(artifact: Artifact, view: Mapping[str, Any]) -> str:
    """The dtype, of a quantized weight with the columns that share a scale: `i4:g32`, `i8:channel`."""
    weight = artifact.plan["weights"].get(view["id"], {}) if view["space"] == "weight" else {}
    if "group" not in weight:
        return str(view["dtype"])
    return f"{weight['dtype']}:" + ("channel" if weight["group"] == weight["dims"][-1] else f"g{weight['group']}")


def render(facts: Mapping[str, Any], with_quality: bool = False) -> str:
    """The facts for a terminal."""
    model, memory, check = facts["model"], facts["memory"], facts["self_check"]
    lines = [
        f"{model['name']}: {model['architecture']}, {model['num_params'] / 1e6:,.1f} M parameters, {model['dtype']}, "
        f"context {model['max_context_len']} tokens, vocabulary {model['vocab_size']}",
        f"target       {facts['target']['device']} {facts['target']['arch']} (needs {facts['target']['isa_min']})",
        f"self-check   {_self_check_text(check)}",
        f"quantized    {_quantization_text(model.get('quantization'))}",
        f"quality      {quality_line(facts['quality'])}",
        f"weights      {size(memory['weight_bytes'])}: "
        + ", ".join(f"{size(n)} {layout}" for layout, n in memory["weight_bytes_by_layout"].items()),
        f"KV cache     {size(memory['kv_bytes_per_token'])} per token in {facts['kv_layers']} layers; "
        f"{size(memory['kv_bytes_per_token'] * model['max_context_len'])} for one full context",
        f"activations  {size(memory['activation_bytes_per_token'])} per token of a step, "
        f"{size(memory['activation_bytes_per_logit_row'])} per row of logits",
        "",
        table(
            [(op["op"], op["kernel"] or "-", op["shape"], op["calls"], size(op["weight_bytes"])) for op in facts["ops"]],
            ("op", "kernel here", "shape", "calls", "weights"),
        ),
    ]
    if "calls" in facts:
        rows = [(call["op"], call["kernel"] or "-", call["shape"], size(call["weight_bytes"]), call["source"]) for call in facts["calls"]]
        lines += ["", table(rows, ("call", "kernel here", "shape", "weights", "source"))]
    if with_quality:
        lines += ["", quality_text(facts["quality"])]
    lines += [f"note: {note}" for note in facts["notes"]]
    return "\n".join(lines)


def _quantization_text(quantization: Mapping[str, Any] | None) -> str:
    if quantization is None:
        return "no"
    asked = ", ".join([quantization["asked"], *quantization["layers"]])
    return f"{asked}: " + ", ".join(f"{count} weights {scheme}" for scheme, count in quantization["schemes"].items())


def _self_check_text(check: Mapping[str, Any]) -> str:
    if check["status"] != "passed":
        return f"{check['status'].upper()}: nobody has compared this artifact with transformers"
    error, tolerance = f"{check['max_abs_error']:.2g}", f"{check['tolerance']:.2g}"
    return f"passed ({check['mode']}): max abs error {error} over {check['num_probe_tokens']} tokens, tolerance {tolerance}"
