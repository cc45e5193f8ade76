"""ONNX Runtime GenAI: static batches; its own model builder converts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from workload import Emit, Workload

REQUIREMENTS = ("torch==2.13.0", "transformers==5.23.0", "onnxruntime-genai==0.18.0", "onnxruntime==1.32.0", "onnx==1.23.2", "onnx_ir")
PRECISIONS = ("fp32", "int8", "int4")


def prepare(model_dir: Path, precision: str, out: Path) -> None:
    builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-m", "local", "-i", model_dir, "-o", out]
    command = [*builder, "-p", precision, "-e", "cpu", "-c", out.with_name(out.name + ".cache")]
    subprocess.run(command, check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})


class _Engine:
    def __init__(self, path: Path, work: Workload) -> None:
        import onnxruntime_genai

        self._og = onnxruntime_genai
        config = onnxruntime_genai.Config(str(path))
        config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": work.num_threads}}}}))
        self._model = onnxruntime_genai.Model(config)

    def generate(self, prompts: list[list[int]], num_new: int, emit: Emit) -> None:
        import numpy as np

        length = len(prompts[0]) + num_new
        params = self._og.GeneratorParams(self._model)
        params.set_search_options(do_sample=False, batch_size=len(prompts), max_length=length, min_length=length)
        generator = self._og.Generator(self._model, params)
        generator.append_tokens(np.array(prompts, np.int32))
        for _ in range(num_new):
            generator.generate_next_token()
            for seq, token in enumerate(generator.get_next_tokens()):
                emit(seq, token)


def load(path: Path, work: Workload) -> _Engine:
    return _Engine(path, work)
