"""The table and the plot of docs/benchmarks.md, from the lines of run.py.

    python bench/peers/report.py bench/results/<device>/peers.jsonl --model llama-0.5b [--plot docs/images/peers-0.5b.svg]

Medians over quiet lines (others used less than a tenth of a core); a peer without any is marked ~ and shown with the medians of all.
Only the lines of the newest commit that has this model are read.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

QUIET_CORES = 0.1
COLUMNS = {
    "prefill_tok_s": "prefill 512",
    "decode_tok_s": "1 sequence",
    "batch2_tok_s": "2",
    "batch4_tok_s": "4",
    "batch8_tok_s": "8",
    "batch16_tok_s": "16 sequences",
    "cold_first_token_s": "first token, s",
    "peak_rss_mb": "memory, MB",
}
PLOTTED = ("prefill_tok_s", "decode_tok_s", "batch16_tok_s")
BITS = {"fp32": 32, "bf16": 16, "fp16": 16, "f16": 16, "int8": 8, "q8_0": 8, "8bit": 8, "int4": 4, "q4_0": 4, "q4_k_m": 4, "4bit": 4}
Key = tuple[str, str]


def medians(lines: list[dict[str, Any]]) -> dict[Key, dict[str, Any]]:
    """(peer, precision) → the median of every column, and `quiet`, `lines`: how many there are."""
    groups: dict[Key, list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        if "error" not in line:
            groups[line["peer"], line["precision"]].append(line)
    result: dict[Key, dict[str, Any]] = {}
    for key, all_lines in groups.items():
        quiet = [line for line in all_lines if line["others_cpu"] + line["steal"] < QUIET_CORES]
        used = quiet or all_lines
        figures: dict[str, Any] = {column: median(line[column] for line in used) for column in COLUMNS if column in used[0]}
        result[key] = figures | {"quiet": len(quiet), "lines": len(all_lines)}
    return result


def table(rows: dict[Key, dict[str, Any]]) -> str:
    """Markdown; ordered by bits, then by decode speed."""
    lines = ["| | bits | " + " | ".join(COLUMNS.values()) + " | quiet lines |", "|---" * (len(COLUMNS) + 3) + "|"]
    for (peer, precision), figures in sorted(rows.items(), key=_order):
        mark = "" if figures["quiet"] else " ~"
        cells = [_number(figures[column]) if column in figures else "" for column in COLUMNS]
        lines.append(f"| {peer} {precision}{mark} | {BITS[precision]} | {' | '.join(cells)} | {figures['quiet']}/{figures['lines']} |")
    return "\n".join(lines)


def ratios(rows: dict[Key, dict[str, Any]]) -> str:
    """Ours beside the best peer at equal bits, and at any bits for prompts."""
    lines = []
    for (peer, precision), ours in sorted(rows.items(), key=_order):
        if peer != "fmo":
            continue
        for column in [name for name in COLUMNS if name.endswith("tok_s") and name in ours]:
            rivals = [
                (figures[column], f"{name} {theirs}")
                for (name, theirs), figures in rows.items()
                if name != "fmo" and column in figures and (column == "prefill_tok_s" or BITS[theirs] == BITS[precision])
            ]
            if rivals:
                best, name = max(rivals)
                lines.append(f"fmo {precision}, {COLUMNS[column]}: {ours[column] / best:.2f} × {name} ({_number(best)})")
    return "\n".join(lines)


def plot(rows: dict[Key, dict[str, Any]], path: Path, title: str) -> None:
    """Horizontal bars, one panel per workload."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "peers"  # equal figures give equal bytes
    from matplotlib import pyplot

    ordered = sorted(rows.items(), key=_order, reverse=True)
    labels = [f"{peer} {precision}" for (peer, precision), _ in ordered]
    colours = ["#c2410c" if peer == "fmo" else "#94a3b8" for (peer, _), _ in ordered]
    figure, axes = pyplot.subplots(1, len(PLOTTED), figsize=(13, 0.34 * len(labels) + 1.2), sharey=True)
    for axis, column in zip(axes, PLOTTED, strict=True):
        values = [figures.get(column, 0.0) for _, figures in ordered]
        bars = axis.barh(labels, values, color=colours)
        axis.bar_label(bars, labels=[_number(value) for value in values], padding=3, fontsize=8)
        axis.set_title(f"{COLUMNS[column]}, tokens/s", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(x=0.15)
    figure.suptitle(title, fontsize=11)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def _order(row: tuple[Key, dict[str, Any]]) -> tuple[int, float]:
    (_, precision), figures = row
    return BITS[precision], -figures["decode_tok_s"]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--model", default="llama-0.5b")
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    lines = [line for line in map(json.loads, args.results.read_text().splitlines()) if line["model"] == args.model]
    if not lines:
        parser.error(f"{args.results} has no line of {args.model}: run bench/peers/run.py measure first")
    newest = lines[-1]["commit"]
    rows = medians([line for line in lines if line["commit"] == newest])
    print(f"{args.model}, {lines[-1]['cpu']}, {lines[-1]['threads']} threads, commit {newest}\n\n{table(rows)}\n\n{ratios(rows)}")
    if args.plot:
        plot(rows, args.plot, f"{args.model}, {lines[-1]['cpu']}, {lines[-1]['threads']} threads")


if __name__ == "__main__":
    main()
