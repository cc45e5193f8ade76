"""`fmo check` and the phases on stderr."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from frontend.architectures import tiny_config

from friendli_compile.cli import run_cli
from friendli_compile.progress import Progress


def save_config(name: str, folder: Path) -> Path:
    config = tiny_config(name)
    config.architectures = ["SomeForCausalLM"]
    config.save_pretrained(folder)
    return folder


def test_check_needs_only_a_config_and_answers_in_text_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_config("qwen3", tmp_path / "qwen3")
    assert run_cli(["check", str(folder), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["supported"] and report["architecture"] == "Qwen3ForCausalLM" and report["num_params"] > 10_000
    weights = report["weight_bytes"]
    assert weights["4bit"] < weights["8bit"] < weights["bf16"] < weights["fp32"] == 4 * report["num_params"]
    assert weights.keys() == report["fits_in_gib"].keys() and report["fits_in_gib"]["bf16"] == 4
    heads = 2 * 2  # layers × heads, of 16 dims
    assert report["kv_bytes_per_token"] == {"fp32": heads * 32 * 4, "bf16": heads * 32 * 2, "int8": heads * (32 + 2 * 4)}
    assert run_cli(["check", str(folder), "--max-context", "100"]) == 0
    assert "context 100 tokens" in capsys.readouterr().out


def test_check_of_an_unsupported_model_leaves_with_1_and_names_module_op_and_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_config("lfm2", tmp_path / "lfm2")
    assert run_cli(["check", str(folder)]) == 1
    text = capsys.readouterr().out
    assert "not supported" in text and "module:" in text and "modeling_lfm2.py:" in text


@pytest.mark.parametrize(("debug", "expected"), [("0", ""), ("1", "pack")])
def test_phases_are_quiet_when_piped_and_aligned_lines_when_asked_for(
    debug: str, expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FMO_DEBUG", debug)
    progress = Progress()
    with progress.phase("pack") as phase:
        phase.update(0.5, "half")
        phase.detail = "3 MB"
    assert set(progress.seconds) == {"pack"}
    line = capsys.readouterr().err
    assert line.startswith(expected) and ("3 MB" in line) == bool(expected) and "half" not in line
