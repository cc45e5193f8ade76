"""Measures a shape of bench/make_model.py end to end with `fmo bench` and appends the figures to bench/results/<device>/engine.jsonl.

    python bench/engine/run.py [--shape 0.5b] [--quantize 4bit] [--threads 2] [--rounds 5]

Makes the model and compiles it into build/ when they are not there. Each line has the commit, the CPU and `others_cpu`: the cores that
other processes kept busy during the run, so that a noisy run can be told from a quiet one. `decode_share_of_limit` is against bandwidth ÷
bytes of the weights that a step reads; of experts, those that it uses.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from machine import ROOT, Busy, commit, cpu_name, record
from make_model import SHAPES

FMO = [sys.executable, "-c", "from friendli_compile.cli import main; main()"]


def artifact_of(shape: str, quantize: str) -> Path:
    """The compiled artifact of a shape, made if it is not there."""
    name = f"{SHAPES[shape].name}-{shape}"
    model, artifact = ROOT / "build" / name, ROOT / "build" / f"{name}-{quantize}"
    if not (artifact / "manifest.json").is_file():
        if not (model / "config.json").is_file():
            subprocess.run([sys.executable, ROOT / "bench" / "make_model.py", shape, model], check=True)
        subprocess.run([*FMO, "compile", model, "--quantize", quantize, "--output-dir", artifact, "--force"], check=True)
    return artifact


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="0.5b")
    parser.add_argument("--quantize", choices=("none", "8bit", "4bit"), default="none")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    artifact = artifact_of(args.shape, args.quantize)
    busy = Busy()
    command = [*FMO, "bench", artifact, "--threads", str(args.threads), "--rounds", str(args.rounds), "--json"]
    figures = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    line = {
        "model": f"{SHAPES[args.shape].name}-{args.shape}",
        "dtype": "bf16" if args.quantize == "none" else args.quantize,
        "commit": commit(),
        "cpu": cpu_name(),
        **busy.of_others(),
        **figures,
    }
    record("engine.jsonl", line)


if __name__ == "__main__":
    main()
