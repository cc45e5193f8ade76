"""--fuse-lora: the merged artifact is the model that PEFT computes, or there is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from e2e.packed import run_greedy
from friendli_runtime.artifact import Artifact
from friendli_runtime.executor import load_executor
from friendli_runtime.lora.config import AdapterError
from frontend.architectures import VOCAB_SIZE, traced

from friendli_compile.errors import InternalError
from friendli_compile.lora.fuse import fuse_adapters, parse_strength

from .compiled import compile_fused
from .conftest import SavedModel
from .peft_models import TARGETS, logits_of, make_adapter

MAX_ABS_ERROR = 2e-4
PROMPTS = [np.random.default_rng(i).integers(3, VOCAB_SIZE, length).tolist() for i, length in enumerate([7, 19])]


def logits_by_us(artifact: Artifact) -> list[np.ndarray]:
    executor = load_executor(artifact, max_num_tokens=64, max_num_logits=64, num_blocks=32)
    return [np.stack(seq.logits) for seq in run_greedy(executor, PROMPTS, 0, [len(prompt) for prompt in PROMPTS])]


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2", "mixtral"])
def test_the_fused_artifact_gives_the_logits_of_peft(name: str, saved_model: SavedModel, tmp_path: Path) -> None:
    model, folder = saved_model(name)
    wrapped = make_adapter(model, tmp_path / "adapter", target_modules=TARGETS[name])
    artifact = compile_fused(name, folder, tmp_path / "artifact", str(tmp_path / "adapter"), self_check=True)
    for prompt, actual in zip(PROMPTS, logits_by_us(artifact), strict=True):
        assert np.abs(logits_of(model, prompt) - actual).max() > 0.1, "the adapter changes nothing"
        np.testing.assert_allclose(actual, logits_of(wrapped, prompt), atol=MAX_ABS_ERROR)
    recorded = artifact.manifest["provenance"]["fused_adapters"]
    assert [entry["name"] for entry in recorded] == ["adapter"] and artifact.manifest["self_check"]["status"] == "passed"


def test_rank_and_alpha_patterns_rslora_layers_and_strength_mean_what_peft_says(saved_model: SavedModel, tmp_path: Path) -> None:
    model, _ = saved_model("llama")
    config = {
        "target_modules": ["q_proj", "up_proj"],
        "rank_pattern": {"q_proj": 8, r"layers\.0\.mlp\.up_proj": 2},
        "alpha_pattern": {"up_proj": 16},
        "use_rslora": True,
    }
    first = make_adapter(model, tmp_path / "first", seed=1, **config)
    second = make_adapter(model, tmp_path / "second", seed=2, target_modules=r".*\.1\.self_attn\.(k|o)_proj")
    third = make_adapter(model, tmp_path / "third", seed=3, target_modules=["down_proj"], layers_to_transform=[1])
    fused = fuse_adapters([f"{tmp_path}/first", f"{tmp_path}/second:0.5", f"{tmp_path}/third"], traced("llama"))
    weights = {name: param.detach().numpy() for name, param in model.named_parameters()}
    expected = {name: weights[name] * (1 - 3) for name in fused.merges}
    for wrapped, strength in ((first, 1.0), (second, 0.5), (third, 1.0)):
        merged = {name: param.detach().numpy() for name, param in wrapped.merge_and_unload().named_parameters()}
        for name in expected:
            expected[name] = expected[name] + merged[name] * strength + weights[name] * (1 - strength)
    assert len(expected) == 2 * 2 + 2 + 1
    for name, merge in fused.merges.items():
        np.testing.assert_allclose(merge(weights[name]), expected[name], atol=1e-5)
    assert fused.verify(weights.__getitem__) < 1e-6


def test_quantized_weights_are_those_of_the_merged_model(saved_model: SavedModel, tmp_path: Path) -> None:
    model, folder = saved_model("llama")
    wrapped = make_adapter(model, tmp_path / "adapter", target_modules=TARGETS["llama"])
    wrapped.merge_and_unload().save_pretrained(tmp_path / "merged")
    options = {"quantize": "8bit", "quality": None}
    ours = compile_fused("llama", folder, tmp_path / "ours", str(tmp_path / "adapter"), self_check=True, **options)
    theirs = compile_fused("llama", tmp_path / "merged", tmp_path / "theirs", **options)
    for actual, expected in zip(logits_by_us(ours), logits_by_us(theirs), strict=True):
        np.testing.assert_allclose(actual, expected, atol=0.02)  # an element on the edge between two codes may fall either way


def test_a_merge_that_computes_something_else_than_peft_is_an_error(saved_model: SavedModel, tmp_path: Path) -> None:
    model, _ = saved_model("gpt2")
    make_adapter(model, tmp_path / "adapter", target_modules=["c_proj"])
    fused = fuse_adapters([str(tmp_path / "adapter")], traced("gpt2"))
    weights = {name: param.detach().numpy() for name, param in model.named_parameters()}
    square = fused.merges["transformer.h.0.attn.c_proj.weight"]
    square.is_transposed = False  # a square matrix: nothing but the formula can tell
    with pytest.raises(InternalError, match=r"merged 'transformer\.h\.0\.attn\.c_proj\.weight' differs from PEFT's formula"):
        fused.verify(weights.__getitem__)


def test_a_tied_weight_is_not_merged(saved_model: SavedModel, tmp_path: Path) -> None:
    model, _ = saved_model("gpt2")
    make_adapter(model, tmp_path / "adapter", target_modules=["lm_head"])
    with pytest.raises(AdapterError, match=r"tied to 'transformer\.wte\.weight': merging would change both"):
        fuse_adapters([str(tmp_path / "adapter")], traced("gpt2"))


def test_an_adapter_of_another_model_is_refused_with_the_nearest_module(saved_model: SavedModel, tmp_path: Path) -> None:
    model, _ = saved_model("qwen2")
    make_adapter(model, tmp_path / "adapter", target_modules=["up_proj"])
    with pytest.raises(AdapterError, match=r"no module 'model\.layers\.0\.mlp\.up_proj'(.|\n)*nearest linear layer is"):
        fuse_adapters([str(tmp_path / "adapter")], traced("gpt2"))
    with pytest.raises(AdapterError, match="there is no adapter folder"):
        fuse_adapters(["no such adapter"], traced("gpt2"))


def test_the_number_behind_the_last_colon_is_the_strength() -> None:
    assert parse_strength("org/name:0.25") == ("org/name", 0.25)
    assert parse_strength("C:/adapters/law") == ("C:/adapters/law", 1.0)
    with pytest.raises(AdapterError, match="out of range"):
        parse_strength("law:0")
