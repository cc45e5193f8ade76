"""Runs an artifact that is still being written: plan.json and the weight files, through the C++ executor, without a manifest.

Positions, block tables and steps are made as the engine makes them, with two things made harder: the KV blocks of a sequence are scattered
in a seeded order, and the order of sequences within a step differs from step to step. The KV cache is float32, and activations stay as they
are also where the plan rounds them: what that costs is the quality gate's to measure.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from friendli_runtime.weight_files import locate_weights

from ..plan.model import WeightSpec
from .probes import Probes, ProbeStep
from .stored_params import StoredParams

BLOCK_SIZE = 16  # tokens per KV block (docs/artifact-format.md)

WeightFiles = Mapping[str, tuple[str, int, int]]  # name → (path, offset, bytes)
OnStep = Callable[[int, int], None]


class PackedModel:
    """The plan (as parsed) and where the bytes of its weights are. `specs`: the weights of the plan, needed where some are quantized."""

    def __init__(self, folder: Path, specs: Iterable[WeightSpec] = ()) -> None:
        self.plan: dict[str, Any] = json.loads((folder / "plan.json").read_text())
        located = locate_weights(sorted(folder.glob("*.safetensors")))
        self.weights: WeightFiles = {name: (str(at.path), at.offset, at.num_bytes) for name, at in located.items()}
        self.stored_params = StoredParams(specs, self.weights)

    @property
    def num_bytes(self) -> int:
        return sum(num_bytes for _, _, num_bytes in self.weights.values())

    @property
    def rounded_params(self) -> frozenset[str]:
        """Parameters that were rounded to bf16 before anything read them (docs/artifact-format.md)."""
        weights = self.plan["weights"].values()
        return frozenset(name for weight in weights if weight["dtype"] == "bf16" for name in weight["params"])


def output_width(plan: Mapping[str, Any]) -> int:
    """Of a row of the plan's output."""
    return int(plan.get("output_width", plan["vocab_size"]))


def run_logits(model: PackedModel, probes: Probes, on_step: OnStep | None = None) -> list[np.ndarray]:
    """Runs every step; logits [length, vocab_size] f32 of each sequence."""
    width = output_width(model.plan)
    logits = [np.full((length, width), np.nan, np.float32) for length in probes.lengths]
    executor, block_tables = _make_executor(model.plan, model.weights, probes, max(step.num_tokens for step in probes.steps))
    for index, step in enumerate(_in_varying_order(probes)):
        out = _forward(executor, probes, step, block_tables, np.arange(step.num_tokens, dtype=np.int32))
        row = 0
        for s, start, count in step.rows:
            logits[s][start : start + count] = out[row : row + count]
            row += count
        if on_step is not None:
            on_step(index + 1, len(probes.steps))
    return logits


def run_rows(plan: Mapping[str, Any], weights: WeightFiles, probes: Probes, rows: np.ndarray) -> np.ndarray:
    """One prefill of all sequences with any plan: its output [len(rows), width] for these rows of the packed batch."""
    (step,) = probes.steps
    executor, block_tables = _make_executor(plan, weights, probes, max(len(rows), 1))
    return np.array(_forward(executor, probes, step, block_tables, rows.astype(np.int32)))


def _make_executor(plan: Mapping[str, Any], weights: WeightFiles, probes: Probes, max_num_logits: int) -> tuple[Any, list[np.ndarray]]:
    """The executor, and for each sequence its KV blocks in scattered order."""
    from friendli_runtime._core import Executor

    num_blocks = [-(-length // BLOCK_SIZE) for length in probes.lengths]
    scattered = np.random.default_rng(0).permutation(sum(num_blocks)).astype(np.int32)
    executor = Executor(
        plan,
        dict(weights),
        max_num_tokens=max(step.num_tokens for step in probes.steps),
        max_num_logits=max_num_logits,
        num_blocks=len(scattered),
        kv_dtype="f32",
        quantize_activations=False,
    )
    return executor, np.split(scattered, np.cumsum(num_blocks)[:-1])


def _in_varying_order(probes: Probes) -> list[ProbeStep]:
    """The steps, with the sequences of every other step in reverse order."""
    return [ProbeStep(step.rows[:: 1 if index % 2 == 0 else -1]) for index, step in enumerate(probes.steps)]


def _forward(executor: Any, probes: Probes, step: ProbeStep, block_tables: list[np.ndarray], logit_rows: np.ndarray) -> np.ndarray:
    """One step of the executor: the plan's output [len(logit_rows), width] f32."""
    width = max(map(len, block_tables))
    tables = np.zeros((len(step.rows), width), np.int32)
    for row, (s, _, _) in enumerate(step.rows):
        tables[row, : len(block_tables[s])] = block_tables[s]
    pieces = [slice(start, start + count) for _, start, count in step.rows]
    return executor.forward(
        input_ids=np.concatenate([probes.tokens[s][piece] for (s, _, _), piece in zip(step.rows, pieces, strict=True)]),
        position_ids=np.concatenate([np.arange(piece.start, piece.stop, dtype=np.int32) for piece in pieces]),
        cu_seqlens=np.cumsum([0, *(count for _, _, count in step.rows)]).astype(np.int32),
        context_lens=np.array([start for _, start, _ in step.rows], np.int32),
        block_tables=tables,
        logit_rows=logit_rows,
    )
