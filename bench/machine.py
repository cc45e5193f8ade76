"""What every line of bench/results says of its machine: CPU, commit, and how much of the CPU others used meanwhile."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def cpu_name() -> str:
    found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    return found[1].strip() if found else "unknown"


def commit() -> str:
    return subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def results_dir() -> Path:
    """bench/results/<cpu and number of cores>, made when it is not there."""
    device = re.sub(r"[^a-z0-9]+", "-", f"{cpu_name()} {os.cpu_count()} cores".lower()).strip("-")
    folder = ROOT / "bench" / "results" / device
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def facts_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """What a line says first: which artifact, from its manifest, at which commit, on which CPU."""
    model = manifest["model"]
    quantization = model.get("quantization", {}).get("asked")
    return {"model": model["name"], "dtype": model["dtype"], "quantization": quantization, "commit": commit(), "cpu": cpu_name()}


def record(file_name: str, line: dict[str, Any], indent: int | None = 2) -> None:
    """Appends a line to a file of this machine's results and prints it."""
    with (results_dir() / file_name).open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line, indent=indent))


class Busy:
    """Measures from its creation on what this process and its finished children did not use of the CPU."""

    def __init__(self) -> None:
        self._started_s, self._all_s, self._own_s = time.monotonic(), _busy_s(), _own_s()
        self._stolen_s = _stolen_s()

    def of_others(self) -> dict[str, float]:
        """`others_cpu`: cores busy with other processes; `steal`: cores that the hypervisor took."""
        wall_s = time.monotonic() - self._started_s
        others_s = _busy_s() - self._all_s - (_own_s() - self._own_s)
        return {"others_cpu": round(max(0.0, others_s / wall_s), 3), "steal": round((_stolen_s() - self._stolen_s) / wall_s, 3)}


def _cpu_fields_s() -> list[float]:
    """user nice system idle iowait irq softirq steal, seconds since boot over all cores."""
    return [int(field) / os.sysconf("SC_CLK_TCK") for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]


def _busy_s() -> float:
    user, nice, system, _idle, _iowait, irq, softirq, _steal = _cpu_fields_s()
    return user + nice + system + irq + softirq


def _stolen_s() -> float:
    return _cpu_fields_s()[7]


def _own_s() -> float:
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
