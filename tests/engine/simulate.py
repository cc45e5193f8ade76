"""Builds the simulator of the engine from its sources and runs it: `python tests/engine/simulate.py FIRST_SEED NUM_SEEDS [--trace]`.

Objects are kept in build/simulator by the hash of what they are made of, so that a second build compiles only what has changed. `plants`
replaces pieces of the engine's source text by others before compiling: planted bugs, which the simulation must find.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENGINE = ROOT / "csrc" / "engine"
CACHE = ROOT / "build" / "simulator"
FLAGS = ("-std=c++20", "-O1", "-pthread")


def build(main: Path, plants: Mapping[str, Sequence[tuple[str, str]]] | None = None, flags: Sequence[str] = FLAGS) -> Path:
    """The program of `main` and all sources of the engine. `plants`: file name → (text that occurs once, what it becomes) …"""
    headers = b"".join(
        path.read_bytes() for path in sorted([*ENGINE.glob("*.h"), ROOT / "csrc/executor/batch.h", *Path(__file__).parent.glob("*.h")])
    )
    texts = {path: path.read_text() for path in [*sorted(ENGINE.glob("*.cpp")), main]} | planted(plants or {})
    CACHE.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(lambda item: _compile(item[0], item[1], headers, flags), texts.items()))
    digest = hashlib.sha256("".join(path.name for path in objects).encode()).hexdigest()[:16]
    program = CACHE / f"{main.stem}-{digest}"
    if not program.exists():
        _run_to(program, ["g++", *flags, *map(str, objects)])
    return program


def planted(plants: Mapping[str, Sequence[tuple[str, str]]]) -> dict[Path, str]:
    """The sources that `plants` change, as they are then. Raises ValueError for a text that does not occur once."""
    texts = {ENGINE / name: (ENGINE / name).read_text() for name in plants}
    for name, replacements in plants.items():
        for old, new in replacements:
            if (num_found := texts[ENGINE / name].count(old)) != 1:
                raise ValueError(f"the text to replace occurs {num_found} times in {name}, expected once: {old!r}")
            texts[ENGINE / name] = texts[ENGINE / name].replace(old, new)
    return texts


def _compile(source: Path, text: str, headers: bytes, flags: Sequence[str]) -> Path:
    digest = hashlib.sha256(headers + repr(flags).encode() + text.encode()).hexdigest()[:16]
    target = CACHE / f"{source.stem}-{digest}.o"
    if not target.exists():
        _run_to(target, ["g++", *flags, f"-I{ROOT / 'csrc'}", f"-I{ROOT}", "-c", "-x", "c++", "-"], text)
    return target


def _run_to(target: Path, command: list[str], text: str | None = None) -> None:
    """Runs a compiler; the target appears whole or not at all, whoever else builds it at the same time."""
    partial = target.with_name(f"{target.name}.{os.getpid()}")
    result = subprocess.run([*command, "-o", str(partial)], input=text, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{result.stderr}")
    partial.replace(target)


if __name__ == "__main__":
    sys.exit(subprocess.run([str(build(Path(__file__).with_name("simulator.cpp"))), *sys.argv[1:]], check=False).returncode)
