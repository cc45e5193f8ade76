"""`fmo compile`: a thin layer over `friendli_compile.compile.compile_model`."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import click

from .finite_range import FiniteRange

EXAMPLES = """\b
Examples:
  fmo compile examples/stdlib-coder/model --output-dir build/stdlib-coder
  fmo compile Qwen/Qwen3-0.6B --output-dir build/qwen3 --quantize 4bit --max-context 4096"""

MIN_PROBE_TOKENS = 320  # five blocks of positions: fewer have no interval


@click.command(name="compile", epilog=EXAMPLES)
@click.argument("model")
@click.option("--output-dir", "-o", required=True, type=click.Path(path_type=Path), help="Where the artifact goes; must be empty or new.")
@click.option("--dtype", type=click.Choice(["fp32", "bf16"]), help="How matrices are stored. Default: as the checkpoint stores them.")
@click.option(
    "--quantize",
    metavar="SCHEME",
    help="Fewer bits per weight: 8bit, 4bit, int8, fp8, none (the default), or a scheme like w4a8:g32 (docs/quantization.md).",
)
@click.option(
    "--quantize-layer",
    "quantize_layers",
    metavar="PATTERN=SCHEME",
    multiple=True,
    help="Another scheme for weights or modules that the pattern names, e.g. 'lm_head*=8bit', '*.layers.0.*=none'. Repeatable; the last "
    "that matches wins.",
)
@click.option(
    "--fuse-lora",
    "fuse_lora",
    metavar="PATH[:SCALE]",
    multiple=True,
    help="Merge a PEFT LoRA adapter (folder or hub id) into the weights before anything else, at SCALE times its own strength. Repeatable.",
)
@click.option(
    "--max-kl", type=FiniteRange(min=0), metavar="NATS", help="Refuse a mean KL divergence per token above this. Needs --quantize."
)
@click.option("--max-ppl-drift", type=FiniteRange(min=0), metavar="PERCENT", help="Refuse a perplexity that rises by more than this.")
@click.option("--min-top1", type=FiniteRange(0, 1), metavar="SHARE", help="Refuse when fewer most likely tokens stay the same, e.g. 0.95.")
@click.option("--auto-mixed", is_flag=True, help="Over the budget, give the worst layers more bits until it is met.")
@click.option(
    "--probe",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="UTF-8 text on which quality is measured. Default: text that is shipped, and samples that the model draws.",
)
@click.option(
    "--probe-tokens", type=click.IntRange(min=MIN_PROBE_TOKENS), metavar="N", help="How many tokens. Default: 512 to 8192, by size."
)
@click.option("--no-quality", is_flag=True, help="Do not measure what quantization costs. The artifact records that nobody did.")
@click.option("--target", type=click.Choice(["cpu"]), default="cpu", show_default=True, help="What the artifact runs on.")
@click.option(
    "--max-context", type=click.IntRange(min=1), metavar="TOKENS", help="Longest prompt and answer together. Default: the model's own."
)
@click.option("--name", help="What the served model is called. Default: after MODEL.")
@click.option("--revision", help="Branch, tag or commit of a hub id.")
@click.option("--force", is_flag=True, help="Replace the artifact that is in --output-dir.")
@click.option("--no-self-check", is_flag=True, help="Do not compare the artifact with transformers. The artifact records that nobody did.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole report as JSON.")
def compile_(
    model: str,
    output_dir: Path,
    dtype: str | None,
    quantize: str | None,
    quantize_layers: tuple[str, ...],
    fuse_lora: tuple[str, ...],
    max_kl: float | None,
    max_ppl_drift: float | None,
    min_top1: float | None,
    auto_mixed: bool,
    probe: Path | None,
    probe_tokens: int | None,
    no_quality: bool,
    target: str,
    max_context: int | None,
    name: str | None,
    revision: str | None,
    force: bool,
    no_self_check: bool,
    as_json: bool,
) -> None:
    """Compile a Hugging Face MODEL (folder or hub id) into an artifact.

    The artifact is compared with transformers before it appears: wrong numbers are never emitted.
    """
    if no_quality and (auto_mixed or any(value is not None for value in (max_kl, max_ppl_drift, min_top1, probe, probe_tokens))):
        raise click.UsageError("--no-quality measures nothing, so it does not go with a budget, --auto-mixed or --probe")
    from ..artifact.folder import require_free_target
    from ..progress import Progress

    require_free_target(output_dir, replace=force)
    progress = Progress()
    for number in (signal.SIGINT, signal.SIGTERM):  # what was written is removed
        signal.signal(number, progress.interrupt)
    with progress.phase("import"):  # torch and transformers take seconds
        from ..compile import CompileOptions, compile_model
        from ..quality.budget import Budget
        from ..quality.gate import QualityOptions

    budget = Budget(max_kl=max_kl, max_ppl_drift_percent=max_ppl_drift, min_top1=min_top1)
    options = CompileOptions(
        model=model,
        output_dir=output_dir,
        dtype=dtype,
        quantize=quantize,
        quantize_layers=quantize_layers,
        fuse_lora=fuse_lora,
        target=target,
        max_context_len=max_context,
        name=name,
        revision=revision,
        quality=None if no_quality else QualityOptions(budget=budget, auto_mixed=auto_mixed, probe=probe, num_tokens=probe_tokens),
        self_check=not no_self_check,
        force=force,
    )
    report = compile_model(options, progress)
    if as_json:
        click.echo(json.dumps(report.to_json(), indent=2))
    else:
        click.echo(output_dir)
        if sys.stderr.isatty():
            click.echo(f"next: fmo serve {output_dir}", err=True)
