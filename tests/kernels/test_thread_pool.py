"""The thread team and the measured limits: no race, and figures that make sense."""

import shutil
import subprocess
from pathlib import Path

import pytest
from friendli_runtime import _core

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_a_barrier_orders_what_threads_write_under_the_thread_sanitizer(tmp_path: Path) -> None:
    program = tmp_path / "stress"
    sources = [ROOT / "csrc" / "device" / "cpu" / "thread_pool.cpp", Path(__file__).with_name("thread_pool_stress.cpp")]
    flags = ["-std=c++20", "-O1", "-g", "-pthread", "-fsanitize=thread", f"-I{ROOT / 'csrc'}"]
    subprocess.run(["g++", *flags, *map(str, sources), "-o", str(program)], check=True)
    result = subprocess.run([str(program)], capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr


def test_the_limits_of_the_machine_are_positive_and_named() -> None:
    limits = _core.measure_limits(1)
    assert set(limits) == {"read_bandwidth_gb_s", "fma_gflop_s", "byte_gop_s"}
    assert all(value > 0 for value in limits.values())
    assert _core.usable_threads() >= 1
