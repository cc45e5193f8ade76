"""`fmo check-template`: a thin layer over `friendli_runtime.tools.check`."""

from __future__ import annotations

import json
from pathlib import Path

import click

EXAMPLES = """\b
Examples:
  fmo check-template examples/stdlib-coder/model
  fmo check-template build/stdlib-coder --json
\b
Exit codes: 0 everything was read back, 1 something was not, 2 usage, 3 a bug of ours."""


@click.command(name="check-template", epilog=EXAMPLES)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")
def check_template(folder: Path, as_json: bool) -> int:
    """Show how the model in FOLDER (a checkpoint or an artifact) writes tool calls and reasoning.

    Both are found out from its chat template; calls that the template renders are read back under every split of the stream.
    """
    from friendli_runtime.tools.check import channel_names, check_folder, example

    report = check_folder(folder)
    if as_json:
        click.echo(json.dumps(report.as_json(), ensure_ascii=False, indent=2))
        return 1 if report.failures else 0
    click.echo(f"chat template  {'yes' if report.has_template else 'none: /v1/chat/completions is refused'}")
    if report.has_template:
        calls = report.calls
        click.echo(f"tool calls     {'none: ' + report.why_no_calls if calls is None else json.dumps(example(calls), ensure_ascii=False)}")
        if calls is not None:
            click.echo(f"               {'several per answer' if calls.separator is not None else 'one per answer'}")
            where = "anywhere in a text" if calls.trigger is not None else "only as the whole answer"
            click.echo(f"               {where if report.channels is None else 'in messages of their own'}")
        click.echo(f"reasoning      {' … '.join(report.reasoning) if report.reasoning is not None else 'none'}")
        if report.channels is not None:
            named = ", ".join(f"{what} in {name}" for what, name in channel_names(report.channels).items() if name is not None)
            click.echo(f"channels       {named}")
        click.echo(f"round trip     {report.num_vectors} vectors, {report.num_splits} splits, {len(report.failures)} failures")
    for failure in report.failures:
        click.echo(f"failed: {failure}", err=True)
    return 1 if report.failures else 0
