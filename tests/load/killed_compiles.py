"""Compiles the same model again and again, each time killed at a random moment, and looks at what is there afterwards.

    python -m load.killed_compiles FOLDER NUM_KILLS SEED

Each compilation runs in a child forked from this process, which has the compiler loaded: the imports write nothing and would take most of
the time in which a process can be killed.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from friendli_runtime.artifact import Artifact
from models.scripted import build

from friendli_compile.compile import CompileOptions, compile_model


def start_compile(checkpoint: Path, output_dir: Path) -> int:
    """The process id of a child that compiles and exits with 0."""
    if child := os.fork():
        return child
    try:
        compile_model(CompileOptions(model=str(checkpoint), output_dir=output_dir, force=True))
    except BaseException as error:
        print(error, file=sys.stderr)
        os._exit(1)
    os._exit(0)


def finishes(child: int) -> bool:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def main() -> None:
    folder, num_kills, rng = Path(sys.argv[1]), int(sys.argv[2]), random.Random(int(sys.argv[3]))
    torch.set_num_threads(1)  # no thread pool that a fork would lose
    checkpoint, output_dir = build(folder / "scripted"), folder / "artifact"
    started_s = time.monotonic()
    assert finishes(start_compile(checkpoint, output_dir))
    whole_s = time.monotonic() - started_s
    num_killed = 0
    while num_killed < num_kills:
        child, moment_s = start_compile(checkpoint, output_dir), rng.uniform(0, whole_s)
        time.sleep(moment_s)
        os.kill(child, signal.SIGKILL)
        if finishes(child):  # before it was killed: it took less time than the first one
            whole_s = moment_s
        else:
            num_killed += 1
        if output_dir.exists():  # not between taking the old artifact away and putting the new one there
            Artifact.open(output_dir).verify()
    assert finishes(start_compile(checkpoint, output_dir))
    Artifact.open(output_dir).verify()
    left = sorted(path.name for path in folder.iterdir())
    assert left == ["artifact", "scripted"], f"the killed compilations left {left}"


if __name__ == "__main__":
    main()
