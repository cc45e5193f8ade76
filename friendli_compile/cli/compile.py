"""`fmo compile`: a thin layer over `friendli_compile.compile.compile_model`."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import click

EXAMPLES = """\b
Examples:
  fmo compile examples/stdlib-coder/model --output-dir build/stdlib-coder
  fmo compile Qwen/Qwen3-0.6B --output-dir build/qwen3 --quantize 4bit --max-context 4096"""


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
    from ..artifact.folder import require_free_target
    from ..progress import Progress

    require_free_target(output_dir, replace=force)
    progress = Progress()
    for number in (signal.SIGINT, signal.SIGTERM):  # what was written is removed
        signal.signal(number, progress.interrupt)
    with progress.phase("import"):  # torch and transformers take seconds
        from ..compile import CompileOptions, compile_model

    options = CompileOptions(
        model=model,
        output_dir=output_dir,
        dtype=dtype,
        quantize=quantize,
        quantize_layers=quantize_layers,
        target=target,
        max_context_len=max_context,
        name=name,
        revision=revision,
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
