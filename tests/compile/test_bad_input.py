"""What is wrong with a checkpoint or a disk is said in three parts, and nothing appears under the final name."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from friendli_compile.compile import CompileOptions, compile_model
from friendli_compile.errors import FmoError, OutputError, UnsupportedModel

from .conftest import CompileTraced

Damage = Callable[[Path], None]


def edit_config(change: dict[str, Any]) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))

    return damage


def edit_tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return damage


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def garble(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not a safetensors file at all")


def unknown_dtype(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"BF16"', b'"ZZ16"', 1))


DOWN = "model.layers.1.mlp.down_proj.weight"
CASES: dict[str, tuple[Damage, list[str]]] = {
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), ["no weights", "try:"]),
    "truncated weights": (truncate, ["model.safetensors", "try:"]),
    "garbled weights": (garble, ["model.safetensors", "try:"]),
    "unknown dtype": (unknown_dtype, ["ZZ16", "try:"]),
    "wrong shape": (edit_tensors(lambda t: t.update({DOWN: torch.zeros(64, 95, dtype=torch.bfloat16)})), [DOWN, "[64, 95]", "[64, 96]"]),
    "missing tensor": (edit_tensors(lambda t: t.pop(DOWN)), [DOWN, "missing"]),
    "config is not JSON": (lambda folder: (folder / "config.json").write_text("{ nonsense") and None, ["config.json", "not JSON"]),
    "tokenizer_config is not JSON": (lambda folder: (folder / "tokenizer_config.json").write_text("[") and None, ["tokenizer_config.json"]),
    "config is missing": (lambda folder: (folder / "config.json").unlink(), ["config.json", "missing"]),
    "unknown model_type": (edit_config({"model_type": "lama"}), ["unknown model_type 'lama'", "'llama'"]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_damaged_checkpoint_is_a_clear_error_and_leaves_nothing(
    case: str, copied: Callable[[], Path], compile_traced: CompileTraced, tmp_path: Path
) -> None:
    damage, expected = CASES[case]
    folder = copied()
    damage(folder)
    with pytest.raises(FmoError) as caught:
        compile_traced(folder, tmp_path / "out")
    for text in expected:
        assert text in str(caught.value)
    assert caught.value.exit_code == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint"]


def test_a_model_folder_that_does_not_exist_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FmoError, match="no folder"):
        compile_model(CompileOptions(model=str(tmp_path / "nowhere"), output_dir=tmp_path / "out"))


def test_a_full_disk_during_packing_is_a_clear_error_and_leaves_nothing(
    tiny_checkpoint: Path, compile_traced: CompileTraced, tmp_path: Path
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(OutputError, match="cannot write the artifact"):
            compile_traced(tiny_checkpoint, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_cannot_be_traced_is_refused_with_module_op_and_line(tmp_path: Path) -> None:
    from frontend.architectures import tiny_model

    tiny_model("lfm2").save_pretrained(tmp_path / "lfm2")
    with pytest.raises(UnsupportedModel) as caught:
        compile_model(CompileOptions(model=str(tmp_path / "lfm2"), output_dir=tmp_path / "out", self_check=False))
    assert "conv" in caught.value.module and caught.value.source_line
    assert not (tmp_path / "out").exists()
