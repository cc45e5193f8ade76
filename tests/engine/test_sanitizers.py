"""The engine built with sanitizers: many threads on the step loop, and the simulation. No race, no stale memory, no undefined behaviour."""

import shutil
import subprocess
from pathlib import Path

import pytest

from .simulate import build

HERE = Path(__file__).parent
NUM_SEEDS = 2000

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")]


def flags(sanitizer: str) -> list[str]:
    return ["-std=c++20", "-O1", "-g", "-pthread", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"]


@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_the_step_loop_is_clean_under_the_sanitizer(sanitizer: str) -> None:
    program = build(HERE / "step_loop_stress.cpp", flags=flags(sanitizer))
    result = subprocess.run([str(program)], capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stderr


def test_the_simulation_is_clean_under_the_address_and_undefined_behaviour_sanitizers() -> None:
    program = build(HERE / "simulator.cpp", flags=flags("address,undefined"))
    result = subprocess.run([str(program), "0", str(NUM_SEEDS)], capture_output=True, text=True, timeout=1800, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
