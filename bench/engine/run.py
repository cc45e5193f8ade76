"""Measures a Llama shape end to end with `fmo bench` and appends the figures to bench/results/<device>/engine.jsonl.

    python bench/engine/run.py [--shape 0.5b] [--threads 2] [--rounds 5]

Makes the model (bench/make_model.py) and compiles it into build/ when they are not there. Each line has the commit, the CPU and
`others_cpu`: the cores that other processes kept busy during the run, so that a noisy run can be told from a quiet one.
"""

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
FMO = [sys.executable, "-c", "from friendli_compile.cli import main; main()"]


def artifact_of(shape: str) -> Path:
    """The compiled artifact of a shape, made if it is not there."""
    model, artifact = ROOT / "build" / f"llama-{shape}", ROOT / "build" / f"llama-{shape}-artifact"
    if not (artifact / "manifest.json").is_file():
        subprocess.run([sys.executable, ROOT / "bench" / "make_model.py", shape, model], check=True)
        subprocess.run([*FMO, "compile", model, "--output-dir", artifact, "--force"], check=True)
    return artifact


def cpu_name() -> str:
    found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    return found[1].strip() if found else "unknown"


def busy_s() -> float:
    """Seconds that all cores have been busy since boot."""
    user, nice, system, _idle, _iowait, irq, softirq, *_ = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def own_busy_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="0.5b")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    artifact = artifact_of(args.shape)
    busy_before_s, own_before_s, started_s = busy_s(), own_busy_s(), time.monotonic()
    command = [*FMO, "bench", artifact, "--threads", str(args.threads), "--rounds", str(args.rounds), "--json"]
    figures = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    others_cpu = (busy_s() - busy_before_s - (own_busy_s() - own_before_s)) / (time.monotonic() - started_s)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
    line = {
        "model": f"llama-{args.shape}",
        "dtype": "bf16",
        "commit": commit,
        "cpu": cpu_name(),
        "others_cpu": round(others_cpu, 3),
        **figures,
    }
    device = re.sub(r"[^a-z0-9]+", "-", f"{cpu_name()} {os.cpu_count()} cores".lower()).strip("-")
    results = ROOT / "bench" / "results" / device / "engine.jsonl"
    results.parent.mkdir(parents=True, exist_ok=True)
    with results.open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line, indent=2))


if __name__ == "__main__":
    main()
