"""OpenVINO GenAI: continuous batching with paged attention, exported by optimum-intel (which wants an older transformers)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from workload import Emit, Workload

REQUIREMENTS = ("torch==2.13.0", "openvino-genai==2026.4.1.0", "openvino==2026.4.1", "openvino-tokenizers==2026.4.1.0")
CONVERTER_REQUIREMENTS = ("torch==2.13.0", "optimum-intel==2.2.0", "openvino==2026.4.1", "openvino-tokenizers==2026.4.1.0", "nncf==3.4.0")
CONVERTER_UNWANTED = ("torchvision",)  # importing it beside another torch breaks the export
PRECISIONS = ("fp16", "int8", "int4")


def prepare(model_dir: Path, precision: str, out: Path) -> None:
    command = [Path(sys.executable).parent / "optimum-cli", "export", "openvino", "--model", model_dir]
    options = ["--task", "text-generation-with-past", "--weight-format", precision, out]
    subprocess.run([*command, *options], check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})


class _Engine:
    def __init__(self, path: Path, work: Workload) -> None:
        import openvino_genai

        self._og = openvino_genai
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size = 1  # GB
        scheduler.max_num_seqs = max(work.batches)
        scheduler.max_num_batched_tokens = 2048
        scheduler.enable_prefix_caching = False
        settings = {"INFERENCE_NUM_THREADS": work.num_threads}
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(path, scheduler, "CPU", settings)
        self._num_requests = 0

    def generate(self, prompts: list[list[int]], num_new: int, emit: Emit) -> None:
        import numpy as np
        import openvino

        config = self._og.GenerationConfig(max_new_tokens=num_new, ignore_eos=True, do_sample=False)
        handles = []
        for prompt in prompts:
            self._num_requests += 1
            handles.append(self._pipeline.add_request(self._num_requests, openvino.Tensor(np.array([prompt], np.int64)), config))
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            for seq, handle in enumerate(handles):
                while handle.can_read():
                    for output in handle.read().values():
                        for token in output.generated_ids:
                            emit(seq, token)


def load(path: Path, work: Workload) -> _Engine:
    return _Engine(path, work)
