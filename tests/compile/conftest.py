"""A tiny bf16 checkpoint on disk, made once; tests that damage it copy it first."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from frontend.architectures import tiny_model

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
