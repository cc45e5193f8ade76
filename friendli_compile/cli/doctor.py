"""`fmo doctor`: what this machine can do, and what is missing. Imports nothing heavy: packages are looked up, not loaded."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ..versions import installed_versions, missing_packages
from .table import size

LOW_DISK_BYTES = 5e9


@click.command(epilog="\b\nExamples:\n  fmo doctor\n  fmo doctor --json")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(as_json: bool) -> None:
    """Show what this machine can do, and what is missing."""
    facts = examine()
    click.echo(json.dumps(facts, indent=2) if as_json else render(facts))


def examine() -> dict[str, Any]:
    """The facts as one JSON object; `problems` are sentences with the way out."""
    from friendli_runtime.artifact import supported_isas
    from friendli_runtime.free_memory import free_memory_bytes

    core_error = _core_error()
    missing_to_serve, missing_to_compile = missing_packages("serve"), missing_packages("compile")
    facts: dict[str, Any] = {
        "cpu": {
            "model": _cpu_model(),
            "arch": platform.machine(),
            "isa": list(supported_isas()),
            "usable_cores": len(os.sched_getaffinity(0)),
        },
        "memory": {"total_bytes": _meminfo("MemTotal"), "available_bytes": free_memory_bytes()},
        "disk": {"folder": str(Path.cwd()), "free_bytes": shutil.disk_usage(Path.cwd()).free},
        "core": {"is_built": core_error is None, "error": core_error},
        "can_serve": core_error is None and not missing_to_serve,
        "can_compile": core_error is None and not missing_to_compile,
        "hub_offline": os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"),
        "versions": installed_versions(),
    }
    facts["problems"] = _problems(facts, missing_to_serve, missing_to_compile)
    return facts


def _problems(facts: Mapping[str, Any], missing_to_serve: list[str], missing_to_compile: list[str]) -> list[str]:
    problems = []
    if not facts["core"]["is_built"]:
        problems.append(f"the C++ core cannot be loaded ({facts['core']['error']}): pip install -e . builds it")
    if missing_to_serve:
        problems.append(f"serving needs {', '.join(missing_to_serve)}: pip install 'fmo[serve]'")
    if missing_to_compile:
        problems.append(f"compiling needs {', '.join(missing_to_compile)}: pip install 'fmo[compile]'")
    if "avx2" not in facts["cpu"]["isa"]:
        problems.append("the processor has no AVX2 with FMA: everything works with the scalar kernels, slowly")
    if facts["disk"]["free_bytes"] < LOW_DISK_BYTES:
        problems.append(f"only {size(facts['disk']['free_bytes'])} are free on the disk of {facts['disk']['folder']}")
    return problems


def render(facts: Mapping[str, Any]) -> str:
    """The facts for a terminal."""
    cpu, memory, versions = facts["cpu"], facts["memory"], facts["versions"]
    yes = {True: "yes", False: "no"}
    lines = [
        f"cpu          {cpu['model']}, {cpu['usable_cores']} cores, {cpu['arch']} ({', '.join(cpu['isa'])})",
        f"memory       {size(memory['available_bytes'])} of {size(memory['total_bytes'])} available",
        f"disk         {size(facts['disk']['free_bytes'])} free in {facts['disk']['folder']}",
        f"can serve    {yes[facts['can_serve']]}",
        f"can compile  {yes[facts['can_compile']]}",
        "versions     " + ", ".join(f"{name} {number}" for name, number in versions.items() if number),
    ]
    lines += [f"problem      {problem}" for problem in facts["problems"]]
    return "\n".join(lines)


def _core_error() -> str | None:
    """None when the C++ core loads."""
    try:
        import friendli_runtime._core  # noqa: F401  # loading is the test
    except ImportError as error:
        return str(error)
    return None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def _meminfo(name: str) -> int:
    """Bytes of an entry of /proc/meminfo; 0 where there is none."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)
