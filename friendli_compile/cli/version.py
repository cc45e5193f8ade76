"""`fmo version`: the versions of fmo and of what it builds on."""

from __future__ import annotations

import json

import click

from ..versions import installed_versions


@click.command(epilog="\b\nExamples:\n  fmo version\n  fmo version --json")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def version(as_json: bool) -> None:
    """Print the versions of fmo and what it builds on."""
    versions = installed_versions()
    if as_json:
        click.echo(json.dumps(versions, indent=2))
        return
    for name, number in versions.items():
        click.echo(f"{name:<14}{number or 'not installed'}")
