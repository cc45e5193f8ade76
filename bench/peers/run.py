"""Compares engines on this machine's CPU: interleaved, one process per measurement, each peer from PyPI in an environment of its own.

    python bench/peers/run.py prepare [--shape 0.5b] [--peers llama_cpp:q4_0,fmo]     installs and converts, once
    python bench/peers/run.py measure [--shape 0.5b] [--peers …] [--rounds 5]     appends to bench/results/<device>/peers.jsonl

Every peer takes its turn, round after round. A line has the commit, the CPU, the read bandwidth measured just before, `others_cpu` (cores
that other processes kept busy) and `steal` (what the hypervisor took). Preparing takes most of an hour: llama.cpp is built from source.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(HERE.parent)]
from machine import Busy, commit, cpu_name, results_dir  # noqa: E402
from workload import Workload  # noqa: E402

PEERS = ("fmo", "llama_cpp", "onnxruntime_genai", "openvino", "ctranslate2", "transformers")
BUILD = ROOT / "build" / "peers"
TIMEOUT_S = 900


def parse_peers(text: str) -> Iterator[tuple[str, str]]:
    """ "name" or "name:precision", comma separated → pairs. Raises SystemExit on an unknown one."""
    for item in text.split(","):
        name, _, precision = item.partition(":")
        if name not in PEERS:
            raise SystemExit(f"there is no peer '{name}': choose from {', '.join(PEERS)}")
        offered = importlib.import_module(f"adapters.{name}").PRECISIONS
        if precision and precision not in offered:
            raise SystemExit(f"{name} has no precision '{precision}': choose from {', '.join(offered)}")
        yield from ((name, each) for each in ([precision] if precision else offered))


def environment(name: str, requirements: tuple[str, ...], variables: dict[str, str], unwanted: tuple[str, ...] = ()) -> Path:
    """The Python of the environment `name`, made when it is not there. torch comes first and pinned: others would bring its CUDA build.
    `unwanted` packages, brought by others and built for another torch, are removed."""
    if not requirements:
        return Path(sys.executable)
    folder = BUILD / "environments" / name
    python, ready = folder / "bin" / "python", folder / "ready"
    if not ready.is_file():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        pinned = [requirement for requirement in requirements if requirement.startswith("torch==")]
        constraints = folder / "constraints.txt"
        constraints.write_text("\n".join(pinned) + "\n")
        for step in (pinned, list(requirements)):
            subprocess.run([*install, "-c", constraints, *step], check=True, env=os.environ | variables)
        if unwanted:
            subprocess.run([python, "-m", "pip", "uninstall", "--quiet", "--yes", *unwanted], check=True)
        ready.touch()
    return python


def prepared(name: str, precision: str, model_dir: Path) -> tuple[Path, Path]:
    """(Python, converted model), made when they are not there."""
    adapter = importlib.import_module(f"adapters.{name}")
    python = environment(name, adapter.REQUIREMENTS, getattr(adapter, "BUILD_ENVIRONMENT", {}))
    out = BUILD / "models" / model_dir.name / f"{name}-{precision}"
    if not out.exists():
        converter = getattr(adapter, "CONVERTER_REQUIREMENTS", None)
        unwanted = getattr(adapter, "CONVERTER_UNWANTED", ())
        convert_python = environment(f"{name}-converter", converter, {}, unwanted) if converter else python
        partial = out.with_name(out.name + ".partial")
        subprocess.run(["rm", "-rf", partial], check=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([convert_python, HERE / "worker.py", "prepare", name, model_dir, precision, partial], check=True)
        partial.rename(out)
    return python, out


def model_folder(shape: str) -> Path:
    """build/peers/llama-<shape>: random weights and a tokenizer, which converters want."""
    folder = BUILD / f"llama-{shape}"
    if not (folder / "tokenizer.json").is_file():
        subprocess.run([sys.executable, HERE.parent / "make_model.py", shape, folder, "--tokenizer"], check=True)
    return folder


def read_whole(path: Path) -> None:
    """Brings the files into the page cache."""
    for file in path.rglob("*"):
        if file.is_file():
            with file.open("rb", buffering=0) as handle:
                while handle.read(1 << 24):
                    pass


def measured(name: str, python: Path, path: Path, work: Workload) -> dict[str, Any]:
    """The figures of one process, or `error`."""
    busy = Busy()
    spec = json.dumps(asdict(work) | {"spawned_s": time.monotonic()})
    try:
        command = [python, HERE / "worker.py", "measure", name, path, spec]
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"took more than {TIMEOUT_S} s"}
    if done.returncode != 0:
        return {"error": done.stderr[-2000:]}
    return json.loads(done.stdout.strip().splitlines()[-1]) | busy.of_others()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["prepare", "measure"])
    parser.add_argument("--shape", default="0.5b")
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    model_dir = model_folder(args.shape)
    ready = []
    for name, precision in parse_peers(args.peers):
        try:
            ready.append((name, precision, *prepared(name, precision, model_dir)))
            print(f"ready: {name} {precision}", file=sys.stderr)
        except (subprocess.CalledProcessError, OSError):
            traceback.print_exc()
    if args.verb == "measure":
        measure_all(ready, args, model_dir)


def measure_all(ready: list[tuple[str, str, Path, Path]], args: argparse.Namespace, model_dir: Path) -> None:
    from friendli_runtime import _core

    vocab_size = json.loads((model_dir / "config.json").read_text())["vocab_size"]
    head = {"model": model_dir.name, "commit": commit(), "cpu": cpu_name(), "threads": args.threads}
    with (results_dir() / "peers.jsonl").open("a") as file:
        for round_idx in range(args.rounds):
            for name, precision, python, path in ready:
                read_whole(path)
                limits = _core.measure_limits(args.threads)
                figures = measured(name, python, path, Workload(vocab_size, args.threads, seed=round_idx))
                line = head | {"peer": name, "precision": precision, "round": round_idx, **limits, **figures}
                file.write(json.dumps(line) + "\n")
                file.flush()
                shown = {key: round(value, 2) for key, value in line.items() if isinstance(value, float)}
                print(name, precision, round_idx, shown, line.get("error", ""), file=sys.stderr)


if __name__ == "__main__":
    main()
