"""Tiny models compiled into artifacts that a test may damage: by other weights, by an edited plan, by flipped bytes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from friendli_runtime.weight_files import locate_weights

from friendli_compile.artifact import writer
from friendli_compile.frontend.checkpoint import Checkpoint
from friendli_compile.frontend.source import ModelSource, load_source
from friendli_compile.frontend.trace import TracedModel, trace_model
from friendli_compile.passes import run_pipeline
from friendli_compile.plan.model import Plan
from friendli_compile.plan.planner import make_plan
from tests.frontend.architectures import tiny_model

Read = Callable[[str], np.ndarray]


@dataclass(frozen=True)
class Compiled:
    """A compiled tiny model; `artifact_dir` holds the plan and the weights."""

    source: ModelSource
    traced: TracedModel
    checkpoint: Checkpoint
    plan: Plan
    artifact_dir: Path
    dtype: str

    def copy_to(self, folder: Path) -> Path:
        """The artifact once more, to be damaged."""
        return Path(shutil.copytree(self.artifact_dir, folder / "artifact"))


def compile_tiny(name: str, folder: Path, dtype: str, **overrides: Any) -> Compiled:
    """Trace, passes, plan and pack of `tiny_model(name)`."""
    tiny_model(name, **overrides).save_pretrained(folder / "checkpoint")
    source = load_source(str(folder / "checkpoint"))
    traced = trace_model(source)
    checkpoint = Checkpoint(source, traced)
    storage = {"fp32": "f32", "bf16": "bf16"}[dtype]
    plan = make_plan(run_pipeline(traced.graph), storage_dtype=storage, max_context_len=traced.max_context_len)
    artifact_dir = folder / "artifact"
    artifact_dir.mkdir()
    writer.write_plan(artifact_dir, plan)
    writer.write_weights(artifact_dir, plan, checkpoint.read)
    return Compiled(source, traced, checkpoint, plan, artifact_dir, dtype)


def repack(artifact_dir: Path, compiled: Compiled, change: Callable[[str, Read], np.ndarray]) -> None:
    """Packs again with `change(parameter name, true reader)` in place of the checkpoint."""
    writer.write_weights(artifact_dir, compiled.plan, lambda name: change(name, compiled.checkpoint.read))


def edit_calls(artifact_dir: Path, op: str, layer: int | None, **attrs: Any) -> int:
    """Sets attributes of the plan's calls of `op` (of one layer); returns how many calls."""
    path = artifact_dir / "plan.json"
    plan = json.loads(path.read_text())
    calls = [call for call in plan["calls"] if call["op"] == op and layer in (None, call["layer"])]
    for call in calls:
        call["attrs"].update(attrs)
    path.write_text(json.dumps(plan))
    return len(calls)


def swap_bf16_lanes(artifact_dir: Path, weight: str) -> None:
    """Exchanges the two halves of every 32-bit lane, as a packer with the wrong lane order would."""
    location = locate_weights(sorted(artifact_dir.glob("*.safetensors")))[weight]
    data = bytearray(location.path.read_bytes())
    span = slice(location.offset, location.offset + location.num_bytes)
    halves = np.frombuffer(bytes(data[span]), np.uint16).reshape(-1, 2)
    data[span] = np.ascontiguousarray(halves[:, ::-1]).tobytes()
    location.path.write_bytes(bytes(data))
