"""Every architecture that we promise: the compiled artifact gives transformers' numbers.

Three sequences in one packed batch, chunked prefill, 16 greedy decode steps on a paged KV cache with scattered blocks; float32. The logits
of every position are compared with transformers' own forward of the whole sequence. FMO_BLESS=1 rewrites docs/architectures.md.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from friendli_runtime.artifact import Artifact
from friendli_runtime.executor import load_executor
from frontend.architectures import ARCHITECTURES, VARIANTS, VOCAB_SIZE, tiny_model

from .compiled import compile_traced
from .features import features_of
from .packed import run_greedy

MAX_ABS_ERROR = 2e-4
PROMPT_LENGTHS = [5, 17, 33]
FIRST_CHUNKS = [5, 17, 20]
NUM_DECODE_STEPS = 16
DOCUMENT = Path(__file__).parents[2] / "docs" / "architectures.md"
ROWS: dict[str, str] = {}


def names() -> list[object]:
    slow = pytest.mark.slow
    return [*ARCHITECTURES, *(pytest.param(name, marks=slow) for name in VARIANTS)]


@pytest.mark.parametrize("name", names())
def test_the_artifact_gives_the_logits_and_greedy_tokens_of_transformers(name: str, tmp_path: Path) -> None:
    model = tiny_model(name)
    artifact = Artifact.open(compile_traced(name, tmp_path, dtype="fp32", self_check=False).artifact)
    prompts = [np.random.default_rng(i).integers(3, VOCAB_SIZE, length).tolist() for i, length in enumerate(PROMPT_LENGTHS)]
    executor = load_executor(artifact, max_num_tokens=64, max_num_logits=64, num_blocks=64)
    seqs = run_greedy(executor, prompts, NUM_DECODE_STEPS, FIRST_CHUNKS)
    max_abs_error = 0.0
    for seq, prompt in zip(seqs, prompts, strict=True):
        assert len(seq.logits) == len(prompt) + NUM_DECODE_STEPS
        with torch.no_grad():
            expected = model(input_ids=torch.tensor([seq.tokens]), use_cache=False).logits[0].numpy()
        actual = np.stack(seq.logits)
        max_abs_error = max(max_abs_error, float(np.abs(actual - expected).max()))
        np.testing.assert_array_equal(actual.argmax(axis=1), expected.argmax(axis=1))
    assert max_abs_error <= MAX_ABS_ERROR
    ROWS[name] = (
        f"| {name} | {artifact.manifest['model']['architecture']} | {', '.join(features_of(artifact.plan))} | {max_abs_error:.1e} |"
    )


def test_the_document_lists_every_architecture() -> None:
    if os.environ.get("FMO_BLESS") == "1" and set(ROWS) >= set(ARCHITECTURES):
        DOCUMENT.write_text(document())
    text = DOCUMENT.read_text()
    missing = [name for name in ARCHITECTURES if f"| {name} |" not in text]
    assert not missing, f"{missing}: run `FMO_BLESS=1 pytest tests/e2e/test_architectures.py`"


def document() -> str:
    """docs/architectures.md."""
    head = [
        "# Architectures",
        "",
        "Each row is a tiny random-weight model of the architecture, compiled in fp32 and compared with transformers in float32",
        "by `tests/e2e/test_architectures.py`: three sequences in one packed batch, chunked prefill, 16 greedy decode steps on a",
        "paged KV cache. The error is the largest absolute difference of any logit at any position; logits of these models reach",
        "2 to 4. Greedy tokens are equal. An architecture that is not listed works when it can be traced, or is refused by",
        "`fmo check` with module, op and source line. All of them, quantized with `4bit` and `8bit`, pass the self-check and are served by",
        "`tests/e2e/test_quantized_architectures.py` (a cross-section, and all with `pytest -m slow`).",
        "",
        "| model | class | features exercised | max abs error |",
        "|---|---|---|---|",
    ]
    listed = [ROWS[name] for name in ARCHITECTURES]
    variants = [ROWS[name] for name in VARIANTS if name in ROWS]
    more = ["", "Variants and neighbours (`pytest -m slow`):", "", *head[-2:], *variants] if variants else []
    return "\n".join([*head, *listed, *more]) + "\n"
