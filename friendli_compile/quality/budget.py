"""What quantization may cost, and whether measured figures show that it costs no more.

A budget is judged by the unfavourable end of the 95 % interval: a model passes when the figures *show* that it fits, not when they leave
it open. So a tight budget needs enough probe tokens; one that even equal logits could not pass on so many tokens is refused before anything
is measured. Without a budget, figures that look bad give a warning.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import FmoError
from .figures import BLOCK_LEN, Estimate, Summary, agreement


@dataclass(frozen=True, slots=True)
class Budget:
    """None: no limit."""

    max_kl: float | None = None  # nats per token
    max_ppl_drift_percent: float | None = None
    min_top1: float | None = None  # share, 0 … 1

    @property
    def is_given(self) -> bool:
        return any(limit is not None for limit in (self.max_kl, self.max_ppl_drift_percent, self.min_top1))

    def to_json(self) -> dict[str, Any]:
        return {"max_kl": self.max_kl, "max_ppl_drift_percent": self.max_ppl_drift_percent, "min_top1": self.min_top1}


SUSPICIOUS = Budget(max_kl=0.1, max_ppl_drift_percent=5.0, min_top1=0.9)  # beyond it, a model that was not given a budget gets a warning


def is_within(budget: Budget, figures: Summary) -> bool:
    return not any(True for _ in excesses(budget, figures))


def excesses(budget: Budget, figures: Summary) -> Iterator[str]:
    """What is beyond the budget, or not shown to be within it, with the values."""
    kl, drift, top1 = figures.mean_kl, figures.ppl_drift_percent, figures.top1_agreement
    if budget.max_kl is not None and not kl.high <= budget.max_kl:
        yield f"KL divergence {kl.value:.3g} nats per token (95 % interval up to {kl.high:.3g}), --max-kl {budget.max_kl:g}"
    if budget.max_ppl_drift_percent is not None and not drift.high <= budget.max_ppl_drift_percent:
        limit = budget.max_ppl_drift_percent
        yield f"perplexity {drift.value:+.3g} % (95 % interval up to {drift.high:+.3g} %), --max-ppl-drift {limit:g}"
    if budget.min_top1 is not None and not top1.low >= budget.min_top1:
        yield f"top-1 agreement {top1.value:.4f} (95 % interval from {top1.low:.4f}), --min-top1 {budget.min_top1:g}"


def suspicions(figures: Summary) -> list[str]:
    """Warnings about figures that look bad; judged by the estimates themselves."""
    kl, drift, top1 = figures.mean_kl.value, figures.ppl_drift_percent.value, figures.top1_agreement.value
    found = []
    if not kl <= _limit(SUSPICIOUS.max_kl):
        found.append(f"KL divergence {kl:.3g} nats per token")
    if not drift <= _limit(SUSPICIOUS.max_ppl_drift_percent):
        found.append(f"perplexity {drift:+.3g} %")
    if not top1 >= _limit(SUSPICIOUS.min_top1):
        found.append(f"only {100 * top1:.1f} % of the most likely tokens stay the same")
    return found


def require_provable(budget: Budget, num_tokens: int) -> None:
    """Raises FmoError when `num_tokens` positions cannot show --min-top1 even where every position agrees."""
    if budget.min_top1 is None or _perfect_agreement(num_tokens).low >= budget.min_top1:
        return
    what = f"no precision can meet --min-top1 {budget.min_top1:g} on {num_tokens} tokens"
    what += f": where all of them agree, the 95 % interval begins at {_perfect_agreement(num_tokens).low:.5f}"
    if budget.min_top1 >= 1:
        raise FmoError(what, hint="no number of tokens shows that every token agrees: ask for less than 1, e.g. --min-top1 0.99")
    needed = num_tokens
    while _perfect_agreement(needed).low < budget.min_top1:
        needed *= 2
    raise FmoError(what, hint=f"--probe-tokens {needed}, or ask for less")


def _perfect_agreement(num_tokens: int) -> Estimate:
    num_blocks = max(2, math.ceil(num_tokens / BLOCK_LEN))
    counts = np.full(num_blocks, num_tokens / num_blocks)
    return agreement(counts, counts)


def _limit(value: float | None) -> float:
    assert value is not None
    return value
