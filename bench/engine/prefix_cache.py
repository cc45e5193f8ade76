"""Measures the prefix cache: how soon a known prompt has its first token, and what the cache costs when nothing is known.

    python bench/engine/prefix_cache.py ARTIFACT [--threads 2] [--rounds 12]

Appends a line to bench/results/<device>/prefix_cache.jsonl. *Hit*: the same prompt again; the first token's time over the time of a
decode step behind the same prompt, for prompts that end at all places within a block. *Miss*: random prompts, asked in turn of an
engine with the cache and one without; and the share of a step that is not the model's, which is where the cache does its work.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from pathlib import Path

from friendli_runtime.artifact import Artifact
from friendli_runtime.engine import Engine

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from engine.tokens import answer, open_engine
from machine import Busy, facts_of, record

HIT_LENS = range(240, 272, 5)
"""Prompt tokens: different remainders of a block."""
MISS_LEN = 256
NUM_DECODED = 24


def random_prompt(rng: random.Random, length: int, vocab_size: int) -> list[int]:
    return [rng.randrange(vocab_size) for _ in range(length)]


def hits(engine: Engine, rng: random.Random, num_rounds: int) -> dict[str, float]:
    """First tokens of known prompts, in decode steps."""
    known, unknown = [], []
    for round_idx in range(num_rounds):
        length = HIT_LENS[round_idx % len(HIT_LENS)]
        prompt = random_prompt(rng, length, engine.vocab_size)
        cold = answer(engine, prompt, NUM_DECODED)
        again = answer(engine, prompt, NUM_DECODED)
        assert again.token_ids == cold.token_ids and again.num_cached_tokens == length - 1
        known.append(again.first_token_s / again.token_s)
        unknown.append(cold.first_token_s / again.token_s)
    return {
        "hit_first_token_in_decode_steps": round(statistics.median(known), 3),
        "hit_first_token_in_decode_steps_worst": round(max(known), 3),
        "miss_first_token_in_decode_steps": round(statistics.median(unknown), 2),
    }


def misses(cached: Engine, plain: Engine, rng: random.Random, num_rounds: int) -> dict[str, float]:
    """Ratios of neighbouring runs on random prompts, and the share of the steps that is not the model's."""
    before = cached.stats()
    ratios = []
    for round_idx in range(num_rounds):
        pair = [(engine, random_prompt(rng, MISS_LEN, engine.vocab_size)) for engine in (cached, plain)]
        times_s = {engine: answer(engine, prompt, 4).times_s[-1] for engine, prompt in pair[:: 1 if round_idx % 2 else -1]}
        ratios.append(times_s[cached] / times_s[plain])
    after = cached.stats()
    assert after["num_cached_tokens"] - before["num_cached_tokens"] < num_rounds, "the prompts were not random"
    busy_s, model_s = (after[key] - before[key] for key in ("busy_s", "model_s"))
    return {
        "miss_with_over_without_cache": round(statistics.median(ratios), 4),
        "outside_model_share_at_most": round((busy_s - model_s) / busy_s, 5),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=12)
    args = parser.parse_args()
    artifact, rng = Artifact.open(args.artifact), random.Random(0)
    with open_engine(artifact, args.threads) as cached, open_engine(artifact, args.threads, has_prefix_cache=False) as plain:
        for engine in (cached, plain):
            answer(engine, random_prompt(rng, MISS_LEN, engine.vocab_size), NUM_DECODED)
        busy = Busy()
        figures = {**hits(cached, rng, args.rounds), **misses(cached, plain, rng, args.rounds)}
    line = {
        **facts_of(artifact.manifest),
        "threads": args.threads,
        **busy.of_others(),
        **figures,
    }
    record("prefix_cache.jsonl", line)


if __name__ == "__main__":
    main()
