"""The versions of fmo and of what it builds on, and what an extra lacks; read from package metadata: nothing heavy is imported."""

from __future__ import annotations

import importlib.metadata
import platform
import re

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


def missing_packages(extra: str) -> list[str]:
    """The packages of an extra of fmo (`serve`, `compile`) that are not installed; versions are pip's business."""
    try:
        requirements = importlib.metadata.requires("fmo") or []
    except importlib.metadata.PackageNotFoundError:
        return ["fmo"]
    wanted = [text for text in requirements if re.search(rf"extra\s*==\s*['\"]{extra}['\"]", text)]
    names = [re.split(r"[^A-Za-z0-9._-]", text, maxsplit=1)[0] for text in wanted]
    return [name for name in names if not _is_installed(name)]


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
