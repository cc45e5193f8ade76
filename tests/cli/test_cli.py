"""The command line: lazy verbs, help with examples, nearest names, exit codes, answers on stdout."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from artifact.tiny import write_tiny_artifact

from friendli_compile.cli import VERBS, fmo, report, run_cli
from friendli_compile.errors import InternalError, SourceError
from friendli_compile.versions import missing_packages

HEAVY = "torch, transformers, triton"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_artifact(tmp_path_factory.mktemp("artifacts") / "tiny")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_two_examples(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli([verb, "--help"]) == 0
    text = capsys.readouterr().out
    examples = [line for line in text.splitlines() if f"fmo {verb}" in line and not line.startswith("Usage")]
    assert len(examples) >= 2, text


@pytest.mark.parametrize("verb", VERBS)
def test_the_options_in_the_examples_exist(verb: str) -> None:
    command = fmo.get_command(None, verb)  # type: ignore[arg-type]
    assert command is not None and command.epilog is not None
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    for line in command.epilog.splitlines():
        if f"fmo {verb} " in line:
            used = {word.partition("=")[0] for word in line.split(f"fmo {verb} ")[1].split() if len(word) > 1 and word.startswith("-")}
            assert used <= known, line


def test_the_summary_of_the_group_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(verb in text for verb in VERBS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compil"], "Did you mean 'compile'"),
        (["explain", "--jsn", "x"], "Did you mean '--json'"),
        (["compile", "m", "--output-dir", "o", "--dtype", "fp8"], "'fp8' is not one of"),
        (["compile", "m"], "--output-dir"),
    ],
)
def test_wrong_usage_leaves_with_2_and_names_the_nearest(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.out == ""


def test_a_users_mistake_leaves_with_1_and_no_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(["explain", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and "try:" in captured.err and "Traceback" not in captured.err and captured.out == ""


def test_a_full_output_folder_is_refused_before_anything_else(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(["compile", "nowhere", "--output-dir", str(artifact)]) == 1
    assert "--force" in capsys.readouterr().err


def test_exit_codes_follow_the_exception(capsys: pytest.CaptureFixture[str]) -> None:
    assert report(SourceError("x")) == 1
    assert report(InternalError("x")) == 3
    assert report(KeyError("x")) == 3
    assert "this is a bug" in capsys.readouterr().err


def test_explain_prints_the_same_facts_as_text_and_json(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(["explain", str(artifact), "--json", "--layer", "1", "--verify"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["model"]["name"] == "tiny" and facts["num_calls"] == sum(op["calls"] for op in facts["ops"])
    assert {"attn.paged", "nn.linear"} <= {call["op"] for call in facts["calls"]}
    assert run_cli(["explain", str(artifact)]) == 0
    text = capsys.readouterr().out
    assert "SKIPPED" in text and "nn.linear" in text and "TinyForCausalLM" in text


def test_doctor_answers_in_text_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(["doctor", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["cpu"]["usable_cores"] >= 1 and facts["memory"]["available_bytes"] > 0 and facts["cpu"]["isa"][0] == "scalar"
    assert run_cli(["doctor"]) == 0
    assert "can compile" in capsys.readouterr().out


def test_an_extra_with_everything_installed_lacks_nothing() -> None:
    assert missing_packages("serve") == [] and missing_packages("compile") == []


def test_version_prints_what_is_installed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli(["version", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["numpy"]


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in ("compile", "check")])
def test_no_verb_but_compile_and_check_imports_torch(verb: str) -> None:
    code = f"import sys; from friendli_compile.cli import run_cli; run_cli(['{verb}', '--help'])\n"
    code += f"sys.exit(str(sorted({{m for m in '{HEAVY}'.split(', ')}} & set(sys.modules)) or ''))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stderr.strip() == "", result.stderr


def test_the_help_of_compile_does_not_wait_for_torch() -> None:
    code = "import sys; from friendli_compile.cli import run_cli; run_cli(['compile', '--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
