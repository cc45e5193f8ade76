"""`--quantize` end to end: reproducible, recorded, layer by layer where asked for; bad input is refused and leaves nothing behind.

How good the embedded model stays is tested in tests/quality/test_embedded.py.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from friendli_runtime.artifact import Artifact
from frontend.architectures import tiny_model
from safetensors.torch import load_file, save_file

from friendli_compile.artifact.folder import OutputFolder
from friendli_compile.cli import run_cli
from friendli_compile.compile import CompileOptions, build_artifact
from friendli_compile.errors import CheckpointError, FmoError, OutputError
from friendli_compile.frontend.source import ModelSource, load_source
from friendli_compile.frontend.trace import TracedModel, trace_model
from friendli_compile.progress import Progress


def build(source: ModelSource, traced: TracedModel, target: Path, quantize: str | None, *layers: str) -> Path:
    options = CompileOptions(
        model=str(source.folder), output_dir=target, quantize=quantize, quantize_layers=layers, quality=None, self_check=False
    )
    with OutputFolder(target, replace=False) as folder:
        build_artifact(folder, options, source, traced, Progress())
    return target


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelSource, TracedModel]:
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    tiny_model("llama").to(torch.bfloat16).save_pretrained(folder)
    source = load_source(str(folder))
    return source, trace_model(source)


def test_the_same_model_gives_the_same_bytes_in_4_bits(tiny: tuple[ModelSource, TracedModel], tmp_path: Path) -> None:
    first, second = (build(*tiny, tmp_path / name, "4bit") for name in ("a", "b"))
    for path in sorted(path for path in first.rglob("*") if path.is_file()):
        assert (second / path.relative_to(first)).read_bytes() == path.read_bytes(), path.name
    assert not list(first.rglob("*.npy")), "what was collected is not left behind"


def test_what_was_asked_for_is_in_the_manifest_and_patterns_change_layers(tiny: tuple[ModelSource, TracedModel], tmp_path: Path) -> None:
    artifact = Artifact.open(build(*tiny, tmp_path / "out", "4bit", "*.layers.0.*=none", "*down_proj*=w8a16:channel"))
    recorded = artifact.manifest["model"]["quantization"]
    assert recorded["asked"] == "4bit" and recorded["layers"] == ["*.layers.0.*=none", "*down_proj*=w8a16:channel"]
    assert sum(recorded["schemes"].values()) == 10 and recorded["schemes"]["none"] == 3
    weights = artifact.plan["weights"]
    assert weights["model.layers.0.self_attn.o_proj.weight"]["layout"] == "panel16"
    assert weights["model.layers.1.self_attn.o_proj.weight"]["dtype"] == "i4"
    assert weights["model.layers.0.mlp.down_proj.weight"]["group"] == 96, "the last pattern wins"


def test_a_disk_that_holds_the_artifact_but_not_the_reference_beside_it_is_refused_at_once(
    tiny: tuple[ModelSource, TracedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact_bytes = sum(path.stat().st_size for path in build(*tiny, tmp_path / "fits", "4bit").rglob("*"))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=artifact_bytes))
    with pytest.raises(OutputError, match="compiling needs"):
        build(*tiny, tmp_path / "out", "4bit")
    build(*tiny, tmp_path / "out", "w7a8")  # rounds without calibration: no reference


def test_a_weight_that_is_infinite_is_refused_by_name_and_nothing_is_left(tiny: tuple[ModelSource, TracedModel], tmp_path: Path) -> None:
    source, traced = tiny
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for path in source.folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][3, 5] = torch.inf
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.mlp\.down_proj\.weight"):
        build(load_source(str(folder)), traced, tmp_path / "out", "4bit")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_wrong_schemes_are_refused_before_anything_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, expected in (
        (["--quantize", "4bits"], "'4bit'"),
        (["--quantize", "w4a8:g33"], "w4a8:g32"),
        (["--quantize", "4bit", "--quantize-layer", "lm_head"], "PATTERN=SCHEME"),
    ):
        assert run_cli(["compile", str(tmp_path / "nothing"), "-o", str(tmp_path / "out"), *arguments]) == 1
        assert expected in capsys.readouterr().err


def test_a_pattern_that_names_nothing_is_refused_with_a_near_name(tiny: tuple[ModelSource, TracedModel], tmp_path: Path) -> None:
    with pytest.raises(FmoError, match="names no weight") as error:
        build(*tiny, tmp_path / "out", "4bit", "lmhead*=8bit")
    assert "lm_head.weight" in error.value.hint
