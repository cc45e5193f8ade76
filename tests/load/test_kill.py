"""kill -9 at random moments of compiling and of serving: the next start works, and nothing half written is ever taken for an artifact."""

import contextlib
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from models.scripted import script_tag
from server.served import scripted_artifact, serve

from .client import ask

FEW, MANY = 4, 50
LOAD = [{"prompt": script_tag("abc" * i) + "<|go|>", "temperature": 0, "stream": True, "n": 2} for i in range(1, 17)]


def kill_compiles(folder: Path, num_kills: int, seed: int) -> None:
    command = [sys.executable, "-m", "load.killed_compiles", str(folder), str(num_kills), str(seed)]
    result = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]


def kill_serves(num_kills: int, seed: int) -> None:
    """Kills a server under load, each time at another moment, and asks the next one on the same artifact."""
    rng = random.Random(seed)
    for _ in range(num_kills):
        process = serve(scripted_artifact())
        killer = threading.Timer(rng.uniform(0, 0.2), process.popen.kill)
        killer.start()
        while process.popen.poll() is None:
            with contextlib.suppress(OSError):
                ask(process.url, "/v1/completions", LOAD)
        process.popen.wait(timeout=60)
        killer.join()
    survivor = serve(scripted_artifact())
    (answer,) = ask(survivor.url, "/v1/completions", LOAD[:1])
    assert "".join(choice["text"] for event in answer.events() for choice in event["choices"] if choice["index"] == 0) == "abc"
    assert survivor.stop() == 0


def test_a_compilation_killed_anywhere_leaves_a_whole_artifact_or_none(tmp_path: Path) -> None:
    kill_compiles(tmp_path, FEW, seed=0)


def test_a_server_killed_under_load_leaves_nothing_that_hinders_the_next(tmp_path: Path) -> None:
    kill_serves(FEW, seed=0)


@pytest.mark.slow
def test_fifty_compilations_killed_anywhere(tmp_path: Path) -> None:
    kill_compiles(tmp_path, MANY, seed=1)


@pytest.mark.slow
def test_fifty_servers_killed_under_load() -> None:
    kill_serves(MANY, seed=1)
