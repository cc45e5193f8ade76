"""Variants: calls of several packings of one model in one plan; what is exchanged together is found from the plans."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from self_check.compiled import compile_tiny

from friendli_compile.artifact import writer
from friendli_compile.errors import InternalError
from friendli_compile.passes import run_pipeline
from friendli_compile.plan.planner import make_plan
from friendli_compile.quality.layer_figures import unit_figures
from friendli_compile.quality.packed_run import PackedRun, Runnable
from friendli_compile.quality.probes import ProbeSet, sampled_probes
from friendli_compile.quality.variants import changed_weights, unit_bytes, units_of, variant
from friendli_compile.quantization import quantize_plan
from friendli_compile.quantize.assign import Policy


def logits(model: Runnable, tokens: np.ndarray) -> np.ndarray:
    return np.concatenate([piece for _, piece in PackedRun(model, len(tokens)).pieces(tokens)])


def test_units_are_the_weights_that_differ_and_every_one_is_in_one_unit(reference: Runnable, rounded: Runnable) -> None:
    units = units_of(reference.plan, rounded.plan)
    names = [name for unit in units for name in unit.weights]
    changed = {name for name, weight in rounded.plan["weights"].items() if weight["dtype"] == "bf16"}
    assert len(names) == len(set(names)) and set(names) == changed
    assert [min(unit.calls) for unit in units] == sorted(min(unit.calls) for unit in units)
    assert units_of(reference.plan, reference.plan) == []
    for unit in units:
        assert 2 * unit_bytes(rounded, unit) == unit_bytes(reference, unit)


def test_a_variant_differs_by_the_units_that_it_takes(reference: Runnable, rounded: Runnable, probes: ProbeSet) -> None:
    rounded = replace(rounded, plan={**rounded.plan, "kv_dtype": reference.plan["kv_dtype"]})  # a variant has the KV cache of its base
    units, tokens = units_of(reference.plan, rounded.plan), probes.sequences[0]
    expected, whole = logits(reference, tokens), logits(rounded, tokens)
    for unit in units:
        assert (logits(variant(reference, [(rounded, [unit])]), tokens) != expected).any()
    np.testing.assert_array_equal(logits(variant(reference, [(rounded, units)]), tokens), whole)
    np.testing.assert_array_equal(logits(variant(rounded, [(reference, units)]), tokens), expected)


def test_packings_of_different_models_cannot_be_mixed(reference: Runnable, rounded: Runnable) -> None:
    other = replace(rounded, plan={**rounded.plan, "calls": rounded.plan["calls"][:-1]})
    with pytest.raises(InternalError, match="different plans"):
        units_of(reference.plan, other.plan)


@pytest.mark.parametrize(("name", "scheme"), [("mixtral", "w4a8:g32"), ("llama", "w8a16:g32")])
def test_experts_and_tied_tables_are_one_unit(name: str, scheme: str, tmp_path: Path) -> None:
    """Both matrices of the experts, read by one call; one table, read by the embedding and the output projection."""
    compiled = compile_tiny(name, tmp_path, "fp32", **({"tie_word_embeddings": True} if name == "llama" else {}))
    graph = run_pipeline(compiled.traced.graph)
    base = make_plan(graph, storage_dtype="f32", max_context_len=compiled.traced.max_context_len)
    overrides = (("*embed*", "none"),) if name == "mixtral" else ()
    plan = quantize_plan(graph, base, Policy(scheme, overrides), "f32", compiled.checkpoint.read).plan
    (tmp_path / "quantized").mkdir()
    writer.write_plan(tmp_path / "quantized", plan)
    writer.write_weights(tmp_path / "quantized", plan, compiled.checkpoint.read)
    reference, quantized = Runnable.open(compiled.artifact_dir), Runnable.open(tmp_path / "quantized")
    units = units_of(reference.plan, quantized.plan)
    if name == "mixtral":
        experts = [unit for unit in units if "experts" in unit.name]
        assert len(experts) == 2 and all(len(unit.weights) == 2 and len(unit.calls) == 1 for unit in experts)
        assert all(changed_weights(reference.plan, quantized.plan, quantized.plan["calls"][unit.calls[0]]) for unit in experts)
    else:
        (table,) = [unit for unit in units if "embed" in unit.name]
        assert len(table.weights) == 1 and len(table.calls) == 2 and table.layer is None
    probes = sampled_probes(reference, [1], 64, 320)
    figures = unit_figures(reference, quantized, units, probes, num_params=10**5)
    assert all(0 < each.relative_error.value < 0.5 and each.kl is not None and each.kl.value > 0 for each in figures)
