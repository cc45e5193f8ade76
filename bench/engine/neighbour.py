"""Measures what decoding loses beside a process that keeps one core busy; appends to bench/results/<device>/neighbour.jsonl.

    python bench/engine/neighbour.py ARTIFACT [--threads 2] [--rounds 5] [--tokens 96]

Each round decodes one sequence alone and beside the neighbour. The system gives the neighbour half of its core, so with two threads on two
cores `fair_ratio` of the throughput is left where work flows to the free core, and half of it where every call waits for the slower
thread.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from friendli_runtime.artifact import Artifact
from machine import Busy, facts_of, record
from tokens import answer, open_engine

PROMPT_TOKENS = 16
SETTLE_S = 0.5
"""Until the system has moved the threads after the neighbour came or went."""


@contextmanager
def busy_core(core: int) -> Iterator[None]:
    """A process that never sleeps, on one core."""
    program = f"import os; os.sched_setaffinity(0, {{{core}}})\nwhile True: pass"
    process = subprocess.Popen([sys.executable, "-c", program])
    try:
        time.sleep(SETTLE_S)
        yield
    finally:
        process.kill()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=96, help="of each answer")
    args = parser.parse_args()
    artifact, prompt, core = Artifact.open(args.artifact), list(range(PROMPT_TOKENS)), min(os.sched_getaffinity(0))
    alone, beside, busy = [], [], Busy()
    with open_engine(artifact, args.threads) as engine:
        answer(engine, prompt, args.tokens)
        for _ in range(args.rounds):
            time.sleep(SETTLE_S)
            alone.append(1 / answer(engine, prompt, args.tokens).token_s)
            with busy_core(core):
                beside.append(1 / answer(engine, prompt, args.tokens).token_s)
    ratios = [with_neighbour / without for with_neighbour, without in zip(beside, alone, strict=True)]
    line = {
        **facts_of(artifact.manifest),
        "threads": args.threads,
        "num_tokens": args.tokens,
        "rounds": args.rounds,
        **busy.of_others(),
        "decode_tok_s": round(statistics.median(alone), 1),
        "neighbour_decode_tok_s": round(statistics.median(beside), 1),
        "ratio": round(statistics.median(ratios), 3),
        "worst_ratio": round(min(ratios), 3),
        "fair_ratio": round(1 - 0.5 / min(args.threads, len(os.sched_getaffinity(0))), 3),
    }
    record("neighbour.jsonl", line)


if __name__ == "__main__":
    main()
