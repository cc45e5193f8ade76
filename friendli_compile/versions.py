"""The versions of fmo and of what it builds on, read from package metadata: nothing heavy is imported."""

from __future__ import annotations

import importlib.metadata
import platform

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
