"""What the mask of a constrained answer costs: the time of `SampleMasks.advance`, token by token, at a vocabulary of 32k.

    python bench/serve/masks.py [--vocab 32768] [--answers 40] [--dry-run]

A line goes to bench/results/<device>/masks.jsonl. The tokenizer is byte-level BPE, trained on Python's standard library. Each schema is
followed twice: by tokens drawn at random from those that the mask allows (what a model at a high temperature does; most ways through the
grammar), and by the tokens of a document that satisfies it (what a good model writes). Times are of one thread, in microseconds.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np
from friendli_runtime.structured.constraint import Constraint, ConstraintCompiler
from friendli_runtime.structured.errors import ConstraintFailed
from friendli_runtime.structured.response_format import ConstraintLimits, grammar_of
from friendli_runtime.tokenizer.tokenizer import Tokenizer
from machine import Busy, commit, cpu_name, results_dir
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, pre_tokenizers, trainers
from tokenizers.models import BPE

END = "<|end|>"
MAX_TOKENS = 300
STRING, NUMBER = {"type": "string"}, {"type": "number"}
PERSON = {
    "type": "object",
    "properties": {
        "name": STRING,
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "email": {"type": "string", "pattern": "[a-z]{1,20}@[a-z]{1,20}[.](com|org)"},
        "tags": {"type": "array", "items": {"enum": ["new", "old", "gone"]}, "maxItems": 4},
    },
    "required": ["name", "age", "email", "tags"],
    "additionalProperties": False,
}
TREE = {
    "$defs": {"node": {"type": "object", "properties": {"v": NUMBER, "kids": {"type": "array", "items": {"$ref": "#/$defs/node"}}}}},
    "$ref": "#/$defs/node",
}
CALL = {
    "anyOf": [
        {
            "type": "object",
            "properties": {
                "tool": {"const": name},
                "arguments": {"type": "object", "properties": {key: STRING, "count": {"type": "integer"}}},
            },
            "required": ["tool", "arguments"],
            "additionalProperties": False,
        }
        for name, key in (("search", "query"), ("open", "path"), ("send", "message"))
    ]
}
PERSON_TEXT: Any = {"name": "Ada Lovelace", "age": 36, "email": "ada@engine.org", "tags": ["new", "old"]}
CASES: dict[str, tuple[dict[str, Any], Any]] = {
    "object": ({"type": "json_object"}, {"title": "On engines", "pages": [1, 2.5, None], "more": {"deep": [True, 'text with \\ and "']}}),
    "person": ({"type": "json_schema", "json_schema": {"schema": PERSON}}, PERSON_TEXT),
    "people": ({"type": "json_schema", "json_schema": {"schema": {"type": "array", "items": PERSON}}}, [PERSON_TEXT] * 3),
    "tree": ({"type": "json_schema", "json_schema": {"schema": TREE}}, {"v": 1.5, "kids": [{"v": -2, "kids": []}, {"v": 3e4, "kids": []}]}),
    "call": ({"type": "json_schema", "json_schema": {"schema": CALL}}, {"tool": "open", "arguments": {"path": "/etc/hosts", "count": 3}}),
}


def make_tokenizer(vocab_size: int) -> Tokenizer:
    backend = Backend(BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train([str(path) for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))], trainer)
    return Tokenizer.from_json(backend.to_str())


def follow_at_random(constraint: Constraint, end_id: int, draw: random.Random) -> list[float]:
    """Times of the masks of one answer of random tokens."""
    masks, mask, times_us = constraint.sample(), constraint.first_mask, []
    for _ in range(MAX_TOKENS):
        allowed = np.flatnonzero(np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little"))
        token_id = int(allowed[draw.randrange(len(allowed))])
        if token_id == end_id:
            break
        started_s = time.perf_counter()
        try:
            mask = masks.advance(token_id)
        except ConstraintFailed:  # random text may reach a dead end of the limits
            break
        times_us.append((time.perf_counter() - started_s) * 1e6)
    return times_us


def follow_text(constraint: Constraint, token_ids: list[int]) -> list[float]:
    """Times of the masks of one answer that is known."""
    masks, times_us = constraint.sample(), []
    for token_id in token_ids:
        started_s = time.perf_counter()
        masks.advance(token_id)
        times_us.append((time.perf_counter() - started_s) * 1e6)
    return times_us


def spread(times_us: list[float]) -> dict[str, float]:
    p50, p99, p999 = np.percentile(times_us, [50, 99, 99.9])
    return {"num": len(times_us), "p50": round(p50, 1), "p99": round(p99, 1), "p999": round(p999, 1), "max": round(max(times_us), 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--vocab", type=int, default=32768)
    parser.add_argument("--answers", type=int, default=40)
    parser.add_argument("--dry-run", action="store_true", help="print the line, do not append it")
    args = parser.parse_args()
    tokenizer = make_tokenizer(args.vocab)
    vocab_size = tokenizer.backend.num_tokens
    end_id = tokenizer.backend.token_to_id(END)
    compiler = ConstraintCompiler(tokenizer, vocab_size, [end_id])
    compiler.warm_up()
    busy, draw = Busy(), random.Random(1)
    at_random: list[float] = []
    text: list[float] = []
    cases: dict[str, float] = {}
    for name, (form, document) in CASES.items():
        grammar = grammar_of(form, ConstraintLimits())
        assert grammar is not None
        constraint = compiler.compile(grammar, [end_id])
        token_ids = tokenizer.encode(json.dumps(document), add_special_tokens=False)
        own = [one for _ in range(args.answers) for one in follow_at_random(constraint, end_id, draw)]
        text += [one for _ in range(args.answers) for one in follow_text(constraint, token_ids)]
        cases[name] = spread(own)["p99"]
        at_random += own
    line = {"commit": commit(), "cpu": cpu_name(), "python": platform.python_version(), "vocab_size": vocab_size}
    figures = {"random_us": spread(at_random), "text_us": spread(text), "random_p99_us": cases}
    report = json.dumps({**line, **figures, **busy.of_others()})
    print(report)
    if not args.dry_run:
        with (results_dir() / "masks.jsonl").open("a") as file:
            file.write(report + "\n")


if __name__ == "__main__":
    main()
