"""What a server process holds, read from the kernel and from its metrics: memory, descriptors, threads, blocks of the KV cache."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np


@dataclass(frozen=True)
class Held:
    """By one process, between two waves of requests."""

    num_requests: int
    """Served so far."""
    memory_bytes: int
    num_descriptors: int
    num_threads: int


def memory_bytes(pid: int) -> int:
    """Anonymous memory: what the process itself has written, without the pages of files it maps."""
    found = re.search(r"Anonymous:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text())
    assert found
    return int(found[1]) * 1024


def held(pid: int, num_requests: int) -> Held:
    process = Path(f"/proc/{pid}")
    return Held(num_requests, memory_bytes(pid), len(list((process / "fd").iterdir())), len(list((process / "task").iterdir())))


def metric(metrics_url: str, name: str) -> float:
    """The value of a metric without labels."""
    found = re.search(rf"^{name} (\S+)$", httpx.get(metrics_url + "/metrics", timeout=60).text, re.MULTILINE)
    assert found, f"there is no metric {name}"
    return float(found[1])


def memory_slope(samples: list[Held]) -> float:
    """Bytes that each further request leaves behind: the median slope over all pairs of samples (Theil and Sen), which a few jumps of
    the allocator do not move."""
    pairs = [(a, b) for i, a in enumerate(samples) for b in samples[i + 1 :] if b.num_requests > a.num_requests]
    return float(np.median([(b.memory_bytes - a.memory_bytes) / (b.num_requests - a.num_requests) for a, b in pairs]))


def leaks(samples: list[Held], *, max_bytes_per_request: float) -> list[str]:
    """What grew between the first and the last sample, in words; empty when nothing did. The first samples belong to a warm server."""
    found = []
    if (slope := memory_slope(samples)) > max_bytes_per_request:
        found.append(f"memory grows by {slope:.0f} bytes a request")
    for name in ("num_descriptors", "num_threads"):
        values = [getattr(sample, name) for sample in samples]
        if min(values[len(values) // 2 :]) > max(values[: len(values) // 2]):
            found.append(f"{name} grows: {values}")
    return found
