"""How much memory is free: that of the machine, or what is left of the limit of a control group, whichever is less."""

from pathlib import Path

import pytest
from friendli_runtime.free_memory import free_memory_bytes

MACHINE_BYTES = 8000 * 1024


def write(folder: Path, files: dict[str, object]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(f"{text}\n")


@pytest.fixture
def kernel(tmp_path: Path) -> tuple[Path, Path]:
    """The folders that stand for /proc and /sys/fs/cgroup, without any group."""
    write(tmp_path / "proc", {"meminfo": "MemTotal: 9000 kB\nMemAvailable: 8000 kB"})
    return tmp_path / "proc", tmp_path / "cgroup"


def group_v2(limit: object, used: int, droppable: int = 0) -> dict[str, object]:
    return {"memory.max": limit, "memory.current": used, "memory.stat": f"anon 1\ninactive_file {droppable}"}


def test_without_a_limit_the_machine_has_what_it_has(kernel: tuple[Path, Path]) -> None:
    assert free_memory_bytes(*kernel) == MACHINE_BYTES
    proc, cgroups = kernel
    write(proc / "self", {"cgroup": "0::/job"})
    write(cgroups / "job", group_v2("max", 1000))
    assert free_memory_bytes(*kernel) == MACHINE_BYTES


@pytest.mark.parametrize("path", ["/", "/pod/box", "/seen/only/from/outside"])
def test_a_limit_counts_wherever_it_stands_above_the_process(path: str, kernel: tuple[Path, Path]) -> None:
    proc, cgroups = kernel
    write(proc / "self", {"cgroup": f"0::{path}"})
    write(cgroups, group_v2(5000, 4000, droppable=500))
    write(cgroups / "pod" / "box", group_v2("max", 3000))
    assert free_memory_bytes(*kernel) == 5000 - 4000 + 500


def test_the_tightest_of_nested_groups_counts_and_never_less_than_nothing(kernel: tuple[Path, Path]) -> None:
    proc, cgroups = kernel
    write(proc / "self", {"cgroup": "0::/pod/box"})
    write(cgroups / "pod", group_v2(9000, 2000))
    write(cgroups / "pod" / "box", group_v2(3000, 3500))
    assert free_memory_bytes(*kernel) == 0


def test_groups_of_version_1_are_read_too(kernel: tuple[Path, Path]) -> None:
    proc, cgroups = kernel
    write(proc / "self", {"cgroup": "5:cpu,cpuacct:/job\n4:memory:/job\n0::/"})
    files = {"memory.limit_in_bytes": 7000, "memory.usage_in_bytes": 6000, "memory.stat": "total_inactive_file 10"}
    write(cgroups / "memory" / "job", files)
    assert free_memory_bytes(*kernel) == 1010
