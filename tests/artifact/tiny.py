"""A small complete artifact made from a hand-built graph: no torch, milliseconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from plan.graphs import VOCAB, decoder, random_params

from friendli_compile.artifact import writer
from friendli_compile.artifact.folder import OutputFolder
from friendli_compile.plan.model import Plan
from friendli_compile.plan.planner import make_plan

HEAD = {
    "fmo_version": "0.1.0",
    "target": {"device": "cpu", "arch": "x86-64", "isa_min": "scalar"},
    "model": {"name": "tiny", "architecture": "TinyForCausalLM", "model_type": "tiny", "dtype": "bf16",
              "vocab_size": VOCAB, "max_context_len": 64, "bos_token_id": 1,
              "eos_token_ids": [2, 3], "pad_token_id": None, "num_params": 1234},
    "provenance": {},
    "self_check": {"status": "skipped"},
}  # fmt: skip

MEMORY = {"weight_bytes": 9000, "weight_bytes_by_layout": {"bf16 panel16": 9000}, "kv_bytes_per_token": 64,
          "activation_bytes_per_token": 512, "activation_bytes_per_logit_row": 256}  # fmt: skip


def tiny_plan(storage_dtype: str = "bf16") -> tuple[Plan, dict[str, np.ndarray]]:
    graph = decoder()
    return make_plan(graph, storage_dtype=storage_dtype, max_context_len=64), random_params(graph)


def write_tiny_artifact(target: Path, *, replace: bool = False) -> Path:
    plan, params = tiny_plan()
    with OutputFolder(target, replace=replace) as folder:
        writer.write_plan(folder.path, plan)
        writer.write_weights(folder.path, plan, params.__getitem__)
        (folder.path / "tokenizer").mkdir()
        (folder.path / "tokenizer" / "tokenizer.json").write_text("{}")
        writer.write_report(folder.path, {"memory": MEMORY})
        writer.write_manifest(folder.path, HEAD)
        folder.commit()
    return target
