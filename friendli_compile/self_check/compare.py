"""When two sets of logits are the same: one rule for the whole self-check.

Both sides compute in float32 on equal weights and differ only in the order of their sums, so their difference grows with the size of the
numbers that are summed. Measured on the architectures that we promise, it is 1e-6 to 1e-5 for logits up to 10, and the smallest real
mistake (a scale wrong by 1e-3) moves logits by 3e-3 and more. Hence 2e-4 for logits up to 10, growing in proportion beyond:

    tolerance = 2e-4 · max(1, max|reference| / 10)

Greedy tokens must be equal, except where the reference's two best logits are closer than twice the tolerance: there either is right.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BASE_TOLERANCE = 2e-4
ORDINARY_SCALE = 10.0  # largest logit for which the base tolerance is meant


def tolerance_for(reference: np.ndarray) -> float:
    """The absolute tolerance for values of this size."""
    largest = float(np.max(np.abs(reference), initial=0.0))
    return BASE_TOLERANCE * max(1.0, largest / ORDINARY_SCALE)


@dataclass(frozen=True)
class Comparison:
    """Of logits [num_rows, vocab_size]; `row_errors` is the largest error of each row (NaN counts as infinite)."""

    row_errors: np.ndarray  # [num_rows] f64
    tolerance: float
    wrong_tokens: np.ndarray  # [num_rows] bool: greedy tokens differ and it is not a tie
    tokens_equal: np.ndarray  # [num_rows] bool

    @property
    def max_abs_error(self) -> float:
        return float(np.max(self.row_errors, initial=0.0))

    @property
    def wrong_rows(self) -> np.ndarray:
        """[num_rows] bool: outside the rule."""
        return (self.row_errors > self.tolerance) | self.wrong_tokens

    def without(self, rows: np.ndarray) -> Comparison:
        """The comparison of the other rows; `rows` [num_rows] bool."""
        kept = ~rows
        return Comparison(self.row_errors[kept], self.tolerance, self.wrong_tokens[kept], self.tokens_equal[kept])


def compare_logits(ours: np.ndarray, reference: np.ndarray, tolerance: float | None = None) -> Comparison:
    """`ours` and `reference` [num_rows, vocab_size] f32. The tolerance follows the reference's scale where it is not given."""
    tolerance = tolerance_for(reference) if tolerance is None else tolerance
    row_errors = row_differences(ours, reference)
    best, ours_best = reference.argmax(axis=-1), ours.argmax(axis=-1)
    rows = np.arange(len(reference))
    with np.errstate(invalid="ignore"):
        lead = reference[rows, best] - reference[rows, ours_best]
    tokens_equal = best == ours_best
    return Comparison(row_errors, tolerance, ~tokens_equal & ~(lead <= 2 * tolerance), tokens_equal)


def row_differences(ours: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """The largest absolute difference of each row [num_rows]; infinite where either side is not a number."""
    with np.errstate(invalid="ignore"):
        difference = np.abs(ours.astype(np.float64) - reference)
    difference[~np.isfinite(difference)] = np.inf
    return difference.reshape(len(difference), -1).max(axis=-1, initial=0.0)
