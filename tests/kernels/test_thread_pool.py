"""The thread team and the measured limits: no race, and figures that make sense."""

import shutil
import subprocess
from collections.abc import Callable
from itertools import pairwise
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


@pytest.fixture(scope="module")
def sizes_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[int]]:
    """sizes(num_runs, lost) → the size of the team after each run; lost[n - 1]: percent of a run that a team of n loses."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    program = tmp_path_factory.mktemp("team_size") / "check"
    source = Path(__file__).with_name("team_size_check.cpp")
    subprocess.run(["g++", "-std=c++20", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'csrc'}", str(source), "-o", str(program)], check=True)

    def sizes(num_runs: int, lost: list[int]) -> list[int]:
        arguments = [str(value) for value in (len(lost), num_runs, *lost)]
        return [int(word) for word in subprocess.run([str(program), *arguments], capture_output=True, check=True).stdout.split()]

    return sizes


def test_a_team_that_loses_little_stays_whole(sizes_of: Callable[..., list[int]]) -> None:
    assert set(sizes_of(200, [0, 30])) == {2}
    assert set(sizes_of(200, [0, 5, 5, 5, 5, 5, 5, 9])) == {8}


def test_a_team_shrinks_to_the_cores_that_are_free_and_tries_more_ever_less_often(sizes_of: Callable[..., list[int]]) -> None:
    sizes = sizes_of(1000, [0, 0, 0, 0, 0, 0, 50, 50])
    assert sizes[:4] == [8, 7, 7, 6]
    tries = [i for i in range(1, len(sizes)) if sizes[i - 1] == 6 and sizes[i] == 7]
    gaps = [b - a for a, b in pairwise(tries)]
    assert gaps == sorted(gaps)
    assert gaps[-1] >= 160, "1.6 s"
    assert sizes.count(6) > 900


def test_a_team_is_whole_again_soon_after_the_neighbour_left(sizes_of: Callable[..., list[int]]) -> None:
    sizes = sizes_of(400, [50, 0, 0, 50])  # 50 % for one thread cannot be helped by fewer
    assert sizes.count(3) > 300
    assert 4 in sizes[20:]


def test_one_thread_stays_one_whatever_it_loses(sizes_of: Callable[..., list[int]]) -> None:
    assert set(sizes_of(100, [90])) == {1}


def test_the_limits_of_the_machine_are_positive_and_named() -> None:
    limits = _core.measure_limits(1)
    assert set(limits) == {"read_bandwidth_gb_s", "fma_gflop_s", "byte_gop_s"}
    assert all(value > 0 for value in limits.values())
    assert _core.usable_threads() >= 1
