"""Every architecture that we promise, quantized: compiled as users compile it, compared with transformers on what is stored, and served.

The compiler's own self-check compares logits without rounded activations exactly. Here the artifact is served as users serve it, with
rounded activations and the engine: its logits stay near transformers' on the stored weights, and the engine gives the executor's tokens.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from friendli_runtime import LLM, SamplingParams
from friendli_runtime.artifact import Artifact
from friendli_runtime.executor import load_executor
from frontend.architectures import ARCHITECTURES, VARIANTS, VOCAB_SIZE
from models.scripted import save_tokenizer
from self_check.conftest import one_torch_thread  # noqa: F401  (a fixture that is used by being here)

from friendli_compile.quality.gate import QualityOptions
from friendli_compile.quality.probes import MIN_TOKENS

from .compiled import compile_traced
from .packed import run_greedy

PROMPT_LENGTHS = [5, 33]
FIRST_CHUNKS = [5, 20]
NUM_DECODE_STEPS = 8

MAX_RELATIVE_ERROR = 0.15  # of the logits of half of the positions: what rounding activations costs models so small

CI = [("llama", "4bit"), ("gpt2", "8bit"), ("mixtral", "4bit"), ("deepseek_v3", "int8"), ("gpt_oss", "fp8")]
FAMILIES = ("llama", "gemma2", "gpt2", "opt", "falcon", "mpt", "phi3", "cohere2", "mixtral", "gpt_oss", "deepseek_v3")
SWEEP = [
    *((name, scheme) for name in (*ARCHITECTURES, *VARIANTS) for scheme in ("4bit", "8bit")),
    *((name, scheme) for name in FAMILIES for scheme in ("int8", "fp8", "mxfp4", "w4a16:g16z")),
]


@pytest.mark.parametrize(("name", "scheme"), [*CI, *(pytest.param(*case, marks=pytest.mark.slow) for case in SWEEP if case not in CI)])
def test_an_architecture_is_quantized_checked_and_served(name: str, scheme: str, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    save_tokenizer(tmp_path / "model")
    report = compile_traced(name, tmp_path, quantize=scheme, quality=QualityOptions(num_tokens=MIN_TOKENS))
    assert report.manifest["self_check"]["status"] == "passed" and report.manifest["quality"]["status"] == "measured"
    artifact = Artifact.open(report.artifact)
    sizes = {"max_num_tokens": 64, "max_num_logits": 64, "num_blocks": 16}
    prompts = [np.random.default_rng(i).integers(3, VOCAB_SIZE, length).tolist() for i, length in enumerate(PROMPT_LENGTHS)]
    served = run_greedy(load_executor(artifact, **sizes), prompts, NUM_DECODE_STEPS, FIRST_CHUNKS)
    exact = load_executor(artifact, **sizes, kv_dtype="f32", quantize_activations=False)
    checked = run_greedy(exact, [seq.tokens for seq in served], 0, FIRST_CHUNKS)
    errors = [relative_error(*pair) for a, b in zip(served, checked, strict=True) for pair in zip(a.logits, b.logits, strict=True)]
    assert np.median(errors) <= MAX_RELATIVE_ERROR
    with LLM(report.artifact, num_threads=1) as llm:
        outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=NUM_DECODE_STEPS, ignore_eos=True))
    assert [prompt + output.outputs[0].token_ids for prompt, output in zip(prompts, outputs, strict=True)] == [seq.tokens for seq in served]


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))
