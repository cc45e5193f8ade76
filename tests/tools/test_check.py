"""fmo check-template: every family passes its round trip; a template that loses something is caught."""

import json
from pathlib import Path

import pytest
from friendli_runtime.tokenizer.chat_template import ChatTemplate
from friendli_runtime.tools.check import VECTORS_FILE, check_folder, check_template
from structured.random_model import tokenizer_of
from tokenizer.tokenizers_made_here import backend_json

from friendli_compile.cli import run_cli

from .templates import GEMMA, HERMES, WITH_CALLS


@pytest.mark.parametrize("name", WITH_CALLS)
def test_every_family_is_read_back(name: str) -> None:
    special = {"bos_token": "<s>", "eos_token": "<|end|>"}
    template = ChatTemplate(WITH_CALLS[name].replace("<|im_end|>", "<|end|>"), special)
    report = check_template(template, tokenizer_of("byte_level"), [0])
    assert report.calls is not None and report.failures == [] and report.num_splits > 200


def test_a_template_that_drops_arguments_is_caught() -> None:
    lossy = HERMES.replace("{{ call.function.arguments | tojson }}", "{{ call.function.arguments | tojson | replace('-1', '1') }}")
    report = check_template(ChatTemplate(lossy, {"eos_token": "<|end|>"}), tokenizer_of("byte_level"), [0])
    assert len(report.failures) == 2


def save(folder: Path, template: str | None) -> None:
    (folder / "tokenizer.json").write_text(backend_json("byte_level"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template, "eos_token": "<|end|>"}))


def test_the_verb_says_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path, HERMES)
    assert run_cli(["check-template", str(tmp_path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["calls"]["trigger"] == "<tool_call>" and report["calls"]["parallel"] and report["failures"] == []
    assert run_cli(["check-template", str(tmp_path)]) == 0
    assert "0 failures" in capsys.readouterr().out
    save(tmp_path, GEMMA)
    assert run_cli(["check-template", str(tmp_path)]) == 0
    assert "tool calls     none: the template does not write" in capsys.readouterr().out
    save(tmp_path, None)
    assert run_cli(["check-template", str(tmp_path)]) == 0
    assert run_cli(["check-template", str(tmp_path.parent)]) == 1


def test_texts_kept_in_an_artifact_are_read_back_too(tmp_path: Path) -> None:
    save(tmp_path, HERMES)
    report = check_folder(tmp_path)
    assert len(report.vectors) == report.num_vectors == 6
    (tmp_path / VECTORS_FILE).write_text(json.dumps({"schema_version": 1, "vectors": report.vectors}))
    again = check_folder(tmp_path)
    assert (again.failures, again.num_splits) == ([], report.num_splits)
    changed = [{**report.vectors[0], "text": report.vectors[0]["text"].replace("<tool_call>", "<call>")}]
    (tmp_path / VECTORS_FILE).write_text(json.dumps({"schema_version": 1, "vectors": changed}))
    assert len(check_folder(tmp_path).failures) == 1
    save(tmp_path, GEMMA)
    assert "does not write" in check_folder(tmp_path).failures[0]
