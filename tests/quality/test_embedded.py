"""The embedded model, quantized as users do it: it stays as good on its held-out excerpt as is promised; --auto-mixed meets a budget."""

import contextlib
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from friendli_runtime.tokenizer.tokenizer import Tokenizer

from friendli_compile.artifact import writer
from friendli_compile.artifact.folder import OutputFolder
from friendli_compile.compile import CompileOptions, CompileReport, build_artifact
from friendli_compile.frontend.checkpoint import Checkpoint
from friendli_compile.frontend.source import ModelSource, load_source
from friendli_compile.frontend.trace import TracedModel, trace_model
from friendli_compile.passes import run_pipeline
from friendli_compile.plan.planner import make_plan
from friendli_compile.progress import Progress
from friendli_compile.quality.budget import Budget
from friendli_compile.quality.compare import Reference, compare
from friendli_compile.quality.figures import Summary
from friendli_compile.quality.gate import QualityOptions
from friendli_compile.quality.packed_run import Runnable
from friendli_compile.quality.probes import ProbeSet
from friendli_compile.quantization import quantize_plan
from friendli_compile.quantize.assign import Policy
from friendli_compile.quantize.round_weight import Rounding

EXAMPLE = Path(__file__).parents[2] / "examples" / "stdlib-coder"
Measure = Callable[[Runnable], Summary]


@pytest.fixture(scope="module")
def model() -> tuple[ModelSource, TracedModel]:
    source = load_source(str(EXAMPLE / "model"))
    return source, trace_model(source)


def build(model: tuple[ModelSource, TracedModel], target: Path, quantize: str, quality: QualityOptions | None) -> CompileReport:
    source, traced = model
    options = CompileOptions(model=str(source.folder), output_dir=target, quantize=quantize, quality=quality, self_check=False)
    with OutputFolder(target, replace=False) as folder, contextlib.redirect_stderr(io.StringIO()):
        return build_artifact(folder, options, source, traced, Progress())


def pack_plainly(model: tuple[ModelSource, TracedModel], folder: Path, policy: Policy) -> Runnable:
    source, traced = model
    checkpoint, graph = Checkpoint(source, traced), run_pipeline(traced.graph)
    base = make_plan(graph, storage_dtype="bf16", max_context_len=traced.max_context_len)
    plan = quantize_plan(graph, base, policy, "bf16", checkpoint.read).plan
    folder.mkdir()
    writer.write_plan(folder, plan)
    writer.write_weights(folder, plan, checkpoint.read, rounding=Rounding(search=False))
    return Runnable.open(folder)


@pytest.fixture(scope="module")
def held_out(model: tuple[ModelSource, TracedModel], tmp_path_factory: pytest.TempPathFactory) -> Measure:
    """Figures on the held-out excerpt."""
    text = (EXAMPLE / "held_out_excerpt.txt").read_text()
    ids = np.array(Tokenizer.load(EXAMPLE / "model").encode(text, add_special_tokens=False), np.int32)
    probes = ProbeSet(tuple(np.array_split(ids, 2)), ("excerpt",) * 2)
    reference = Reference(pack_plainly(model, tmp_path_factory.mktemp("packed") / "reference", Policy()), probes.sequences)
    return lambda quantized: compare(reference, quantized, probes).overall


def test_8_bits_keep_the_perplexity_within_half_a_percent(
    model: tuple[ModelSource, TracedModel], held_out: Measure, tmp_path: Path
) -> None:
    figures = held_out(Runnable.open(build(model, tmp_path / "8bit", "8bit", None).artifact))
    assert abs(figures.ppl_drift_percent.value) < 0.5 and figures.mean_kl.high < 0.001 and figures.top1_agreement.value > 0.96


def test_4_bits_keep_the_perplexity_within_4_percent_and_beat_plain_rounding(
    model: tuple[ModelSource, TracedModel], held_out: Measure, tmp_path: Path
) -> None:
    online = held_out(Runnable.open(build(model, tmp_path / "4bit", "4bit", None).artifact))
    plain = held_out(pack_plainly(model, tmp_path / "plain", Policy("4bit")))
    assert online.ppl_drift_percent.high < 4 and online.top1_agreement.value > 0.85
    assert online.mean_kl.high < plain.mean_kl.low


def test_auto_mixed_meets_a_budget_that_4_bits_do_not(model: tuple[ModelSource, TracedModel], tmp_path: Path) -> None:
    budget = Budget(max_kl=0.004)
    report = build(model, tmp_path / "mixed", "4bit", QualityOptions(budget=budget, auto_mixed=True, num_tokens=640))
    quality = report.report["quality"]
    assert quality["overall"]["mean_kl"]["high"] <= 0.004 and 0 < len(quality["raised"]) < 17
    schemes = report.manifest["model"]["quantization"]["schemes"]
    assert schemes["w4a8:g32"] > 0 and schemes["w7a7:g128"] > 1
