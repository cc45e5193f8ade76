"""Adapters at run time: logits of PEFT, whatever else is in the batch, on artifacts that know nothing of the adapter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from friendli_runtime.artifact import Artifact
from friendli_runtime.executor import load_executor
from friendli_runtime.lora.adapter import Adapter
from friendli_runtime.lora.config import AdapterError
from friendli_runtime.lora.registry import AdapterRegistry
from frontend.architectures import VOCAB_SIZE

from .compiled import compile_fused, compiled_base
from .conftest import SavedModel
from .peft_models import TARGETS, logits_of, make_adapter

MAX_ABS_ERROR = 2e-4
PROMPTS = [np.random.default_rng(i).integers(3, VOCAB_SIZE, length).tolist() for i, length in enumerate([7, 19, 1, 12, 5, 9])]


def executor_of(artifact: Artifact, adapters: Sequence[Path] = (), **options: object) -> Any:
    executor = load_executor(artifact, max_num_tokens=64, max_num_logits=64, num_blocks=32, **options)  # type: ignore[arg-type]
    for slot, folder in enumerate(adapters):
        modules = Adapter.load(folder).modules
        executor.load_adapter(slot, [(name, part.down, part.up, part.scale) for name, part in modules.items()])
    return executor


def prefill(
    executor: Any, prompts: Sequence[list[int]], slots: Sequence[int] | None, logit_rows: Sequence[int] | None = None
) -> np.ndarray:
    """All prompts in one step; logits of `logit_rows` (None: every row)."""
    lengths = [len(prompt) for prompt in prompts]
    tables = np.zeros((len(prompts), 4), np.int32)
    first = 0
    for i, length in enumerate(lengths):
        count = -(-length // 16)
        tables[i, :count] = np.arange(first, first + count)
        first += count
    rows = np.arange(sum(lengths)) if logit_rows is None else np.array(logit_rows)
    return executor.forward(
        np.concatenate(prompts).astype(np.int32),
        np.concatenate([np.arange(n) for n in lengths]).astype(np.int32),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32),
        np.zeros(len(prompts), np.int32),
        tables,
        rows.astype(np.int32),
        None if slots is None else np.array(slots, np.int32),
    )


SCALAR_TOO = [pytest.param("scalar", marks=pytest.mark.slow), "avx2"]


@pytest.mark.parametrize("isa", SCALAR_TOO)
@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2", "mixtral"])
def test_the_logits_with_an_adapter_are_those_of_peft(name: str, isa: str, saved_model: SavedModel, tmp_path: Path) -> None:
    model, folder = saved_model(name)
    wrapped = make_adapter(model, tmp_path / "adapter", target_modules=TARGETS[name])
    executor = executor_of(compiled_base(name, folder), [tmp_path / "adapter"], isa=isa)
    actual = prefill(executor, PROMPTS[:2], [0, 0])
    expected = np.concatenate([logits_of(wrapped, prompt) for prompt in PROMPTS[:2]])
    np.testing.assert_allclose(actual, expected, atol=MAX_ABS_ERROR)
    base = np.concatenate([logits_of(model, prompt) for prompt in PROMPTS[:2]])
    assert np.abs(actual - base).max() > 0.1, "the adapter changes nothing"


def test_a_head_that_is_tied_to_the_embedding_can_have_an_adapter(saved_model: SavedModel, tmp_path: Path) -> None:
    model, folder = saved_model("gpt2")
    wrapped = make_adapter(model, tmp_path / "adapter", target_modules=["lm_head", "c_fc"])
    actual = prefill(executor_of(compiled_base("gpt2", folder), [tmp_path / "adapter"]), PROMPTS[:1], [0])
    np.testing.assert_allclose(actual, logits_of(wrapped, PROMPTS[0]), atol=MAX_ABS_ERROR)


@pytest.fixture
def mixed(saved_model: SavedModel, tmp_path: Path) -> list[Path]:
    """Adapters of other ranks and other modules."""
    model, _ = saved_model("llama")
    configs = [
        {"r": 4, "target_modules": TARGETS["llama"]},
        {"r": 32, "target_modules": ["k_proj"]},
        {"r": 3, "target_modules": ["q_proj", "k_proj", "lm_head"], "rank_pattern": {"k_proj": 17}},
    ]
    for i, config in enumerate(configs):
        make_adapter(model, tmp_path / str(i), seed=i, **config)
    return [tmp_path / str(i) for i in range(len(configs))]


@pytest.mark.parametrize(("isa", "num_threads"), [("avx2", 1), ("avx2", 3), pytest.param("scalar", 2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("scheme", ["none", "8bit"])
def test_a_mixed_batch_gives_the_bits_of_each_sequence_alone(
    scheme: str, isa: str, num_threads: int, mixed: list[Path], saved_model: SavedModel
) -> None:
    artifact = compiled_base("llama", saved_model("llama")[1], quantize=scheme)
    executor = executor_of(artifact, mixed, isa=isa, num_threads=num_threads)
    slots = [1, -1, 0, 2, 0, 1]
    together = prefill(executor, PROMPTS, slots)
    ends = np.cumsum([len(prompt) for prompt in PROMPTS])
    solo = executor_of(artifact, mixed, isa=isa, num_threads=1)
    for prompt, slot, end in zip(PROMPTS, slots, ends, strict=True):
        np.testing.assert_array_equal(together[end - len(prompt) : end], prefill(solo, [prompt], [slot]))
    np.testing.assert_array_equal(prefill(executor, PROMPTS, slots, logit_rows=ends - 1), together[ends - 1])
    np.testing.assert_array_equal(prefill(executor, PROMPTS, [-1] * 6), prefill(executor, PROMPTS, None))


@pytest.mark.parametrize("isa", ["scalar", "avx2"])
def test_beside_weights_of_fewer_bits_an_adapter_is_kept_in_bf16(isa: str, mixed: list[Path], saved_model: SavedModel) -> None:
    def logits_with(rounding: Callable[[np.ndarray], np.ndarray], scheme: str) -> np.ndarray:
        executor = executor_of(compiled_base("llama", saved_model("llama")[1], quantize=scheme), isa=isa)
        modules = Adapter.load(mixed[0]).modules
        executor.load_adapter(0, [(name, rounding(part.down), rounding(part.up), part.scale) for name, part in modules.items()])
        return prefill(executor, PROMPTS[:2], [0, 0])

    def to_bf16(values: np.ndarray) -> np.ndarray:
        return torch.from_numpy(values).bfloat16().float().numpy()

    exact, rounded = logits_with(lambda values: values, "8bit"), logits_with(to_bf16, "8bit")
    np.testing.assert_array_equal(exact, rounded)
    assert (logits_with(lambda values: values, "none") != logits_with(to_bf16, "none")).any(), "beside f32 weights it is kept in f32"


def test_fused_and_slotted_adapters_choose_the_same_tokens(saved_model: SavedModel, tmp_path: Path) -> None:
    model, folder = saved_model("llama")
    make_adapter(model, tmp_path / "adapter", target_modules=TARGETS["llama"])
    slotted = executor_of(compiled_base("llama", folder), [tmp_path / "adapter"])
    fused = executor_of(compile_fused("llama", folder, tmp_path / "fused", str(tmp_path / "adapter")))
    for prompt in PROMPTS[:3]:
        ours, theirs = list(prompt), list(prompt)
        for _ in range(24):
            ours.append(int(prefill(slotted, [ours], [0], [len(ours) - 1]).argmax()))
            theirs.append(int(prefill(fused, [theirs], None, [len(theirs) - 1]).argmax()))
        assert ours == theirs


def test_unloading_leaves_the_other_adapters_and_frees_the_slot(mixed: list[Path], saved_model: SavedModel) -> None:
    executor = executor_of(compiled_base("llama", saved_model("llama")[1]), mixed)
    before, bytes_before = prefill(executor, PROMPTS[:1], [2]), executor.memory()["adapter_bytes"]
    executor.unload_adapter(1)
    assert executor.memory()["adapter_bytes"] < bytes_before
    np.testing.assert_array_equal(prefill(executor, PROMPTS[:1], [2]), before)
    with pytest.raises(RuntimeError, match="slot 1, which is empty"):
        prefill(executor, PROMPTS[:1], [1])
    modules = Adapter.load(mixed[2]).modules
    executor.load_adapter(1, [(name, part.down, part.up, part.scale) for name, part in modules.items()])
    np.testing.assert_array_equal(prefill(executor, PROMPTS[:1], [1]), before)


def test_an_adapter_of_another_model_is_refused_and_changes_nothing(mixed: list[Path], saved_model: SavedModel) -> None:
    executor = executor_of(compiled_base("qwen2", saved_model("qwen2")[1]))
    down, up = np.zeros((4, 64), np.float32), np.zeros((64, 4), np.float32)
    name = "model.layers.0.self_attn.q_proj"
    with pytest.raises(RuntimeError, match=r"no linear layer 'model\.layers\.0\.no_proj'"):
        executor.load_adapter(0, [(name, down, up, 1.0), ("model.layers.0.no_proj", down, up, 1.0)])
    with pytest.raises(RuntimeError, match=r"changes a matrix \[48, 64\] with rank 4, the model has \[64, 64\]"):
        executor.load_adapter(0, [(name, down, up[:48], 1.0)])
    with pytest.raises(RuntimeError, match="slot 0, which is empty"):
        prefill(executor, PROMPTS[:1], [0])
    executor.load_adapter(0, [(name, down, up, 1.0)])
    with pytest.raises(RuntimeError, match="slot 0 is taken"):
        executor.load_adapter(0, [(name, down, up, 1.0)])
    with pytest.raises(RuntimeError, match="no adapter slot -1"):
        executor.load_adapter(-1, [(name, down, up, 1.0)])
    assert executor.adapter_modules()[name] == (64, 64)


def test_an_artifact_without_sites_says_that_it_must_be_compiled_again(mixed: list[Path], saved_model: SavedModel) -> None:
    artifact = compiled_base("llama", saved_model("llama")[1])
    calls = [{key: value for key, value in call.items() if key != "sites"} for call in artifact.plan["calls"]]
    old = replace(artifact, plan={**artifact.plan, "calls": calls})
    registry = AdapterRegistry(executor_of(old))
    with pytest.raises(AdapterError, match="does not say which module") as error:
        registry.load("law", str(mixed[0]))
    assert "compile the model again" in error.value.hint and "sites" in error.value.where
    assert registry.loaded() == []
