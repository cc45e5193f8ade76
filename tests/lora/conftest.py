"""Tiny models on disk, made once per test run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from frontend.architectures import tiny_model
from transformers import PreTrainedModel

from .compiled import VARIANTS

SavedModel = Callable[[str], tuple[PreTrainedModel, Path]]


@pytest.fixture(scope="session")
def saved_model(tmp_path_factory: pytest.TempPathFactory) -> SavedModel:
    """name → (the model, its folder)."""
    made: dict[str, tuple[PreTrainedModel, Path]] = {}

    def get(name: str) -> tuple[PreTrainedModel, Path]:
        if name not in made:
            architecture, overrides = VARIANTS.get(name, (name, {}))
            model, folder = tiny_model(architecture, **overrides), tmp_path_factory.mktemp("models") / name
            model.save_pretrained(folder)
            made[name] = (model, folder)
        return made[name]

    return get
