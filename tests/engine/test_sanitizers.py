"""The step loop built with a sanitizer and run by many threads: no race, no stale memory, no undefined behaviour."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_the_step_loop_is_clean_under_the_sanitizer(sanitizer, tmp_path):
    program = tmp_path / "stress"
    sources = [*sorted((ROOT / "csrc" / "engine").glob("*.cpp")), Path(__file__).with_name("step_loop_stress.cpp")]
    flags = ["-std=c++20", "-O1", "-g", "-pthread", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all", f"-I{ROOT / 'csrc'}"]
    subprocess.run(["g++", *flags, *map(str, sources), "-o", str(program)], check=True)
    result = subprocess.run([str(program)], capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
