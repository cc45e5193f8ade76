"""A budget is met when the unfavourable end of the interval meets it; one that nothing could meet is refused first."""

import math
from dataclasses import replace

import pytest

from friendli_compile.errors import FmoError
from friendli_compile.quality.budget import Budget, excesses, is_within, require_provable, suspicions
from friendli_compile.quality.figures import Estimate, Summary

GOOD = Summary(
    mean_kl=Estimate(0.010, 0.008, 0.012),
    ppl_drift_percent=Estimate(0.5, 0.2, 0.8),
    top1_agreement=Estimate(0.97, 0.96, 0.98),
    ppl_reference=20.0,
    ppl_quantized=20.1,
    num_tokens=4096,
    num_blocks=64,
)


@pytest.mark.parametrize(
    ("inside", "outside"),
    [
        (Budget(max_kl=0.012), Budget(max_kl=0.011)),  # the estimate alone would fit both
        (Budget(max_ppl_drift_percent=0.8), Budget(max_ppl_drift_percent=0.7)),
        (Budget(min_top1=0.96), Budget(min_top1=0.965)),
    ],
)
def test_the_unfavourable_end_of_the_interval_decides(inside: Budget, outside: Budget) -> None:
    assert is_within(inside, GOOD) and not is_within(outside, GOOD)
    (excess,) = excesses(outside, GOOD)
    assert "95 % interval" in excess and "--" in excess


def test_every_limit_that_is_passed_is_named_with_its_value() -> None:
    names = " ".join(excesses(Budget(max_kl=0.001, max_ppl_drift_percent=0.1, min_top1=0.99), GOOD))
    for part in ("0.01 nats", "0.012", "--max-kl 0.001", "+0.5 %", "--max-ppl-drift 0.1", "0.9700", "0.9600", "--min-top1 0.99"):
        assert part in names


def test_a_divergence_that_is_not_a_number_is_outside_every_budget() -> None:
    for value in (math.nan, math.inf):
        assert not is_within(Budget(max_kl=1e9), replace(GOOD, mean_kl=Estimate(value, 0.0, value)))
        assert suspicions(replace(GOOD, mean_kl=Estimate(value, 0.0, value)))


def test_without_a_budget_only_figures_that_look_bad_are_mentioned() -> None:
    assert not Budget().is_given and is_within(Budget(), GOOD) and not suspicions(GOOD)
    assert "KL divergence 0.2" in suspicions(replace(GOOD, mean_kl=Estimate(0.2, 0.1, 0.3)))[0]
    assert "perplexity +7 %" in suspicions(replace(GOOD, ppl_drift_percent=Estimate(7.0, 6.0, 8.0)))[0]
    assert "80.0 %" in suspicions(replace(GOOD, top1_agreement=Estimate(0.8, 0.7, 0.9)))[0]


def test_an_agreement_that_so_few_tokens_cannot_show_is_refused_with_a_number_that_can() -> None:
    require_provable(Budget(min_top1=0.99), 4096)
    with pytest.raises(FmoError, match=r"no precision can meet --min-top1 0.9999 on 512 tokens") as refused:
        require_provable(Budget(min_top1=0.9999), 512)
    needed = int(refused.value.hint.split()[1].rstrip(","))
    require_provable(Budget(min_top1=0.9999), needed)
    with pytest.raises(FmoError, match="no precision can meet") as refused:
        require_provable(Budget(min_top1=1.0), 10**6)
    assert "less than 1" in refused.value.hint
