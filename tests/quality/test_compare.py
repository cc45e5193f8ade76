"""Both sides are run piece by piece; what comes out equals whole runs in numpy, and what is no number is refused."""

import numpy as np
import pytest

from friendli_compile.errors import QualityGateFailed
from friendli_compile.quality import compare as compare_module
from friendli_compile.quality.compare import Reference, compare, compare_sequences, require_numbers
from friendli_compile.quality.figures import join, log_softmax
from friendli_compile.quality.packed_run import PackedRun, Runnable
from friendli_compile.quality.probes import ProbeSet


def whole_logits(model: Runnable, tokens: np.ndarray) -> np.ndarray:
    return np.concatenate([logits for _, logits in PackedRun(model, len(tokens)).pieces(tokens)])


def test_figures_equal_those_of_whole_logits_in_float64(reference: Runnable, rounded: Runnable, probes: ProbeSet) -> None:
    rows = join(compare_sequences(Reference(reference, probes.sequences), rounded))
    kl, nll = [], []
    for tokens in probes.sequences:
        log_p, log_q = (log_softmax(whole_logits(model, tokens))[:-1] for model in (reference, rounded))
        kl.append((np.exp(log_p) * (log_p - log_q)).sum(axis=1))
        nll.append(-log_q[np.arange(len(log_q)), tokens[1:]])
    np.testing.assert_allclose(rows.kl, np.concatenate(kl), rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(rows.nll_quantized, np.concatenate(nll), rtol=1e-12)
    summary = compare(Reference(reference, probes.sequences), rounded, probes).overall
    assert summary.num_tokens == probes.num_scored == sum(map(len, kl))
    assert 0 < summary.mean_kl.value < 1e-2 and summary.mean_kl.value == pytest.approx(np.concatenate(kl).mean(), rel=1e-6)


def test_a_model_is_no_distance_from_itself(reference: Runnable, probes: ProbeSet) -> None:
    figures = compare(Reference(reference, probes.sequences), reference, probes)
    assert figures.overall.mean_kl.high == 0 and figures.overall.ppl_drift_percent.value == 0
    assert figures.overall.top1_agreement.value == 1 and set(figures.parts) == {"samples"}


def test_a_reference_that_is_not_remembered_gives_the_same_figures(
    reference: Runnable, rounded: Runnable, probes: ProbeSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    remembered = Reference(reference, probes.sequences)
    monkeypatch.setattr(compare_module, "MAX_REMEMBERED_BYTES", 0)
    computed = Reference(reference, probes.sequences)
    assert compare(remembered, rounded, probes) == compare(remembered, rounded, probes) == compare(computed, rounded, probes)


def test_intervals_shrink_with_more_tokens(reference: Runnable, rounded: Runnable, probes: ProbeSet) -> None:
    half = ProbeSet(probes.sequences[: len(probes.sequences) // 2], probes.parts[: len(probes.sequences) // 2])
    few, many = (compare(Reference(reference, part.sequences), rounded, part).overall for part in (half, probes))
    assert many.mean_kl.high - many.mean_kl.low < few.mean_kl.high - few.mean_kl.low


@pytest.mark.parametrize(
    ("expected", "given", "who"),
    [
        ([1.0, np.nan], [1.0, 2.0], "the reference"),
        ([1.0, 2.0], [1.0, np.nan], "the quantized model"),
        ([1.0, 2.0], [1.0, np.inf], "the quantized model"),
        ([1.0, 2.0], [-np.inf, -np.inf], "the quantized model"),
        ([1.0, 2.0], [1.0, -np.inf], "the quantized model"),  # excludes a token that the reference does not
    ],
)
def test_what_is_no_number_is_refused_with_its_position(expected: list[float], given: list[float], who: str) -> None:
    good = [[0.0, 1.0]] * 3
    with pytest.raises(QualityGateFailed, match=f"logits of {who} are not numbers at 1 of 4") as refused:
        require_numbers(np.array([*good, expected], np.float32), np.array([*good, given], np.float32), 2, 128)
    assert "sequence 2, position 131" in refused.value.where and refused.value.hint


def test_tokens_that_both_sides_exclude_are_allowed() -> None:
    logits = np.array([[0.0, -np.inf, 3.0]], np.float32)
    require_numbers(logits, logits + 1, 0, 0)
