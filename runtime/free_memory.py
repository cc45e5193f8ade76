"""How much memory this process may still take: what the machine has free, or what its control group leaves it, whichever is less.

Control groups of both versions are read, and all of them from the process's own up to the root: a container's limit may stand at either
end. The file cache that the kernel can drop counts as free. Where nothing can be read, the memory of the machine is the answer.
"""

from __future__ import annotations

import os
from pathlib import Path

_FILES = {  # controllers in /proc/self/cgroup → folder below the root, limit, use, and the droppable part of the use in memory.stat
    "": ("", "memory.max", "memory.current", "inactive_file"),
    "memory": ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def free_memory_bytes(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """`proc`, `cgroups`: where the kernel shows them."""
    return min([_machine_bytes(proc), *_left_by_groups(proc, cgroups)])


def _machine_bytes(proc: Path) -> int:
    try:
        fields = dict(line.split(":", 1) for line in (proc / "meminfo").read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _left_by_groups(proc: Path, cgroups: Path) -> list[int]:
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        lines = []
    return [left for line in lines if (left := _left_by_line(line, cgroups)) is not None]


def _left_by_line(line: str, cgroups: Path) -> int | None:
    """Of one line of /proc/self/cgroup, `number:controllers:path`; None: it limits no memory."""
    _, controllers, path = line.split(":", 2)
    if controllers not in _FILES:
        return None
    folder, *files = _FILES[controllers]
    root = cgroups / folder
    own = root / path.strip("/")
    groups = [own, *(parent for parent in own.parents if parent.is_relative_to(root))]
    return min((left for group in groups if (left := _left_by_group(group, *files)) is not None), default=None)


def _left_by_group(group: Path, limit_file: str, use_file: str, droppable: str) -> int | None:
    """None: there is no such group here (a container sees its own as the root), or it has no limit."""
    try:
        limit = (group / limit_file).read_text().strip()
        used = int((group / use_file).read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return max(0, int(limit) - used + int(stat.get(droppable, 0))) if limit.isdigit() else None
    except (OSError, ValueError):
        return None
