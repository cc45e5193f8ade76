"""After warm-up a step allocates nothing."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from .simulate import build

PROGRAM = Path(__file__).with_name("allocation_check.cpp")

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


def test_steps_allocate_nothing_after_warm_up() -> None:
    result = subprocess.run([str(build(PROGRAM))], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stdout
    counts = {name: int(value) for name, value in re.findall(r"(\w+) (\d+)", result.stdout)}
    assert counts["steps"] == 2000 and min(counts["preemptions"], counts["cached"], counts["finished"]) > 20, counts


def test_an_allocation_on_the_step_path_is_noticed() -> None:
    plant = {"engine.cpp": [("  input_ids_.clear();", "  input_ids_ = std::vector<int32_t>();")]}
    result = subprocess.run([str(build(PROGRAM, plant))], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 1 and re.fullmatch(r"step 400 allocated \d+ times\n", result.stdout)
