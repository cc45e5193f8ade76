"""Artifacts of tiny models; base artifacts are compiled once per test run."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

from friendli_runtime.artifact import Artifact
from frontend.architectures import tiny_config, traced

from friendli_compile.artifact.folder import OutputFolder
from friendli_compile.compile import CompileOptions, build_artifact
from friendli_compile.frontend.source import load_source
from friendli_compile.frontend.trace import TracedModel, trace_model
from friendli_compile.progress import Progress

VARIANTS: dict[str, tuple[str, dict[str, int]]] = {"llama_512": ("llama", {"vocab_size": 512})}  # room for a tokenizer


@functools.cache
def traced_as(name: str) -> TracedModel:
    if name not in VARIANTS:
        return traced(name)
    architecture, overrides = VARIANTS[name]
    return trace_model(tiny_config(architecture, **overrides))


def compile_fused(name: str, model: Path, target: Path, *adapters: str, **options: object) -> Artifact:
    arguments = {"model": str(model), "output_dir": target, "dtype": "fp32", "self_check": False, "fuse_lora": adapters, **options}
    made = CompileOptions(**arguments)  # type: ignore[arg-type]
    with OutputFolder(target, replace=False) as folder:
        build_artifact(folder, made, load_source(made.model), traced_as(name), Progress())
    return Artifact.open(target)


@functools.cache
def compiled_base(name: str, model: Path, quantize: str = "none") -> Artifact:
    """The model without adapters, in float32 or quantized."""
    target = Path(tempfile.mkdtemp(prefix="fmo-lora-", dir=model.parent)) / name
    return compile_fused(name, model, target, quantize=quantize, quality=None)
