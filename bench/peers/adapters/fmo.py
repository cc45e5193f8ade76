"""fmo itself, in this repository's environment: the engine behind `fmo serve`, without its HTTP server, as the peers are measured."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from workload import Emit, Workload

REQUIREMENTS = ()  # the environment that runs run.py
PRECISIONS = ("bf16", "8bit", "4bit")
BLOCK_SIZE, MAX_NUM_TOKENS = 16, 512


def prepare(model_dir: Path, precision: str, out: Path) -> None:
    from friendli_compile.compile import CompileOptions, compile_model

    is_quantized = precision.endswith("bit")
    compile_model(
        CompileOptions(
            model=str(model_dir),
            output_dir=out,
            dtype="bf16" if is_quantized else precision,
            quantize=precision if is_quantized else None,
            quality=None,  # random weights have none
            self_check=False,
        )
    )


class _Engine:
    def __init__(self, path: Path, work: Workload) -> None:
        from friendli_runtime.artifact import Artifact
        from friendli_runtime.engine import Engine
        from friendli_runtime.executor import load_executor

        artifact = Artifact.open(path)
        max_num_seqs = max(work.batches)
        num_tokens = max(work.max_len, max_num_seqs * (work.batch_prompt + work.batch_new))
        executor = load_executor(
            artifact,
            num_threads=work.num_threads,
            max_num_tokens=MAX_NUM_TOKENS,
            max_num_logits=max_num_seqs,
            num_blocks=num_tokens // BLOCK_SIZE + 2 * max_num_seqs,
        )
        self._engine = Engine(
            executor,
            max_num_seqs=max_num_seqs,
            max_num_tokens=MAX_NUM_TOKENS,
            max_context_len=artifact.max_context_len,
            vocab_size=artifact.vocab_size,
        )
        self._engine.start()

    def generate(self, prompts: list[list[int]], num_new: int, emit: Emit) -> None:
        from friendli_runtime.sampling import SamplingParams

        params = SamplingParams(max_tokens=num_new, temperature=0.0, ignore_eos=True)
        done = threading.Event()
        num_open = len(prompts)

        def sink_of(seq: int) -> Any:
            def sink(outputs: list[Any]) -> None:
                nonlocal num_open
                for output in outputs:
                    if output.token_id is not None:
                        emit(seq, output.token_id)
                    num_open -= output.finish_reason is not None
                if num_open == 0:
                    done.set()

            return sink

        for seq, prompt in enumerate(prompts):
            self._engine.submit(prompt, params, sink_of(seq))
        done.wait()


def load(path: Path, work: Workload) -> _Engine:
    return _Engine(path, work)
