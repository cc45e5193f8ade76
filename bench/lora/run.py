"""Measures what LoRA adapters cost a step of 32 decoding sequences, and appends the figures to bench/results/<device>/lora.jsonl.

    python bench/lora/run.py ARTIFACT [--threads 2] [--rank 16] [--adapters 8] [--rounds 40]

Three kinds of steps take turns, so that whatever disturbs the machine disturbs all of them: `base` on an executor that never saw an
adapter, `idle` on one that has adapters loaded and no sequence that uses them, and `adapters`, where the sequences use them in turn. Every
adapter changes all linear layers but the output projection. The figures are medians of ratios of neighbouring steps.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from friendli_runtime.artifact import Artifact
from friendli_runtime.executor import load_executor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from machine import Busy, facts_of, record

NUM_SEQS = 32
CONTEXT_LEN = 64
BLOCKS_PER_SEQ = 8
HEADS = ("lm_head", "embed_out")


def open_executor(artifact: Artifact, num_threads: int) -> Any:
    num_blocks = NUM_SEQS * BLOCKS_PER_SEQ
    return load_executor(artifact, num_threads=num_threads, max_num_tokens=64, max_num_logits=NUM_SEQS, num_blocks=num_blocks)


def load_adapters(executor: Any, num_adapters: int, rank: int) -> None:
    rng = np.random.default_rng(0)
    shapes = {name: shape for name, shape in executor.adapter_modules().items() if name not in HEADS}
    for slot in range(num_adapters):
        modules = []
        for name, (num_out, num_in) in shapes.items():
            down, up = rng.standard_normal((rank, num_in), np.float32), rng.standard_normal((num_out, rank), np.float32)
            modules.append((name, down / num_in, up, 0.01))
        executor.load_adapter(slot, modules)


def step_s(executor: Any, slots: np.ndarray | None) -> float:
    """Seconds of one step: a token for each sequence."""
    rows = np.arange(NUM_SEQS, dtype=np.int32)
    tables = np.arange(NUM_SEQS * BLOCKS_PER_SEQ, dtype=np.int32).reshape(NUM_SEQS, BLOCKS_PER_SEQ)
    positions = np.full(NUM_SEQS, CONTEXT_LEN, np.int32)
    started = time.perf_counter()
    executor.forward(rows + 5, positions, np.arange(NUM_SEQS + 1, dtype=np.int32), positions, tables, rows, slots)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=40)
    args = parser.parse_args()
    artifact = Artifact.open(args.artifact)
    plain, loaded = open_executor(artifact, args.threads), open_executor(artifact, args.threads)
    load_adapters(loaded, args.adapters, args.rank)
    slots = (np.arange(NUM_SEQS) % args.adapters).astype(np.int32)
    kinds = {"base": (plain, None), "idle": (loaded, None), "adapters": (loaded, slots)}
    for executor, wanted in kinds.values():
        step_s(executor, wanted)
    busy = Busy()
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(args.rounds):
        for kind, (executor, wanted) in kinds.items():
            times[kind].append(step_s(executor, wanted))
    ratio = {kind: [mine / base for mine, base in zip(times[kind], times["base"], strict=True)] for kind in ("idle", "adapters")}
    line = {
        **facts_of(artifact.manifest),
        "threads": args.threads,
        **busy.of_others(),
        "num_seqs": NUM_SEQS,
        "num_adapters": args.adapters,
        "rank": args.rank,
        "adapter_mb": round(loaded.memory()["adapter_bytes"] / 1e6, 1),
        "base_step_ms": round(1e3 * statistics.median(times["base"]), 3),
        "base_step_ms_best": round(1e3 * min(times["base"]), 3),
        "idle_over_base": round(statistics.median(ratio["idle"]), 3),
        "adapters_over_base": round(statistics.median(ratio["adapters"]), 3),
        "idle_over_base_of_best": round(min(times["idle"]) / min(times["base"]), 3),
        "adapters_over_base_of_best": round(min(times["adapters"]) / min(times["base"]), 3),
    }
    record("lora.jsonl", line)


if __name__ == "__main__":
    main()
