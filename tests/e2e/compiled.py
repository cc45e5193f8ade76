"""Tiny random-weight models as artifacts, compiled from the traces that all tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from frontend.architectures import tiny_model, traced

from friendli_compile.artifact.folder import OutputFolder
from friendli_compile.compile import CompileOptions, CompileReport, build_artifact
from friendli_compile.frontend.source import load_source
from friendli_compile.progress import Progress


def compile_traced(name: str, folder: Path, **options: Any) -> CompileReport:
    """As `fmo compile folder/model -o folder/artifact`; what stands in folder/model already (a tokenizer) is compiled too."""
    tiny_model(name).save_pretrained(folder / "model")
    settings = CompileOptions(model=str(folder / "model"), output_dir=folder / "artifact", **options)
    with OutputFolder(settings.output_dir, replace=False) as output:
        return build_artifact(output, settings, load_source(settings.model), traced(name), Progress())
