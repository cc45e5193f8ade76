"""`fmo check`: a thin layer over `friendli_compile.check.check`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from .table import size, table

if TYPE_CHECKING:
    from ..check import CheckReport

EXAMPLES = """\b
Examples:
  fmo check examples/stdlib-coder/model
  fmo check meta-llama/Llama-3.1-70B --max-context 8192
\b
Exit codes: 0 the model can be compiled, 1 it cannot, 2 usage, 3 a bug of ours."""


@click.command(epilog=EXAMPLES)
@click.argument("model")
@click.option(
    "--max-context", type=click.IntRange(min=1), metavar="TOKENS", help="Longest prompt and answer together. Default: the model's own."
)
@click.option("--revision", help="Branch, tag or commit of a hub id.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(model: str, max_context: int | None, revision: str | None, as_json: bool) -> int:
    """Say whether MODEL (folder or hub id) can be compiled, and how much memory it needs.

    Reads the config only: no weight is read or downloaded.
    """
    from ..progress import Progress

    progress = Progress()
    with progress.phase("import"):  # torch and transformers take seconds
        from ..check import check as check_model

    report = check_model(model, revision=revision, max_context_len=max_context, progress=progress)
    click.echo(json.dumps(report.to_json(), indent=2) if as_json else render(report))
    return 0 if report.supported else 1


def render(report: CheckReport) -> str:
    """The report for a terminal."""
    if not report.supported:
        places = [("module", report.module), ("op", report.op), ("line", report.source_line), ("try", report.hint)]
        lines = [f"{report.model}: not supported", f"  why: {report.why}"]
        return "\n".join(lines + [f"  {name}: {text}" for name, text in places if text])
    rows = [
        (
            dtype,
            size(report.weight_bytes[dtype]),
            size(report.kv_bytes_per_token.get(dtype, report.kv_bytes_per_token["bf16"])),
            size(report.serve_bytes[dtype]),
            _fits(report, dtype),
        )
        for dtype in report.weight_bytes
    ]
    model = f"{report.architecture}, {report.num_params / 1e6:,.1f} M parameters, context {report.max_context_len} tokens"
    lines = [
        f"{report.model}: supported ({model})",
        "",
        table(rows, ("stored as", "weights", "KV per token", "to serve one full context", "fits in")),
        "",
        f"traced in {report.trace_seconds:.1f} s, no weights read",
    ]
    return "\n".join(lines + [f"note: {note}" for note in report.notes])


def _fits(report: CheckReport, dtype: str) -> str:
    """The smallest usual machine, and whether this one is enough."""
    gib = report.fits_in_gib[dtype]
    here = {True: "this machine is enough", False: "more than this machine has", None: "this machine: unknown"}[report.fits_here[dtype]]
    return f"{gib} GiB; {here}" if gib is not None else f"no single machine; {here}"
