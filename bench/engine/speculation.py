"""Measures guessed tokens: speed with them over speed without, on text that copies itself and on text that does not.

    python bench/engine/speculation.py ARTIFACT [--threads 2] [--rounds 6] [--tokens 160] [--ngram-size 3]

Appends a line to bench/results/<device>/speculation.jsonl. The text of the answers is given (`forced_output_tokens`), so that the figures
are of the engine and not of what a model likes to say; the model computes every token all the same. *copy*: the prompt again, one token in
40 changed, as when a file is edited. *random*: every token at random. *misleading*: random tokens of a small alphabet, where runs of two
come again and hardly ever go on in the same way.
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

TOKENS_PER_EDIT = 40
SMALL_ALPHABET = 32


def edited(rng: random.Random, tokens: list[int], vocab_size: int) -> list[int]:
    """The same with one token in `TOKENS_PER_EDIT` replaced, left out or doubled."""
    result = []
    for token_id in tokens:
        if rng.randrange(TOKENS_PER_EDIT):
            result.append(token_id)
        else:
            result += rng.choice([[rng.randrange(vocab_size)], [], [token_id, token_id]])
    return result


def text(kind: str, length: int, rng: random.Random, vocab_size: int) -> tuple[list[int], list[int]]:
    """(prompt, answer) of a kind, of about `length` tokens each."""
    alphabet = SMALL_ALPHABET if kind == "misleading" else vocab_size
    prompt = [rng.randrange(alphabet) for _ in range(length)]
    return prompt, edited(rng, prompt, vocab_size) if kind == "copy" else [rng.randrange(alphabet) for _ in range(length)]


def speedup(kind: str, length: int, guessing: Engine, plain: Engine, num_rounds: int) -> dict[str, float]:
    """Median of the ratios of neighbouring answers, the first token left out, and what became of the guesses."""
    rng, ratios, before = random.Random(1), [], guessing.stats()
    for round_idx in range(num_rounds):
        prompt, given = text(kind, length, rng, guessing.vocab_size)
        pair = (guessing, plain) if round_idx % 2 else (plain, guessing)
        got = {engine: answer(engine, prompt, len(given), given) for engine in pair}
        assert got[guessing].token_ids == got[plain].token_ids == given
        ratios.append(got[plain].token_s / got[guessing].token_s)
    after = guessing.stats()
    num_proposed, num_accepted = (after[key] - before[key] for key in ("num_proposed_tokens", "num_accepted_tokens"))
    return {
        f"{kind}_speedup": round(statistics.median(ratios), 3),
        f"{kind}_speedup_worst": round(min(ratios), 3),
        f"{kind}_guessed_per_token": round(num_proposed / (num_rounds * length), 3),
        f"{kind}_accepted_share": round(num_accepted / max(1, num_proposed), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=160, help="of each answer")
    parser.add_argument("--ngram-size", type=int, default=3)
    args = parser.parse_args()
    artifact = Artifact.open(args.artifact)
    with open_engine(artifact, args.threads, ngram_size=args.ngram_size) as guessing, open_engine(artifact, args.threads) as plain:
        for engine in (guessing, plain):
            answer(engine, list(range(args.tokens)), 8)
        busy, figures = Busy(), {}
        for kind in ("copy", "random", "misleading"):
            figures |= speedup(kind, args.tokens, guessing, plain, args.rounds)
    line = {
        **facts_of(artifact.manifest),
        "threads": args.threads,
        "num_tokens": args.tokens,
        "rounds": args.rounds,
        "ngram_size": args.ngram_size,
        **busy.of_others(),
        **figures,
    }
    record("speculation.jsonl", line)


if __name__ == "__main__":
    main()
