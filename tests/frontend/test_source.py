"""Finding a model: folders, hub ids, and errors that say what to do."""

import json
from pathlib import Path

import pytest

from friendli_compile.errors import CheckpointError, SourceError
from friendli_compile.frontend.source import load_source
from frontend.architectures import tiny_config


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder with a config, an (empty) weight file and a tokenizer."""
    tiny_config("llama").save_pretrained(tmp_path)
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / name).write_text("{}")
    return tmp_path


def test_a_folder_gives_its_config_weights_and_tokenizer_files(folder: Path) -> None:
    source = load_source(str(folder))
    assert source.config.model_type == "llama" and source.config_dict["hidden_size"] == 64
    assert [path.name for path in source.safetensors_files] == ["model.safetensors"]
    assert {path.name for path in source.tokenizer_files} >= {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}


def test_shards_come_from_the_index(folder: Path) -> None:
    (folder / "a.safetensors").write_text("")
    (folder / "b.safetensors").write_text("")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "b.safetensors", "y": "a.safetensors"}}))
    assert [path.name for path in load_source(str(folder)).safetensors_files] == ["a.safetensors", "b.safetensors"]
    (folder / "a.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"1 of 2 weight files are missing: a\.safetensors"):
        load_source(str(folder))


def test_weights_are_not_needed_for_a_check(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert load_source(str(folder), weights=False).safetensors_files == ()
    with pytest.raises(CheckpointError, match="the folder has no weights"):
        load_source(str(folder))


def test_a_pickled_checkpoint_is_refused_with_the_command_that_converts_it(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin, only safetensors are read") as caught:
        load_source(str(folder))
    assert "save_pretrained" in caught.value.hint


def test_a_config_that_is_missing_or_not_json_is_named(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "llama",')
    with pytest.raises(SourceError, match=r"'config\.json' is not JSON"):
        load_source(str(folder))
    (folder / "config.json").write_text("[]")
    with pytest.raises(SourceError, match="holds a JSON list, expected an object"):
        load_source(str(folder))
    (folder / "config.json").unlink()
    with pytest.raises(SourceError, match=r"'config\.json' is missing"):
        load_source(str(folder))


def test_an_unknown_model_type_is_answered_with_the_nearest_one(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "lamma"}')
    with pytest.raises(SourceError, match="unknown model_type 'lamma'") as caught:
        load_source(str(folder))
    assert "'llama'" in caught.value.hint
    (folder / "config.json").write_text('{"model_type": "homemade", "auto_map": {"AutoModelForCausalLM": "modeling.Model"}}')
    with pytest.raises(SourceError) as caught:
        load_source(str(folder))
    assert "its own Python code, which is never run" in caught.value.hint
    (folder / "config.json").write_text("{}")
    with pytest.raises(SourceError, match="'model_type' is None"):
        load_source(str(folder))


def test_a_config_that_transformers_refuses_is_an_error_of_the_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "llama", "hidden_size": "many"}')
    with pytest.raises(SourceError, match="transformers refuses this config"):
        load_source(str(folder))


def test_what_is_neither_folder_nor_hub_id_is_refused_without_the_network() -> None:
    with pytest.raises(SourceError, match="it is not a hub id"):
        load_source("./no/such/folder")


def test_a_hub_id_that_is_not_cached_is_refused_when_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(SourceError, match="the hub cache does not hold it") as caught:
        load_source("some-org/some-model")
    assert "HF_HUB_OFFLINE" in caught.value.hint


def test_a_hub_id_in_the_cache_is_found_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--some-org--some-model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for path in folder.iterdir():
        if path.is_file():
            (snapshot / path.name).write_bytes(path.read_bytes())
    source = load_source("some-org/some-model")
    assert source.folder == snapshot and [path.name for path in source.safetensors_files] == ["model.safetensors"]
