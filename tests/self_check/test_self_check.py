"""The self-check passes what is right and catches what is wrong: weights, names, layouts, rotations, windows; whole and layer by layer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from friendli_compile.errors import SelfCheckFailed
from friendli_compile.ir.graph import Graph, Node
from friendli_compile.passes import run_pipeline
from friendli_compile.self_check import run_self_check
from friendli_compile.self_check import twin as twin_module
from friendli_compile.self_check.artifact_runner import PackedModel
from friendli_compile.self_check.layers import check_streamed
from friendli_compile.self_check.reference import load_reference
from friendli_compile.self_check.run import needs_twin, probes_for

from .compiled import Compiled, Read, compile_tiny, edit_calls, repack, swap_bf16_lanes

NO_MEMORY = 0
WINDOW = 8


@pytest.fixture(scope="module")
def mistral(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """Rotary embedding, a sliding window, bf16 weights; queries and keys of the same shape, so that they can be swapped."""
    return compile_tiny("mistral", tmp_path_factory.mktemp("mistral"), "bf16", num_key_value_heads=4)


def check_whole(compiled: Compiled, artifact_dir: Path) -> Any:
    return run_self_check(artifact_dir, compiled.source, compiled.traced, compiled.checkpoint, dtype=compiled.dtype)


def check_layers(compiled: Compiled, artifact_dir: Path) -> Any:
    model = PackedModel(artifact_dir)
    probes = probes_for(model, compiled.source, compiled.traced)
    return check_streamed(model, compiled.traced, compiled.checkpoint.read, probes, lambda what, fraction: None)


def test_a_right_artifact_passes_whole(mistral: Compiled) -> None:
    result = check_whole(mistral, mistral.artifact_dir)
    assert (result.status, result.mode, result.greedy_tokens_equal) == ("passed", "whole-model", True)
    assert result.max_abs_error <= 2e-5 < result.tolerance
    assert result.num_probe_tokens >= 100 and result.twin_max_abs_error is None and not result.layers


def test_without_memory_a_twin_and_every_real_layer_are_compared(mistral: Compiled) -> None:
    seen: list[float] = []
    result = run_self_check(
        mistral.artifact_dir, mistral.source, mistral.traced, mistral.checkpoint, dtype="bf16", available_memory_bytes=NO_MEMORY,
        progress=lambda what, fraction: seen.append(fraction),
    )  # fmt: skip
    assert (result.status, result.mode, result.greedy_tokens_equal) == ("passed", "twin+layers", True)
    assert [error.module for error in result.layers] == ["model.layers.0", "model.layers.1"]
    assert all(error.max_abs_error <= 2e-5 for error in result.layers)
    assert result.twin_max_abs_error is not None and result.twin_max_abs_error <= 2e-5
    assert seen == sorted(seen) and seen[0] >= 0 and seen[-1] <= 1


def _one_element(name: str, read: Read) -> np.ndarray:
    array = read(name).copy()
    if name == "model.layers.1.mlp.down_proj.weight":
        array[3, 5] += 0.5
    return array


def _swapped_q_and_k(name: str, read: Read) -> np.ndarray:
    swapped = {"q_proj": "k_proj", "k_proj": "q_proj"}
    parts = name.split(".")
    return read(".".join(swapped.get(part, part) if ".layers.1." in name else part for part in parts))


def _transposed(name: str, read: Read) -> np.ndarray:
    array = read(name)
    return array.T.copy() if name == "model.layers.1.self_attn.o_proj.weight" else array


def _other_layers_norm(name: str, read: Read) -> np.ndarray:
    return read("model.layers.0.input_layernorm.weight" if name == "model.layers.1.input_layernorm.weight" else name)


REPACKED: Mapping[str, Callable[[str, Read], np.ndarray]] = {
    "one element is off": _one_element,
    "q and k are swapped": _swapped_q_and_k,
    "a square matrix is transposed": _transposed,
    "a norm has the weight of another layer": _other_layers_norm,
}
Check = Callable[[Compiled, Path], Any]
BOTH_MODES = pytest.mark.parametrize("check", [check_whole, check_layers])


@BOTH_MODES
@pytest.mark.parametrize("damage", REPACKED)
def test_wrong_weights_are_caught_and_their_layer_is_named(mistral: Compiled, tmp_path: Path, check: Check, damage: str) -> None:
    artifact_dir = mistral.copy_to(tmp_path)
    repack(artifact_dir, mistral, REPACKED[damage])
    with pytest.raises(SelfCheckFailed, match="disagrees with transformers") as caught:
        check(mistral, artifact_dir)
    assert "layer 1 (model.layers.1)" in caught.value.where


@BOTH_MODES
def test_a_wrong_order_inside_a_packed_panel_is_caught(mistral: Compiled, tmp_path: Path, check: Check) -> None:
    artifact_dir = mistral.copy_to(tmp_path)
    weight = next(spec.name for spec in mistral.plan.weights if "layers.1.mlp" in spec.name and spec.layout == "panel16")
    swap_bf16_lanes(artifact_dir, weight)
    with pytest.raises(SelfCheckFailed, match="disagrees") as caught:
        check(mistral, artifact_dir)
    assert "model.layers.1" in caught.value.where


@BOTH_MODES
@pytest.mark.parametrize(
    ("op", "attrs"), [("nn.rope", {"style": "interleaved"}), ("attn.paged", {"window": WINDOW + 1}), ("attn.paged", {"window": WINDOW - 1})]
)
def test_a_wrong_rotation_or_window_is_caught(mistral: Compiled, tmp_path: Path, check: Check, op: str, attrs: dict[str, Any]) -> None:
    artifact_dir = mistral.copy_to(tmp_path)
    assert edit_calls(artifact_dir, op, 1, **attrs) > 0
    with pytest.raises(SelfCheckFailed, match="disagrees") as caught:
        check(mistral, artifact_dir)
    assert "layer 1 (model.layers.1)" in caught.value.where


def test_the_module_that_is_computed_wrongly_is_named_where_a_call_shows_it(mistral: Compiled, tmp_path: Path) -> None:
    artifact_dir = mistral.copy_to(tmp_path)
    repack(artifact_dir, mistral, lambda name, read: read(name) * (0.5 if name.endswith("0.self_attn.v_proj.weight") else 1.0))
    with pytest.raises(SelfCheckFailed) as caught:
        check_whole(mistral, artifact_dir)
    assert "layer 0" in caught.value.where and "first in model.layers.0.self_attn.v_proj" in caught.value.where


@BOTH_MODES
def test_a_wrong_head_is_placed_behind_the_last_layer(mistral: Compiled, tmp_path: Path, check: Check) -> None:
    artifact_dir = mistral.copy_to(tmp_path)
    repack(artifact_dir, mistral, lambda name, read: read(name) * (1.01 if name == "lm_head.weight" else 1.0))
    with pytest.raises(SelfCheckFailed) as caught:
        check(mistral, artifact_dir)
    assert "behind the last layer" in caught.value.where


def test_a_mistake_that_only_cached_steps_show_is_caught_and_said_to_be_one(mistral: Compiled, tmp_path: Path) -> None:
    artifact_dir = mistral.copy_to(tmp_path)
    edit_calls(artifact_dir, "attn.paged", 1, kv_layer=0)  # both layers write the same cache: harmless within one prefill
    with pytest.raises(SelfCheckFailed) as caught:
        check_whole(mistral, artifact_dir)
    assert "one prefill of everything agrees; step 1 differs first" in caught.value.where


def _with_attrs(graph: Graph, op: str, attrs: dict[str, Any]) -> Graph:
    nodes = tuple(Node(n.op, n.inputs, n.outputs, {**n.attrs, **attrs}, n.source) if n.op == op else n for n in graph.nodes)
    return replace(graph, nodes=nodes)


@pytest.mark.parametrize(("op", "attrs"), [("nn.rope", {"style": "interleaved"}), ("attn.paged", {"window": WINDOW - 1})])
def test_a_mistake_of_the_passes_is_caught_by_the_twin(
    mistral: Compiled, monkeypatch: pytest.MonkeyPatch, op: str, attrs: dict[str, Any]
) -> None:
    monkeypatch.setattr(twin_module, "run_pipeline", lambda graph: _with_attrs(run_pipeline(graph), op, attrs))
    with pytest.raises(SelfCheckFailed, match="a small twin of the model disagrees"):
        run_self_check(
            mistral.artifact_dir, mistral.source, mistral.traced, mistral.checkpoint, dtype="bf16", available_memory_bytes=NO_MEMORY
        )


def test_a_window_too_long_for_the_probes_calls_for_a_twin_as_well(mistral: Compiled) -> None:
    traced = copy.copy(mistral.traced)
    assert not needs_twin(traced)
    traced.graph = _with_attrs(traced.graph, "attn.paged", {"window": 400})
    assert needs_twin(traced)
    traced.max_context_len = 400
    assert not needs_twin(traced), "no sequence outgrows it"


def test_a_model_that_transformers_cannot_load_fails_the_check(mistral: Compiled, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((mistral.source.folder / "config.json").read_bytes())
    with pytest.raises(SelfCheckFailed, match="transformers cannot load this model") as caught:
        load_reference(tmp_path, mistral.traced, ())
    assert "--no-self-check" in caught.value.hint


def test_a_plan_that_the_executor_refuses_fails_the_check(mistral: Compiled, tmp_path: Path) -> None:
    artifact_dir = mistral.copy_to(tmp_path)
    edit_calls(artifact_dir, "attn.paged", 0, kv_layer=7)
    with pytest.raises(SelfCheckFailed, match="cannot be compiled and run"):
        check_whole(mistral, artifact_dir)
