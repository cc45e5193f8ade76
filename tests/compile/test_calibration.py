"""Calibration: what is collected is what goes into the layers, on tokens that the model drew; and it leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from frontend.architectures import tiny_model
from transformers import AutoModelForCausalLM

from friendli_compile.artifact import writer
from friendli_compile.calibration import SAMPLE_LEN, SEED, Calibration, input_taps
from friendli_compile.frontend.checkpoint import Checkpoint
from friendli_compile.frontend.source import load_source
from friendli_compile.frontend.trace import trace_model
from friendli_compile.passes import run_pipeline
from friendli_compile.plan.planner import make_plan
from friendli_compile.quality.packed_run import Runnable
from friendli_compile.quality.probes import Vocabulary, sampled_probes

VOCABULARY = Vocabulary(256, 1, frozenset({0, 1, 2}))
MANY_PARAMS = 1 << 31  # so many that the fewest tokens are drawn


def packed(name: str, folder: Path) -> Runnable:
    tiny_model(name).save_pretrained(folder / "checkpoint")
    source = load_source(str(folder / "checkpoint"))
    traced = trace_model(source)
    plan = make_plan(run_pipeline(traced.graph), storage_dtype="f32", max_context_len=traced.max_context_len)
    (folder / "packed").mkdir()
    writer.write_plan(folder / "packed", plan)
    writer.write_weights(folder / "packed", plan, Checkpoint(source, traced).read)
    return Runnable.open(folder / "packed")


def inputs_in_transformers(folder: Path, tokens: list[np.ndarray], modules: dict[str, str]) -> dict[str, np.ndarray]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    parts: dict[str, list[np.ndarray]] = {name: [] for name in modules}
    named = dict(model.named_modules())
    for name, path in modules.items():
        named[path].register_forward_pre_hook(
            lambda _, given, name=name: parts[name].append(given[0].reshape(-1, given[0].shape[-1]).numpy())
        )
    with torch.no_grad():
        for sequence in tokens:
            model(input_ids=torch.from_numpy(sequence[None].astype(np.int64)), use_cache=False)
    return {name: np.concatenate(rows) for name, rows in parts.items()}


def test_the_inputs_are_those_that_transformers_sees_on_the_same_tokens(tmp_path: Path) -> None:
    model = packed("llama", tmp_path)
    modules = {
        "model.layers.0.self_attn.q_proj+k_proj+v_proj.weight": "model.layers.0.self_attn.k_proj",
        "model.layers.1.self_attn.o_proj.weight": "model.layers.1.self_attn.o_proj",
        "model.layers.1.mlp.down_proj.weight": "model.layers.1.mlp.down_proj",
        "lm_head.weight": "lm_head",
    }
    calibration = Calibration(tmp_path / "calibration")
    done: list[float] = []
    num_tokens = calibration.collect(model, list(modules), VOCABULARY, 512, MANY_PARAMS, done.append)
    sequences = list(sampled_probes(model, VOCABULARY.starts(SEED), 512, 256, SEED, SAMPLE_LEN).sequences)
    assert num_tokens == sum(map(len, sequences)) >= 256 and done == sorted(done) and done[-1] == 1
    for name, expected in inputs_in_transformers(tmp_path / "checkpoint", sequences, modules).items():
        found = calibration.inputs(name)
        assert found is not None
        np.testing.assert_allclose(found, expected, atol=2e-4, err_msg=name)
        assert 0 < calibration.errors[name].i8 < calibration.errors[name].i7 < 0.01
    assert calibration.inputs("another") is None
    calibration.discard()
    assert not (tmp_path / "calibration").exists() and calibration.inputs("lm_head.weight") is None


def test_experts_are_tapped_where_they_begin(tmp_path: Path) -> None:
    model = packed("mixtral", tmp_path)
    names = [name for name in model.plan["weights"] if "experts" in name]
    taps = input_taps(model.plan, names)
    assert sorted(taps) == [name for name in sorted(names) if "gate_up" in name]
    calibration = Calibration(tmp_path / "calibration")
    calibration.collect(model, names, VOCABULARY, 512, MANY_PARAMS, lambda done: None)
    inputs = calibration.inputs(next(iter(taps)))
    assert inputs is not None and inputs.shape[1] == 64 and np.isfinite(inputs).all()


@pytest.mark.parametrize("dims", [["num_tokens", 4, 16], ["num_tokens", 64]])
def test_a_view_with_gaps_inside_of_its_rows_is_left_out(dims: list[object]) -> None:
    def plan(strides: list[int]) -> dict[str, object]:
        x = {"space": "buffer", "id": 0, "dtype": "f32", "dims": dims, "strides": strides, "offset": 0}
        call = {"op": "nn.linear", "inputs": [x, {"space": "weight", "id": "w"}, None], "layer": 0, "source": "m"}
        return {"calls": [call]}

    dense, gaps = ([64, 16, 1], [128, 32, 1]) if len(dims) == 3 else ([64, 1], [128, 2])
    assert set(input_taps(plan(dense), ["w"])) == {"w"}
    assert not input_taps(plan(gaps), ["w"])
