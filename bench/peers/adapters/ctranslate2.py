"""CTranslate2: static batches, converted from the transformers model."""

from __future__ import annotations

import json
from pathlib import Path

from workload import Emit, Workload

REQUIREMENTS = ("torch==2.13.0", "transformers==5.23.0", "ctranslate2==4.8.5")
PRECISIONS = ("fp32", "int8")


def prepare(model_dir: Path, precision: str, out: Path) -> None:
    from ctranslate2.converters import TransformersConverter

    quantization = {"fp32": "float32", "int8": "int8"}[precision]
    TransformersConverter(str(model_dir), low_cpu_mem_usage=True).convert(str(out), quantization=quantization)


class _Engine:
    def __init__(self, path: Path, work: Workload) -> None:
        import ctranslate2

        self._generator = ctranslate2.Generator(str(path), device="cpu", inter_threads=1, intra_threads=work.num_threads)
        self._vocabulary = json.loads((path / "vocabulary.json").read_text())

    def generate(self, prompts: list[list[int]], num_new: int, emit: Emit) -> None:
        def on_step(result: object) -> bool:
            emit(result.batch_id, result.token_id)  # type: ignore[attr-defined]
            return False

        texts = [[self._vocabulary[token] for token in prompt] for prompt in prompts]
        self._generator.generate_batch(
            texts,
            max_length=num_new,
            min_length=num_new,
            sampling_topk=1,
            beam_size=1,
            callback=on_step,
            include_prompt_in_result=False,
            end_token=[],
        )


def load(path: Path, work: Workload) -> _Engine:
    return _Engine(path, work)
