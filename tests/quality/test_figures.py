"""The figures equal a plain float64 computation, and their intervals are right as often as they say."""

import math

import numpy as np
import pytest

from friendli_compile.quality.figures import (
    BLOCK_LEN,
    MIN_BLOCKS,
    RowFigures,
    agreement,
    compare_rows,
    jackknife,
    join,
    num_blocks_of,
    student_t,
    summarize,
)

VOCAB_SIZE = 50


def random_rows(rng: np.random.Generator, num_rows: int, noise: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    reference = (rng.standard_normal((num_rows, VOCAB_SIZE)) * 4).astype(np.float32)
    quantized = (reference + rng.standard_normal(reference.shape) * noise).astype(np.float32)
    return reference, quantized, rng.integers(0, VOCAB_SIZE, num_rows).astype(np.int32)


def test_every_position_equals_the_textbook_formula_in_float64() -> None:
    reference, quantized, next_tokens = random_rows(np.random.default_rng(0), 200, 0.5)
    figures = compare_rows(reference, quantized, next_tokens)
    for row in range(200):
        p = np.exp(reference[row].astype(np.float64)) / np.exp(reference[row].astype(np.float64)).sum()
        q = np.exp(quantized[row].astype(np.float64)) / np.exp(quantized[row].astype(np.float64)).sum()
        assert figures.kl[row] == pytest.approx((p * np.log(p / q)).sum(), rel=1e-9)
        assert figures.nll_reference[row] == pytest.approx(-math.log(p[next_tokens[row]]), rel=1e-12)
        assert figures.nll_quantized[row] == pytest.approx(-math.log(q[next_tokens[row]]), rel=1e-12)
        assert figures.agrees[row] == (p.argmax() == q.argmax())


def test_the_summary_is_the_mean_over_positions_and_the_ratio_of_perplexities() -> None:
    rng = np.random.default_rng(1)
    sequences = [compare_rows(*random_rows(rng, length, 0.3)) for length in (130, 64, 7, 255)]
    whole, summary = join(sequences), summarize(sequences)
    assert summary.num_tokens == 456 and summary.num_blocks == num_blocks_of([130, 64, 7, 255]) == 9
    assert summary.mean_kl.value == pytest.approx(whole.kl.mean(), rel=1e-12)
    assert summary.top1_agreement.value == pytest.approx(whole.agrees.mean())
    ratio = math.exp(whole.nll_quantized.mean()) / math.exp(whole.nll_reference.mean())
    assert summary.ppl_drift_percent.value == pytest.approx(100 * (ratio - 1), rel=1e-9)
    assert summary.ppl_quantized / summary.ppl_reference == pytest.approx(ratio)
    for estimate in (summary.mean_kl, summary.ppl_drift_percent, summary.top1_agreement):
        assert estimate.low < estimate.value < estimate.high


def test_equal_logits_have_no_divergence_and_agree_up_to_what_so_many_tokens_can_show() -> None:
    reference, _, next_tokens = random_rows(np.random.default_rng(2), 640, 0.0)
    summary = summarize([compare_rows(reference, reference.copy(), next_tokens)])
    assert summary.mean_kl.value == summary.mean_kl.high == 0.0
    assert summary.ppl_drift_percent.value == summary.ppl_drift_percent.high == 0.0
    assert summary.top1_agreement.value == summary.top1_agreement.high == 1.0
    assert 0.98 < summary.top1_agreement.low < 1.0


def test_huge_and_excluded_logits_give_numbers() -> None:
    reference = np.array([[1e4, 0, -np.inf], [3, 2, -np.inf]], np.float32)
    quantized = np.array([[1e4, 5, -np.inf], [2, 3, -np.inf]], np.float32)
    figures = compare_rows(reference, quantized, np.array([0, 1], np.int32))
    assert figures.kl[0] == 0 and figures.kl[1] == pytest.approx(math.tanh(0.5))
    assert figures.agrees.tolist() == [True, False]


def test_a_token_that_only_the_quantized_side_excludes_is_infinitely_far() -> None:
    figures = compare_rows(np.zeros((1, 2), np.float32), np.array([[0, -np.inf]], np.float32), np.array([0], np.int32))
    assert figures.kl[0] == math.inf


def figures_with_kl(kl: np.ndarray) -> RowFigures:
    return RowFigures(kl, np.ones_like(kl), np.ones_like(kl) + kl, kl < 0.2)


def test_intervals_shrink_with_the_square_root_of_the_tokens() -> None:
    widths = []
    for num_blocks in (16, 64, 256):
        kl = np.random.default_rng(3).gamma(1.0, 0.1, num_blocks * BLOCK_LEN)
        summary = summarize([figures_with_kl(kl)])
        widths.append([e.high - e.low for e in (summary.mean_kl, summary.ppl_drift_percent, summary.top1_agreement)])
    for narrow, wide in ((1, 0), (2, 1)):
        ratios = np.array(widths[narrow]) / np.array(widths[wide])
        assert (ratios > 0.35).all() and (ratios < 0.7).all()


def test_the_interval_of_a_mean_covers_the_truth_about_95_times_in_100() -> None:
    rng = np.random.default_rng(4)
    covered = 0
    for _ in range(400):  # what varies is the block: positions of one block are alike
        levels = rng.gamma(4.0, 0.025, 12)
        kl = np.repeat(levels, BLOCK_LEN)
        estimate = summarize([figures_with_kl(kl)]).mean_kl
        covered += estimate.low <= 0.1 <= estimate.high
    assert 0.90 <= covered / 400 <= 0.985


def test_the_jackknife_of_equal_blocks_is_the_t_interval_of_their_means() -> None:
    means = np.random.default_rng(5).normal(size=10)
    estimate = jackknife(means * 64, np.full(10, 64.0))
    assert estimate.value == pytest.approx(means.mean())
    assert estimate.high - estimate.value == pytest.approx(2.262 * means.std(ddof=1) / math.sqrt(10), rel=2e-3)


def test_blocks_that_agree_by_turns_are_worth_fewer_positions_than_independent_ones() -> None:
    counts = np.full(20, 64.0)
    clustered = agreement(np.where(np.arange(20) < 10, 64.0, 32.0), counts)
    spread = agreement(np.full(20, 48.0), counts)
    assert clustered.value == spread.value == 0.75
    assert clustered.high - clustered.low > 2 * (spread.high - spread.low)


@pytest.mark.parametrize(("degrees", "quantile"), [(4, 2.776), (5, 2.571), (9, 2.262), (30, 2.042), (1000, 1.962)])
def test_the_quantile_is_that_of_the_tables(degrees: int, quantile: float) -> None:
    assert degrees >= MIN_BLOCKS - 1
    assert student_t(degrees) == pytest.approx(quantile, rel=4e-3)
