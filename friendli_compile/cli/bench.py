"""`fmo bench`: measures an artifact beside the limits of the machine. The measuring is `friendli_runtime.bench`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from .engine_options import kv_cache_dtype_option


def parse_batches(_context: click.Context, _option: click.Parameter, value: str) -> tuple[int, ...]:
    """`8,16` → (8, 16); the empty text measures none."""
    try:
        batches = tuple(int(part) for part in value.split(",") if part.strip())
    except ValueError:
        raise click.BadParameter(f"'{value}' is not a list of numbers such as 8,16") from None
    if any(not 1 <= num_seqs <= 1024 for num_seqs in batches):
        raise click.BadParameter(f"'{value}': numbers of sequences go from 1 to 1024")
    return batches


@click.command(
    epilog="""\b
Examples:
  fmo bench build/stdlib-coder
  fmo bench build/stdlib-coder --threads 2 --batch 4,32 --json > bench.json"""
)
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--threads", "num_threads", type=click.IntRange(min=0), default=0, help="Threads of the engine; 0: all this process may use.")
@click.option("--batch", "batches", default="8,16", callback=parse_batches, show_default=True, help="Numbers of sequences at once.")
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="Samples of each figure; medians are printed.")
@kv_cache_dtype_option
@click.option("--cold-start/--no-cold-start", default=True, help="Also time fresh processes to their first token.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def bench(
    artifact: Path, num_threads: int, batches: tuple[int, ...], rounds: int, kv_dtype: str | None, cold_start: bool, as_json: bool
) -> None:
    """Measure prefill, decoding, batches and cold start of ARTIFACT.

    Greedy, end-of-sequence ignored. Prefill: 512 tokens to the first token. Decode: 128 tokens after 128. Batches: decoding of N sequences
    at once, tokens per second of all together. The machine's limits are measured in the same rounds: read bandwidth, and the peaks of f32
    multiply-adds and of byte products.
    """
    from friendli_runtime.bench import BenchOptions, run_bench

    options = BenchOptions(num_threads=num_threads, batches=batches, rounds=rounds, kv_dtype=kv_dtype, cold_start=cold_start)
    result = run_bench(artifact, options, _show_progress if sys.stderr.isatty() else lambda *_: None)
    click.echo(json.dumps(result, indent=2) if as_json else _table(result))


def _show_progress(what: str, num_done: int, num_steps: int) -> None:
    line = "" if num_done == num_steps else f"[{num_done}/{num_steps}] {what}"
    click.echo(f"\r\x1b[K{line}", err=True, nl=False)


def _table(result: dict[str, Any]) -> str:
    def row(label: str, name: str, unit: str, share: str = "") -> str:
        low, high = result["spread"].get(name, (result[name], result[name]))
        note = f"   {100 * result[share]:.0f} % of the limit" if share in result else ""
        return f"{label:24}{result[name]:12,.1f} {unit:10}({low:,.1f} … {high:,.1f}){note}"

    lines = [
        row(f"prefill, {result['prefill_tokens']} tokens", "prefill_tok_s", "tok/s", "prefill_share_of_limit"),
        row("decode, 1 sequence", "decode_tok_s", "tok/s", "decode_share_of_limit"),
    ]
    batches = sorted((name for name in result if name.startswith("batch")), key=lambda name: int(name[5:].split("_")[0]))
    lines += [row(f"decode, {name[5:].split('_')[0]} sequences", name, "tok/s") for name in batches]
    if "cold_first_token_s" in result:
        lines.append(f"{'cold first token':24}{result['cold_first_token_s']:12.3f} s")
    lines += [
        f"{'peak memory':24}{result['peak_rss_mb']:12,.1f} MB",
        f"{'weights':24}{result['weight_bytes'] / 1e6:12,.1f} MB",
        row("limit: read bandwidth", "read_bandwidth_gb_s", "GB/s"),
        row("limit: fp32 FMA", "fma_gflop_s", "GFLOP/s"),
        row("limit: byte products", "byte_gop_s", "GOP/s"),
        f"medians (minimum … maximum) of {result['rounds']} rounds, {result['num_threads']} threads, {result['isa']}",
    ]
    return "\n".join(lines)
