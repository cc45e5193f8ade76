"""The gate on a tiny model with its real kernels: it names the layer that is damaged, says what would fit, and raises it when asked to."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from friendli_runtime.weight_files import locate_weights
from self_check.compiled import Compiled

from friendli_compile.artifact import writer
from friendli_compile.errors import FmoError, QualityGateFailed
from friendli_compile.passes import run_pipeline
from friendli_compile.plan.planner import make_plan
from friendli_compile.quality.budget import Budget
from friendli_compile.quality.gate import Quality, QualityOptions, run_gate
from friendli_compile.quality.layer_figures import ERROR_PIECE, NUM_ERROR_TOKENS, relative_errors, shortened, unit_figures
from friendli_compile.quality.packed_run import PackedRun, Runnable
from friendli_compile.quality.probes import ProbeSet
from friendli_compile.quality.record import for_manifest, quality_record, rounded
from friendli_compile.quality.variants import units_of, variant
from friendli_compile.quality_gate import ModelPackings
from friendli_compile.quantization import Quantized, quantize_plan
from friendli_compile.quantize.assign import Policy

FOUR_BIT = Policy("w4a8:g32", (("*embed*", "none"), ("lm_head*", "8bit")))
DAMAGED = "model.layers.1.mlp.down_proj.weight"
Make = Callable[[Policy], ModelPackings]


@pytest.fixture
def make_packings(fp32: Compiled, tmp_path: Path) -> Make:
    graph = run_pipeline(fp32.traced.graph)

    def quantize(policy: Policy, dtype: str) -> Quantized:
        base = make_plan(graph, storage_dtype=dtype, max_context_len=fp32.traced.max_context_len)
        return quantize_plan(graph, base, policy, dtype, fp32.checkpoint.read)

    def write(folder: Path, plan: object) -> None:
        writer.write_plan(folder, plan)  # type: ignore[arg-type]
        writer.write_weights(folder, plan, fp32.checkpoint.read)  # type: ignore[arg-type]

    def make(policy: Policy) -> ModelPackings:
        quantized = quantize(policy, "f32")
        folder = tmp_path / "artifact"
        folder.mkdir()
        write(folder, quantized.plan)
        return ModelPackings(folder, policy, quantized, quantize=quantize, write=write, dtype="f32", source_dtype="f32")

    return make


def damage(packings: ModelPackings, folder: Path, weight: str) -> None:
    """Every scale of one weight becomes that of another row."""
    at = locate_weights(sorted(folder.glob("*.safetensors")))[f"{weight}.scales"]
    data = bytearray(at.path.read_bytes())
    scales = np.frombuffer(data, np.float16, at.num_bytes // 2, at.offset)
    scales[:] = np.random.default_rng(0).permutation(scales) * 3
    at.path.write_bytes(data)


def run(packings: ModelPackings, probes: ProbeSet, budget: Budget, auto_mixed: bool = False) -> Quality:
    return run_gate(packings, probes, QualityOptions(budget=budget, auto_mixed=auto_mixed), num_params=10**5)


def test_without_a_budget_everything_is_measured_and_nothing_changed(make_packings: Make, probes: ProbeSet) -> None:
    packings = make_packings(FOUR_BIT)
    quality = run(packings, probes, Budget())
    assert quality.raised == () and quality.figures.overall.num_tokens == probes.num_scored
    quantized = {name for name, scheme in packings.quantized.schemes.items() if scheme is not None}
    assert {name for each in quality.units for name in each.unit.weights} == quantized
    assert sum(each.share for each in quality.units) == pytest.approx(1)
    assert all(0 < each.relative_error.value < 0.3 for each in quality.units)
    for each in quality.units:
        assert each.kl is not None
        assert all(figure.low < figure.value < figure.high for figure in (each.relative_error, each.kl))


def test_the_error_of_a_layer_is_that_of_its_rounded_weights_and_activations(make_packings: Make, probes: ProbeSet) -> None:
    """8 bits of both are about 16 times closer than 4 bits of the weights; what is not quantized has no error."""
    packings = make_packings(FOUR_BIT)
    reference, units = packings.reference(), units_of(packings.reference().plan, packings.artifact().plan)
    eight = packings.packed_as("8bit", [name for unit in units for name in unit.weights])
    assert eight is not None
    four_bit_units = [unit for unit in units if "lm_head" not in unit.name]
    fours = np.array([error.value for error in relative_errors(reference, packings.artifact(), four_bit_units, probes)])
    eights = np.array([error.value for error in relative_errors(reference, eight, four_bit_units, probes)])
    assert (eights * 3 < fours).all() and (eights > 0).all()
    assert {error.high for error in relative_errors(reference, reference, four_bit_units, probes)} == {0.0}


def test_the_error_of_the_output_projection_is_that_of_the_logits(make_packings: Make, probes: ProbeSet) -> None:
    packings = make_packings(FOUR_BIT)
    reference, artifact = packings.reference(), packings.artifact()
    (head,) = [unit for unit in units_of(reference.plan, artifact.plan) if "lm_head" in unit.name]
    (error,) = relative_errors(reference, artifact, [head], probes)
    alone = variant(reference, [(artifact, [head])])
    pieces = shortened(probes, NUM_ERROR_TOKENS, ERROR_PIECE)
    both = [
        [np.concatenate([y for _, y in PackedRun(model, ERROR_PIECE).pieces(piece)]) for piece in pieces] for model in (reference, alone)
    ]
    y, other = (np.concatenate(logits).astype(np.float64) for logits in both)
    assert error.value == pytest.approx(np.linalg.norm(other - y) / np.linalg.norm(y), rel=1e-6)


def test_a_variant_is_the_model_that_would_be_packed(make_packings: Make, probes: ProbeSet) -> None:
    """All units taken from the artifact: every logit equal, bit by bit."""
    packings = make_packings(FOUR_BIT)
    reference, artifact = packings.reference(), packings.artifact()
    whole = variant(reference, [(artifact, units_of(reference.plan, artifact.plan))])
    tokens = probes.sequences[0]
    for (_, ours), (_, theirs) in zip(
        PackedRun(whole, len(tokens)).pieces(tokens), PackedRun(artifact, len(tokens)).pieces(tokens), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_a_damaged_layer_is_refused_and_named(make_packings: Make, probes: ProbeSet, tmp_path: Path) -> None:
    packings = make_packings(FOUR_BIT)
    healthy = run(packings, probes, Budget()).figures.overall.mean_kl
    damage(packings, tmp_path / "artifact", DAMAGED)
    with pytest.raises(QualityGateFailed, match="more than the budget allows: KL divergence") as refused:
        run(packings, probes, Budget(max_kl=1.2 * healthy.high))
    assert refused.value.where.startswith(f"worst: {DAMAGED} (")
    assert "--auto-mixed would fit" in refused.value.hint and DAMAGED in refused.value.hint


def test_auto_mixed_raises_what_is_worst_until_the_budget_is_met(make_packings: Make, probes: ProbeSet) -> None:
    packings = make_packings(FOUR_BIT)
    before = run(packings, probes, Budget())
    num_bytes = sum(size for _, _, size in packings.artifact().weights.values())
    budget = Budget(max_kl=before.figures.overall.mean_kl.value / 3)
    after = run(packings, probes, budget, auto_mixed=True)
    assert after.figures.overall.mean_kl.high <= budget.max_kl  # type: ignore[operator]
    raised = {name for change in after.raised for name in change.weights}
    assert 0 < len(after.raised) < len(before.units) and raised <= {name for each in before.units for name in each.unit.weights}
    added = sum(size for _, _, size in packings.artifact().weights.values()) - num_bytes
    assert added == sum(change.added_bytes for change in after.raised) > 0
    for change in after.raised:
        scheme = packings.quantized.schemes[change.weights[0]]
        assert (scheme is None) == (change.preset == "none")


def test_auto_mixed_chooses_the_same_every_time(make_packings: Make, probes: ProbeSet, tmp_path: Path) -> None:
    results = []
    for number in range(2):
        packings = make_packings(FOUR_BIT)
        results.append(run(packings, probes, Budget(max_kl=0.01), auto_mixed=True))
        packings.discard()
        (tmp_path / "artifact").rename(tmp_path / f"old-{number}")
    assert results[0].raised == results[1].raised and results[0].figures == results[1].figures


def test_a_budget_that_needs_no_quantization_at_all_gets_none(make_packings: Make, probes: ProbeSet) -> None:
    packings = make_packings(FOUR_BIT)
    quality = run(packings, probes, Budget(max_kl=0.0), auto_mixed=True)
    assert quality.figures.overall.mean_kl.high == 0.0 and quality.units == ()
    assert set(packings.quantized.schemes.values()) == {None}


def test_a_budget_that_no_precision_meets_is_refused_before_anything_runs(make_packings: Make, probes: ProbeSet) -> None:
    with pytest.raises(FmoError, match=r"no precision can meet --min-top1 0\.9999"):
        run(make_packings(FOUR_BIT), probes, Budget(min_top1=0.9999), auto_mixed=True)


def test_a_budget_that_even_the_unquantized_artifact_misses_is_refused_with_its_figures(
    make_packings: Make, probes: ProbeSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint is fp32, the artifact rounds what it does not quantize to bf16: that alone costs more than is allowed."""
    packings = make_packings(FOUR_BIT)
    monkeypatch.setattr(packings, "_dtype", "bf16")
    packings.rewrite({})
    with pytest.raises(QualityGateFailed, match="no precision meets the budget; with every weight unquantized: KL divergence"):
        run(packings, probes, Budget(max_kl=1e-12), auto_mixed=True)


