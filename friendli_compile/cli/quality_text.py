"""The quality record of an artifact (report.json) as text, for `fmo explain`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .table import table

MAX_UNITS = 12
NOT_QUANTIZED = "nothing is quantized: there is nothing to compare"
SKIPPED = "NOT MEASURED (--no-quality): nobody has compared this artifact with the unquantized model"


def quality_line(record: Mapping[str, Any] | None) -> str:
    """One line."""
    if record is None:
        return NOT_QUANTIZED
    if record["status"] != "measured":
        return SKIPPED
    overall = record["overall"]
    kl, drift, top1 = (overall[key]["value"] for key in ("mean_kl", "ppl_drift_percent", "top1_agreement"))
    return f"KL {kl:.3g} nats per token, perplexity {drift:+.2f} %, top-1 {100 * top1:.1f} %, over {overall['num_tokens']} tokens"


def quality_text(record: Mapping[str, Any] | None) -> str:
    """Figures with their 95 % intervals, end to end and per part of the probe; what was raised; the worst layers."""
    if record is None or record["status"] != "measured":
        return quality_line(record)
    parts = {"all": record["overall"], **record["parts"]}
    header = ("probe", "tokens", "KL (nats per token)", "perplexity", "drift (%)", "same top-1 (%)")
    lines = ["compared with the unquantized model; in brackets 95 % intervals", ""]
    lines += [table([(name, *_figures(summary)) for name, summary in parts.items()], header), ""]
    if budget := _budget(record["budget"]):
        lines.append(f"budget       {budget}")
    lines += [
        f"raised       {'+'.join(change['weights'])} to {change['to']} ({change['added_bytes']:+,} bytes)" for change in record["raised"]
    ]
    lines += [f"WARNING      {warning}" for warning in record["warnings"]]
    units = record["units"]
    rows = [
        (
            "+".join(unit["weights"]),
            unit["dtype"],
            _interval(unit["relative_error"], 100),
            "-" if unit["kl"] is None else _interval(unit["kl"]),
            f"{unit['share']:.1%}",
        )
        for unit in units[:MAX_UNITS]
    ]
    if rows:
        lines += ["", f"worst {len(rows)} of {len(units)} quantized weights, each alone:"]
        lines.append(table(rows, ("weight", "stored as", "error of its output (%)", "KL (nats per token)", "share")))
    return "\n".join(lines)


def _figures(summary: Mapping[str, Any]) -> tuple[str, ...]:
    kl, drift, top1 = summary["mean_kl"], summary["ppl_drift_percent"], summary["top1_agreement"]
    return (
        f"{summary['num_tokens']}",
        f"{kl['value']:.3g} [{kl['low']:.3g}, {kl['high']:.3g}]",
        f"{summary['ppl_reference']:.4g} → {summary['ppl_quantized']:.4g}",
        f"{drift['value']:+.2f} [{drift['low']:+.2f}, {drift['high']:+.2f}]",
        f"{100 * top1['value']:.1f} [{100 * top1['low']:.1f}, {100 * top1['high']:.1f}]",
    )


def _interval(estimate: Mapping[str, float], factor: float = 1) -> str:
    value, low, high = (factor * estimate[key] for key in ("value", "low", "high"))
    return f"{value:.2g} [{low:.2g}, {high:.2g}]"


def _budget(budget: Mapping[str, Any]) -> str:
    limits = [
        f"{option} {budget[key]:g}"
        for key, option in (("max_kl", "--max-kl"), ("max_ppl_drift_percent", "--max-ppl-drift"), ("min_top1", "--min-top1"))
        if budget[key] is not None
    ]
    return " ".join([*limits, *(["--auto-mixed"] if budget["auto_mixed"] else [])])
