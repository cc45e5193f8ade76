"""`fmo version`: the versions of fmo and of what it builds on, read from package metadata (nothing heavy is imported)."""

from __future__ import annotations

import importlib.metadata
import json
import platform

import click

PACKAGES = ("fmo", "torch", "transformers", "safetensors", "tokenizers", "numpy", "click")


def installed_versions() -> dict[str, str | None]:
    """Package → version, None where it is not installed."""
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions | {"python": platform.python_version()}


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
