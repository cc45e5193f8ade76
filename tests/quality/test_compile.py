"""The gate in `fmo compile` and `fmo explain --quality`: refused, raised, recorded, skipped; contradictions are refused at once."""

import json
from pathlib import Path

import pytest
from frontend.architectures import tiny_model
from models.scripted import save_tokenizer

from friendli_compile.artifact.folder import OutputFolder
from friendli_compile.cli import run_cli
from friendli_compile.compile import CompileOptions, CompileReport, build_artifact
from friendli_compile.errors import FmoError, QualityGateFailed
from friendli_compile.frontend.source import ModelSource, load_source
from friendli_compile.frontend.trace import TracedModel, trace_model
from friendli_compile.progress import Progress
from friendli_compile.quality.budget import Budget
from friendli_compile.quality.gate import QualityOptions

Model = tuple[ModelSource, TracedModel]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    tiny_model("llama").save_pretrained(folder)
    save_tokenizer(folder)
    source = load_source(str(folder))
    return source, trace_model(source)


def build(model: Model, target: Path, quality: QualityOptions | None, quantize: str = "4bit") -> CompileReport:
    source, traced = model
    options = CompileOptions(
        model=str(source.folder),
        output_dir=target,
        quantize=quantize,
        quantize_layers=("*embed*=none",),
        quality=quality,
        self_check=False,
    )
    with OutputFolder(target, replace=False) as folder:
        return build_artifact(folder, options, source, traced, Progress())


def options(auto_mixed: bool = False, **limits: float) -> QualityOptions:
    return QualityOptions(budget=Budget(**limits), auto_mixed=auto_mixed, num_tokens=400)


@pytest.fixture(scope="module")
def measured(model: Model, tmp_path_factory: pytest.TempPathFactory) -> CompileReport:
    return build(model, tmp_path_factory.mktemp("artifacts") / "measured", options())


def test_what_was_measured_is_in_the_report_the_manifest_and_explain(measured: CompileReport, capsys: pytest.CaptureFixture[str]) -> None:
    recorded = json.loads((measured.artifact / "report.json").read_text())["quality"]
    in_manifest = json.loads((measured.artifact / "manifest.json").read_text())["quality"]
    assert recorded["status"] == "measured" and {**in_manifest, "units": recorded["units"]} == recorded
    assert set(recorded["probe"]["tokens"]) == {"text", "samples"} and recorded["overall"]["num_tokens"] >= 400
    assert run_cli(["explain", str(measured.artifact), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["quality"] == recorded
    assert run_cli(["explain", str(measured.artifact), "--quality"]) == 0
    text = capsys.readouterr().out
    worst = recorded["units"][0]
    assert worst["weights"][0] in text and f"{worst['share']:.1%}" in text and "95 % intervals" in text
    assert f"{recorded['overall']['mean_kl']['value']:.3g} [" in text
    assert not (measured.artifact / "quality").exists()


def test_the_same_inputs_give_the_same_bytes(model: Model, measured: CompileReport, tmp_path: Path) -> None:
    again = build(model, tmp_path / "again", options())
    files = {path.relative_to(measured.artifact): path.read_bytes() for path in measured.artifact.rglob("*") if path.is_file()}
    assert files == {path.relative_to(again.artifact): path.read_bytes() for path in again.artifact.rglob("*") if path.is_file()}


def test_over_the_budget_nothing_is_emitted_and_what_fits_is_said(model: Model, measured: CompileReport, tmp_path: Path) -> None:
    limit = measured.report["quality"]["overall"]["mean_kl"]["value"] / 2
    with pytest.raises(QualityGateFailed, match="more than the budget allows") as refused:
        build(model, tmp_path / "refused", options(max_kl=limit))
    assert measured.report["quality"]["units"][0]["weights"][0] in refused.value.where and "--auto-mixed would fit" in refused.value.hint
    assert list(tmp_path.iterdir()) == []


def test_auto_mixed_emits_an_artifact_within_the_budget(model: Model, measured: CompileReport, tmp_path: Path) -> None:
    limit = measured.report["quality"]["overall"]["mean_kl"]["value"] / 2
    report = build(model, tmp_path / "raised", options(auto_mixed=True, max_kl=limit))
    quality = report.report["quality"]
    assert (
        quality["overall"]["mean_kl"]["high"] <= limit
        and quality["raised"]
        and quality["budget"]["max_kl"] == pytest.approx(limit, rel=1e-3)
    )
    assert any("--auto-mixed raised" in note for note in report.notes)
    dtypes = {weight["dtype"] for weight in json.loads((report.artifact / "plan.json").read_text())["weights"].values()}
    assert {"i4", "i7"} <= dtypes
    assert sum(report.manifest["model"]["quantization"]["schemes"].values()) == sum(
        measured.manifest["model"]["quantization"]["schemes"].values()
    )


def test_what_is_not_measured_is_recorded_and_warned_of(model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = build(model, tmp_path / "skipped", None)
    assert report.report["quality"] == report.manifest["quality"] == {"status": "skipped"}
    assert "WARNING: --no-quality" in capsys.readouterr().err
    assert run_cli(["explain", str(report.artifact), "--quality"]) == 0
    assert "NOT MEASURED (--no-quality)" in capsys.readouterr().out


def test_a_model_that_is_not_quantized_has_no_figures(model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, traced = model
    plain = CompileOptions(model=str(source.folder), output_dir=tmp_path / "plain", self_check=False)
    with OutputFolder(plain.output_dir, replace=False) as folder:
        report = build_artifact(folder, plain, source, traced, Progress())
    assert "quality" not in report.report and "quality" not in report.manifest
    assert run_cli(["explain", str(report.artifact), "--quality"]) == 0
    assert "nothing is quantized" in capsys.readouterr().out


def test_figures_that_look_bad_are_warned_of(model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Four bits with one scale per row are too few for a tiny model."""
    report = build(model, tmp_path / "bad", options(), quantize="w4a16:channel")
    assert report.report["quality"]["warnings"]
    assert "WARNING: quantization changes this model a lot: " in capsys.readouterr().err


def test_an_empty_probe_file_is_refused_before_the_model_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.txt").write_text("")
    arguments = ["compile", "nowhere", "-o", str(tmp_path / "out"), "--quantize", "4bit", "--probe", str(tmp_path / "empty.txt")]
    assert run_cli(arguments) == 1
    message = capsys.readouterr().err
    assert "error: the probe file holds no text (0 bytes)" in message and "where:" in message and "try:" in message


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--max-kl", "0.1"], 1, "nothing is quantized"),
        (["--quantize", "4bit", "--auto-mixed"], 1, "--auto-mixed has no budget to meet"),
        (["--quantize", "4bit", "--no-quality", "--max-kl", "0.1"], 2, "--no-quality measures nothing"),
        (["--quantize", "4bit", "--min-top1", "99"], 2, "0<=x<=1"),
        (["--quantize", "4bit", "--max-kl", "-1"], 2, "x>=0"),
        (["--quantize", "4bit", "--max-kl", "nan"], 2, "nan is not a finite number"),
        (["--quantize", "4bit", "--probe-tokens", "10"], 2, "x>=320"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    assert run_cli(["compile", "nowhere", "-o", str(tmp_path / "out"), *arguments]) == code
    assert message in capsys.readouterr().err


def test_an_agreement_that_the_tokens_cannot_show_is_refused(model: Model, tmp_path: Path) -> None:
    with pytest.raises(FmoError, match=r"no precision can meet --min-top1 0\.999 on 400 tokens") as refused:
        build(model, tmp_path / "refused", options(min_top1=0.999))
    assert "--probe-tokens" in refused.value.hint
