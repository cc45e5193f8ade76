"""A tiny bf16 checkpoint on disk and its trace, made once; tests that damage the checkpoint copy it first."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from frontend.architectures import tiny_model

from friendli_compile.artifact.folder import OutputFolder
from friendli_compile.compile import CompileOptions, CompileReport, build_artifact
from friendli_compile.frontend.source import load_source
from friendli_compile.frontend.trace import trace_model
from friendli_compile.progress import Progress

CompileTraced = Callable[[Path, Path], CompileReport]

TOKENIZER_JSON = '{"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}'


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer llama with tied embeddings, in bf16, with a tokenizer file."""
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny-llama"
    tiny_model("llama", tie_word_embeddings=True).to(torch.bfloat16).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(TOKENIZER_JSON)
    return folder


@pytest.fixture
def copied(tiny_checkpoint: Path, tmp_path: Path) -> Callable[[], Path]:
    """Makes a private copy of the checkpoint."""
    return lambda: Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


@pytest.fixture(scope="session")
def compile_traced(tiny_checkpoint: Path) -> CompileTraced:
    """Compiles a copy of the checkpoint as `fmo compile --no-self-check` does, but for the trace, which is that of the original."""
    traced = trace_model(load_source(str(tiny_checkpoint)))

    def compile_it(model: Path, output_dir: Path) -> CompileReport:
        options = CompileOptions(model=str(model), output_dir=output_dir, self_check=False)
        with OutputFolder(output_dir, replace=False) as folder:
            return build_artifact(folder, options, load_source(options.model), traced, Progress())

    return compile_it
