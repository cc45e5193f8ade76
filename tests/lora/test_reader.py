"""The reader of PEFT adapters: what it takes, and that everything which would compute something else is refused by name."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from friendli_runtime.lora.adapter import Adapter
from friendli_runtime.lora.config import AdapterConfig, AdapterError
from friendli_runtime.lora.source import find_adapter, parse_adapter_list
from safetensors.numpy import load_file, save_file

from .conftest import SavedModel
from .peft_models import make_adapter

Damage = Callable[[dict[str, Any], dict[str, np.ndarray]], None]
Q0 = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.fixture
def adapter(saved_model: SavedModel, tmp_path: Path) -> Path:
    make_adapter(saved_model("llama")[0], tmp_path / "adapter", target_modules=["q_proj", "v_proj"])
    return tmp_path / "adapter"


def damaged(folder: Path, damage: Damage) -> Path:
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    damage(config, tensors)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def test_every_module_has_its_two_halves_and_its_scale(adapter: Path) -> None:
    read = Adapter.load(adapter)
    assert sorted(read.modules) == [f"model.layers.{i}.self_attn.{part}_proj" for i in (0, 1) for part in ("q", "v")]
    part = read.modules["model.layers.1.self_attn.v_proj"]
    assert (part.down.shape, part.up.shape, part.scale, part.rank) == ((4, 64), (32, 4), 2.0, 4)
    tensors = load_file(adapter / "adapter_model.safetensors")
    np.testing.assert_array_equal(read.modules["model.layers.0.self_attn.q_proj"].down, tensors[Q0])


REFUSED: dict[str, Damage] = {
    "peft_type is 'IA3'": lambda config, tensors: config.update(peft_type="IA3"),
    "'use_dora' is True": lambda config, tensors: config.update(use_dora=True),
    "bias is 'all'": lambda config, tensors: config.update(bias="all"),
    r"'modules_to_save' is \['lm_head'\]": lambda config, tensors: config.update(modules_to_save=["lm_head"]),
    r"'target_parameters' is \['mlp.experts": lambda config, tensors: config.update(target_parameters=["mlp.experts.down_proj"]),
    "'trainable_token_indices'": lambda config, tensors: config.update(trainable_token_indices=[3]),
    "init_lora_weights is 'pissa_niter_4'": lambda config, tensors: config.update(init_lora_weights="pissa_niter_4"),
    "'a_key_of_tomorrow' is 3, and what it means": lambda config, tensors: config.update(a_key_of_tomorrow=3),
    "'r' is 'four'": lambda config, tensors: config.update(r="four"),
    "'r' is -1": lambda config, tensors: config.update(r=-1),
    "is no regular expression": lambda config, tensors: config.update(target_modules="(q_proj"),
    "config does not target|does not target it": lambda config, tensors: config.update(target_modules=["v_proj"]),
    "the config says rank 8": lambda config, tensors: config.update(r=8),
    "has lora_B and not the other half": lambda config, tensors: tensors.pop(Q0, None) is None,
    "changes an embedding": lambda config, tensors: tensors.update({"base_model.model.model.embed_tokens.lora_embedding_A": tensors[Q0]}),
    "is no lora_A or lora_B": lambda config, tensors: tensors.update({Q0.replace("lora_A", "lora_C"): tensors[Q0]}),
    "replaces a whole tensor of the model": lambda config, tensors: tensors.update({"base_model.model.lm_head.weight": tensors[Q0]}),
    "not finite": lambda config, tensors: tensors[Q0].__setitem__((0, 0), np.nan),
    "is I64, expected|is malformed": lambda config, tensors: tensors.update({Q0: tensors[Q0].astype(np.int64)}),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_honoured_is_refused_by_name(message: str, adapter: Path) -> None:
    with pytest.raises(AdapterError, match=message) as caught:
        Adapter.load(damaged(adapter, REFUSED[message]))
    assert caught.value.where and caught.value.hint


LLAMA_MODULES = [f"model.layers.{layer}.self_attn.{part}_proj" for layer in (0, 1) for part in "qkvo"]


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["q_proj", "v_proj", "c_attn", "w1"]},  # a list for many architectures
        {"target_modules": ["q_proj", "v_proj", "o_proj"], "exclude_modules": ["o_proj"]},
        {"target_modules": ["q_proj", "k_proj"], "exclude_modules": r".*layers\.1.*"},
        {"target_modules": "all-linear"},
        {"target_modules": r".*layers\.0.*\.(q|v)_proj"},
    ],
)
def test_what_peft_saves_is_complete(config: dict[str, Any], saved_model: SavedModel, tmp_path: Path) -> None:
    model, _ = saved_model("llama")
    make_adapter(model, tmp_path / "adapter", **config)
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    Adapter.load(tmp_path / "adapter").require_complete(linear)


def test_a_targeted_module_of_the_model_without_tensors_is_refused_by_its_name(adapter: Path) -> None:
    Adapter.load(adapter).require_complete(LLAMA_MODULES)

    def lose_a_layer(config: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
        for name in [name for name in tensors if "layers.1.self_attn.v_proj" in name]:
            del tensors[name]

    with pytest.raises(AdapterError, match=r"targets 'model.layers.1.self_attn.v_proj', and the file has no tensors"):
        Adapter.load(damaged(adapter, lose_a_layer)).require_complete(LLAMA_MODULES)


def test_half_precision_is_read_exactly(adapter: Path) -> None:
    def halve(config: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
        tensors.update({name: array.astype(np.float16) for name, array in tensors.items()})

    read = Adapter.load(damaged(adapter, halve))
    tensors = load_file(adapter / "adapter_model.safetensors")
    np.testing.assert_array_equal(read.modules["model.layers.0.self_attn.q_proj"].down, tensors[Q0].astype(np.float32))


def test_a_file_that_is_cut_off_is_refused(adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(AdapterError, match="claims bytes"):
        Adapter.load(adapter)


def test_pickled_weights_are_never_opened(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(AdapterError, match=r"adapter_model\.bin, only safetensors"):
        Adapter.load(adapter)
    (adapter / "adapter_model.bin").unlink()
    with pytest.raises(AdapterError, match=r"'adapter_model\.safetensors' is missing"):
        Adapter.load(adapter)


def test_layers_and_exclusions_are_matched_as_peft_does(adapter: Path) -> None:
    def narrow(config: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
        config.update(layers_to_transform=[1, 3], layers_pattern="layers", exclude_modules=["3.self_attn.q_proj"])

    damaged(adapter, narrow)
    config = AdapterConfig.load(adapter)
    assert config.targets("model.layers.1.self_attn.q_proj") and config.targets("model.layers.3.self_attn.v_proj")
    assert not config.targets("model.layers.2.self_attn.q_proj") and not config.targets("model.layers.3.self_attn.q_proj")


def test_the_list_of_adapters_names_each_once() -> None:
    assert parse_adapter_list("law:adapters/law,chat:org/chat-lora") == {"law": "adapters/law", "chat": "org/chat-lora"}
    for text, message in {"law": "not NAME:PATH", "a:x,a:y": "given twice", "a b:x": "no adapter name", "a:": "not NAME:PATH"}.items():
        with pytest.raises(AdapterError, match=message):
            parse_adapter_list(text)


def test_a_hub_id_is_found_in_the_cache_without_a_network(adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tmp_path / "hub" / "models--org--law"
    snapshot = repository / "snapshots" / "0123456789012345678901234567890123456789"
    snapshot.parent.mkdir(parents=True)
    adapter.rename(snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(snapshot.name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path / "hub"), raising=False)
    assert Adapter.load(find_adapter("org/law")).modules


@pytest.mark.parametrize("path", ["./law", "../law", "law", "/law"])
def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(path: str) -> None:
    with pytest.raises(AdapterError, match=f"there is no adapter folder '{re.escape(path)}', and it is no hub id"):
        find_adapter(path)


def test_an_adapter_that_is_nowhere_is_a_clear_error_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(AdapterError, match="there is no adapter folder 'some-org/no-such-adapter', and no such adapter from the hub"):
        find_adapter("some-org/no-such-adapter")
