"""The self-check of quantized artifacts: it compares with transformers on what is stored, and what is stored with the checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from friendli_runtime.weight_files import locate_weights
from frontend.architectures import tiny_model

from friendli_compile.artifact import writer
from friendli_compile.errors import SelfCheckFailed
from friendli_compile.frontend.checkpoint import Checkpoint
from friendli_compile.frontend.source import load_source
from friendli_compile.frontend.trace import trace_model
from friendli_compile.passes import run_pipeline
from friendli_compile.plan.planner import make_plan
from friendli_compile.quantization import quantize_plan
from friendli_compile.quantize.assign import Policy, parse_policy
from friendli_compile.self_check import run_self_check

from .compiled import Compiled

NO_MEMORY = 0
FOUR_BITS = parse_policy("4bit")


def compile_quantized(name: str, folder: Path, policy: Policy = FOUR_BITS, **overrides: Any) -> Compiled:
    tiny_model(name, **overrides).save_pretrained(folder / "checkpoint")
    source = load_source(str(folder / "checkpoint"))
    traced = trace_model(source)
    checkpoint = Checkpoint(source, traced)
    graph = run_pipeline(traced.graph)
    base = make_plan(graph, storage_dtype="bf16", max_context_len=traced.max_context_len)
    plan = quantize_plan(graph, base, policy, "bf16", checkpoint.read).plan
    artifact_dir = folder / "artifact"
    artifact_dir.mkdir()
    writer.write_plan(artifact_dir, plan)
    writer.write_weights(artifact_dir, plan, checkpoint.read)
    return Compiled(source, traced, checkpoint, plan, artifact_dir, "bf16")


def check(compiled: Compiled, artifact_dir: Path, policy: Policy = FOUR_BITS, **options: Any) -> Any:
    given = (artifact_dir, compiled.source, compiled.traced, compiled.checkpoint)
    return run_self_check(*given, dtype="bf16", plan=compiled.plan, policy=policy, **options)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    return compile_quantized("llama", tmp_path_factory.mktemp("llama"))


def edit_bytes(artifact_dir: Path, tensor: str, change: Any) -> None:
    """Rewrites the bytes of one stored tensor."""
    at = locate_weights(sorted(artifact_dir.glob("*.safetensors")))[tensor]
    data = bytearray(at.path.read_bytes())
    span = slice(at.offset, at.offset + at.num_bytes)
    data[span] = change(np.frombuffer(bytes(data[span]), np.uint8)).tobytes()
    at.path.write_bytes(bytes(data))


def test_a_right_artifact_passes_whole_and_streamed_with_a_twin(llama: Compiled) -> None:
    result = check(llama, llama.artifact_dir)
    assert (result.status, result.mode) == ("passed", "whole-model") and result.max_abs_error <= 5e-5
    streamed = check(llama, llama.artifact_dir, available_memory_bytes=NO_MEMORY)
    assert (streamed.status, streamed.mode) == ("passed", "twin+layers")
    assert streamed.twin_max_abs_error is not None and streamed.max_abs_error <= 5e-5


@pytest.mark.parametrize(
    ("tensor", "change"),
    [
        ("model.layers.1.mlp.down_proj.weight", lambda codes: codes >> 4 | codes << 4),  # nibbles exchanged
        ("model.layers.0.self_attn.q_proj+k_proj+v_proj.weight", lambda codes: np.roll(codes, 4)),  # rows moved by one
        ("model.layers.1.mlp.gate_proj+up_proj.weight.scales", lambda scales: np.roll(scales, 16)),  # of the next group
        ("lm_head.weight", lambda codes: codes ^ 64),  # another zero
    ],
)
def test_weights_that_are_not_those_of_the_checkpoint_are_refused_by_name(
    llama: Compiled, tmp_path: Path, tensor: str, change: Any
) -> None:
    artifact_dir = llama.copy_to(tmp_path)
    edit_bytes(artifact_dir, tensor, change)
    for options in ({}, {"available_memory_bytes": NO_MEMORY}):
        with pytest.raises(SelfCheckFailed, match="is stored with a relative error") as caught:
            check(llama, artifact_dir, **options)
        assert caught.value.what.split("'")[1].rpartition(".")[0].split(".")[-1] in tensor


QUICK = [("gpt2", "4bit"), ("mixtral", "4bit"), ("qwen2_moe", "8bit"), ("llama", "mxfp4")]  # transposed matrices, tied tables, experts
SLOW = [
    ("deepseek_v3", "4bit"),
    ("gemma3_text", "4bit"),
    ("phi3", "4bit"),
    ("qwen2_moe", "int8"),
    ("gpt_oss", "fp8"),
    ("llama", "w4a16:g16z"),
]


@pytest.mark.parametrize(("name", "scheme"), [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)])
def test_architectures_and_schemes_pass(name: str, scheme: str, tmp_path: Path) -> None:
    policy = parse_policy(scheme).lenient()
    compiled = compile_quantized(name, tmp_path, policy)
    formats = {spec.format.dtype for spec in compiled.plan.weights if spec.format is not None}
    assert formats, "something is quantized"
    routers = [spec for spec in compiled.plan.weights if spec.name.endswith("mlp.gate.weight")]
    assert all(spec.format is None for spec in routers)
    result = check(compiled, compiled.artifact_dir, policy)
    assert result.status == "passed" and result.max_abs_error <= result.tolerance