def test_figures_that_look_bad_give_warnings_only_without_a_budget(make_packings: Make, probes: ProbeSet, tmp_path: Path) -> None:
    packings = make_packings(FOUR_BIT)
    damage(packings, tmp_path / "artifact", DAMAGED)
    assert run(packings, probes, Budget()).warnings
    assert run(packings, probes, Budget(max_kl=100.0)).warnings == ()


def test_too_few_probe_tokens_are_refused(make_packings: Make, probes: ProbeSet) -> None:
    few = ProbeSet(probes.sequences[:1], probes.parts[:1])
    with pytest.raises(QualityGateFailed, match="64 probe tokens in 1 blocks; 5 are needed"):
        run(make_packings(FOUR_BIT), few, Budget())


def test_large_models_have_output_errors_and_no_runs_per_layer(make_packings: Make, probes: ProbeSet) -> None:
    packings = make_packings(FOUR_BIT)
    reference, artifact = packings.reference(), packings.artifact()
    figures = unit_figures(reference, artifact, units_of(reference.plan, artifact.plan), probes, num_params=10**12)
    assert all(each.kl is None for each in figures) and sum(each.share for each in figures) == pytest.approx(1)


def test_the_record_is_json_with_few_digits_and_the_worst_units_first(make_packings: Make, probes: ProbeSet) -> None:
    packings = make_packings(FOUR_BIT)
    options = QualityOptions(budget=Budget(max_kl=5.0))
    record = quality_record(run_gate(packings, probes, options, 10**5), options, probes, packings.artifact().plan)
    assert record["probe"] == {"source": "shipped", "tokens": {"samples": probes.num_scored}} and record["budget"]["max_kl"] == 5.0
    shares = [unit["share"] for unit in record["units"]]
    assert shares == sorted(shares, reverse=True) and record["units"][0]["dtype"] in ("i4", "i7")
    assert rounded(record) == record and "units" not in for_manifest(record)
    assert rounded({"a": [1234.567, 0.00012345678, 0.0, 7]}) == {"a": [1235.0, 0.0001235, 0.0, 7]}


def test_scratch_packings_are_removed(make_packings: Make, probes: ProbeSet, tmp_path: Path) -> None:
    packings = make_packings(FOUR_BIT)
    run(packings, probes, Budget())
    assert isinstance(packings.reference(), Runnable) and (tmp_path / "artifact" / "quality").is_dir()
    packings.discard()
    assert {path.name for path in (tmp_path / "artifact").iterdir()} == {"plan.json", "weights-00001.safetensors"}
