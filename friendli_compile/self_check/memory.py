"""How much memory is free, and how much comparing the whole model takes."""

from __future__ import annotations

from pathlib import Path

MARGIN = 1.15  # of what is counted, for what is not: activations, the allocator, the file cache of the weights being loaded
FIXED_BYTES = 256 << 20  # torch and the executor themselves
F32_BYTES = 4
LOGIT_COPIES = 3  # ours, the reference's, and their difference

CGROUP = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")


def available_bytes() -> int:
    """What this process may still take: free memory of the machine, or what its cgroup leaves it, whichever is less."""
    limits = [_machine_bytes(), _cgroup_bytes()]
    known = [limit for limit in limits if limit is not None]
    return min(known) if known else 0


def whole_model_bytes(num_params: int, artifact_bytes: int, num_probe_tokens: int, vocab_size: int) -> int:
    """transformers in float32, the artifact, and the logits of both."""
    logits = num_probe_tokens * vocab_size * F32_BYTES * LOGIT_COPIES
    return int((num_params * F32_BYTES + artifact_bytes + logits) * MARGIN) + FIXED_BYTES


def _machine_bytes() -> int | None:
    try:
        lines = MEMINFO.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _cgroup_bytes() -> int | None:
    """Limit minus use of the cgroup (version 2); the file cache counts as free where the kernel can drop it."""
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        used = int((CGROUP / "memory.current").read_text())
        stat = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    if not limit.isdigit():
        return None
    return max(0, int(limit) - used + int(stat.get("inactive_file", 0)))
