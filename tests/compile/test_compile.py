"""The compile driver: what it writes, what it chooses, and that the same inputs give the same bytes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from friendli_runtime.artifact import Artifact
from friendli_runtime.loaded_model import BLOCK_SIZE, kv_block_bytes

from friendli_compile.compile import CompileOptions, compile_model, model_name

from .conftest import CompileTraced


def compile_tiny(model: Path, output_dir: Path, **options: object) -> dict[str, object]:
    arguments = {"model": str(model), "output_dir": output_dir, "self_check": False, **options}
    return compile_model(CompileOptions(**arguments)).to_json()  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def compiled(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("artifacts") / "tiny"
    compile_tiny(tiny_checkpoint, target, self_check=True)
    return target


def test_a_checkpoint_becomes_an_artifact_that_opens_and_verifies(compiled: Path) -> None:
    artifact = Artifact.open(compiled)
    artifact.verify()
    model = artifact.manifest["model"]
    assert (model["name"], model["architecture"], model["model_type"]) == ("tiny-llama", "LlamaForCausalLM", "llama")
    assert (artifact.vocab_size, artifact.max_context_len, artifact.eos_token_ids, artifact.bos_token_id) == (256, 512, (2,), 1)
    assert len(artifact.plan["kv_layers"]) == 2 and artifact.tokenizer_folder == compiled / "tokenizer"
    assert json.loads((compiled / "report.json").read_text())["notes"] == [
        "the checkpoint has no chat template: completions work, chat requests are refused"
    ]


def test_a_bf16_checkpoint_is_stored_as_bf16_without_being_asked(compiled: Path) -> None:
    artifact = Artifact.open(compiled)
    assert artifact.manifest["model"]["dtype"] == "bf16" and artifact.kv_dtype == "bf16"
    matrices = {name: weight["dtype"] for name, weight in artifact.plan["weights"].items() if len(weight["dims"]) == 2 and "proj" in name}
    assert matrices and set(matrices.values()) == {"bf16"}


def test_the_reported_size_of_the_kv_cache_is_what_serving_takes(compiled: Path) -> None:
    artifact = Artifact.open(compiled)
    memory = json.loads((compiled / "report.json").read_text())["memory"]
    assert memory["kv_bytes_per_token"] * BLOCK_SIZE == kv_block_bytes(artifact, artifact.kv_dtype)


def test_a_passed_self_check_is_recorded(compiled: Path) -> None:
    recorded = Artifact.open(compiled).manifest["self_check"]
    assert recorded["status"] == "passed" and recorded["greedy_tokens_equal"] and recorded["max_abs_error"] <= recorded["tolerance"]
    assert json.loads((compiled / "report.json").read_text())["self_check"] == recorded


def test_the_same_model_gives_the_same_bytes(tiny_checkpoint: Path, compiled: Path, tmp_path: Path) -> None:
    compile_tiny(tiny_checkpoint, tmp_path / "again", self_check=True)
    for path in sorted(compiled.rglob("*")):
        if path.is_file():
            assert (tmp_path / "again" / path.relative_to(compiled)).read_bytes() == path.read_bytes(), path.name


def test_dtype_fp32_and_max_context_and_name_are_honoured(tiny_checkpoint: Path, tmp_path: Path) -> None:
    compile_tiny(tiny_checkpoint, tmp_path / "out", dtype="fp32", max_context_len=48, name="another")
    artifact = Artifact.open(tmp_path / "out")
    assert (artifact.name, artifact.max_context_len, artifact.kv_dtype) == ("another", 48, "f32")
    assert {weight["dtype"] for weight in artifact.plan["weights"].values()} == {"f32"}


def test_packed_weights_are_those_of_the_checkpoint(compiled: Path, tiny_checkpoint: Path) -> None:
    from safetensors.torch import load_file

    artifact = Artifact.open(compiled)
    tensors = load_file(tiny_checkpoint / "model.safetensors")
    place = artifact.weights["model.layers.1.mlp.down_proj.weight"]
    lanes = np.fromfile(place.path, np.uint32, place.num_bytes // 4, offset=place.offset).reshape(64 // 16, 96, 8)
    rows = np.concatenate([lanes << 16, lanes & 0xFFFF0000], axis=2).view(np.float32).transpose(0, 2, 1).reshape(64, 96)
    np.testing.assert_array_equal(rows, tensors["model.layers.1.mlp.down_proj.weight"].float().numpy())
    norm = artifact.weights["model.norm.weight"]
    stored = np.fromfile(norm.path, np.float32, norm.num_bytes // 4, offset=norm.offset)
    np.testing.assert_array_equal(stored, tensors["model.norm.weight"].float().numpy())


def test_fp16_weights_a_missing_tokenizer_a_generation_config_and_a_skipped_self_check(
    copied: Callable[[], Path], compile_traced: CompileTraced, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file, save_file

    folder = copied()
    tensors = {name: tensor.half() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "tokenizer.json").unlink()
    (folder / "generation_config.json").write_text('{"eos_token_id": [7, 9, 100000], "bos_token_id": null, "pad_token_id": -1}')
    report = compile_traced(folder, tmp_path / "out").to_json()
    artifact = Artifact.open(tmp_path / "out")
    assert artifact.manifest["model"]["dtype"] == "fp32"
    assert (artifact.eos_token_ids, artifact.bos_token_id, artifact.pad_token_id, artifact.tokenizer_folder) == ((7, 9), 1, None, None)
    notes = " ".join(report["notes"])  # type: ignore[arg-type]
    assert "fp16" in notes and "no tokenizer.json" in notes
    assert artifact.manifest["self_check"] == {"status": "skipped"}
    assert "WARNING: --no-self-check" in capsys.readouterr().err


def test_a_folder_with_a_name_that_says_nothing_is_named_after_its_parent(tmp_path: Path) -> None:
    (tmp_path / "stdlib-coder" / "model").mkdir(parents=True)
    assert model_name(str(tmp_path / "stdlib-coder" / "model")) == "stdlib-coder"
    assert model_name(str(tmp_path / "stdlib-coder")) == "stdlib-coder"
    assert model_name("org/name") == "org/name"


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_an_interrupted_compilation_leaves_nothing(tiny_checkpoint: Path, tmp_path: Path, number: signal.Signals) -> None:
    target = tmp_path / "out" / "artifact"
    command = [sys.executable, "-c", "from friendli_compile.cli import main; main()", "compile", str(tiny_checkpoint), "-o", str(target)]
    process = subprocess.Popen([*command, "--no-self-check"], stderr=subprocess.PIPE, text=True, env=os.environ | {"FMO_DEBUG": "1"})
    while not list(tmp_path.glob("out/.artifact.partial-*")):
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait() == 130
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("is_lossy", [False, True])
def test_calls_of_the_chat_template_are_tried_out_and_kept(
    copied: Callable[[], Path], compile_traced: CompileTraced, tmp_path: Path, is_lossy: bool
) -> None:
    from friendli_runtime.tools.check import VECTORS_FILE, check_folder
    from tokenizer.tokenizers_made_here import backend_json
    from tools.templates import HERMES

    model = copied()
    template = HERMES.replace("arguments | tojson", "arguments | tojson | replace('-1', '1')") if is_lossy else HERMES
    (model / "tokenizer.json").write_text(backend_json("byte_level"))
    (model / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": template.replace("<|im_end|>", "<|end|>"), "eos_token": "<|end|>"})
    )
    report = compile_traced(model, tmp_path / "out")
    assert len(json.loads((tmp_path / "out" / VECTORS_FILE).read_text())["vectors"]) == 6
    assert [note for note in report.notes if "not read back" in note] == (
        ["tool calls of the chat template are not read back (2 of 6): fmo check-template"] if is_lossy else []
    )
    Artifact.open(tmp_path / "out").verify()
    assert len(check_folder(tmp_path / "out").failures) == (2 if is_lossy else 0)
