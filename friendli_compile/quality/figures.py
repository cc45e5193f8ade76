"""How far quantized logits are from reference logits: KL divergence, perplexity drift and top-1 agreement, with intervals.

    compare_rows(reference, quantized, next_tokens)   logits of some positions → a few numbers per position
    summarize(figures)                                 all positions → estimates with 95 % intervals

Per position, in float64, with p = softmax(reference) and q = softmax(quantized):

    kl = Σ p (log p − log q)   nats        nll = −log p(next token), −log q(next token)        agrees = the same token is the best

Positions next to each other are alike, so what varies independently is a block of BLOCK_LEN positions: intervals are those of a
delete-one-block jackknife with Student's t. Nothing here is random, and nothing holds more than a few numbers per position.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

BLOCK_LEN = 64  # positions
Z_95 = 1.959963984540054  # the normal quantile of a two-sided 95 % interval
MIN_BLOCKS = 5  # for an interval: the quantile of Student's t below is good from 4 degrees of freedom on


@dataclass(frozen=True, slots=True)
class RowFigures:
    """Of some positions in order; all arrays [num_rows]."""

    kl: np.ndarray  # f64, nats
    nll_reference: np.ndarray  # f64, nats
    nll_quantized: np.ndarray  # f64, nats
    agrees: np.ndarray  # bool


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures of a set of positions."""

    mean_kl: Estimate  # nats per token
    ppl_drift_percent: Estimate  # 100 · (quantized perplexity / reference perplexity − 1)
    top1_agreement: Estimate  # share of positions, 0 … 1
    ppl_reference: float
    ppl_quantized: float
    num_tokens: int
    num_blocks: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def compare_rows(reference: np.ndarray, quantized: np.ndarray, next_tokens: np.ndarray) -> RowFigures:
    """`reference`, `quantized` [num_rows, vocab_size] f32, `next_tokens` [num_rows] i32: the token that follows each position."""
    x, y = _shifted(reference), _shifted(quantized)
    p = np.exp(x)
    sum_p = p.sum(axis=1)
    log_sum_p, log_sum_q = np.log(sum_p), np.log(np.exp(y).sum(axis=1))
    rows = np.arange(len(next_tokens))
    nll_reference, nll_quantized = log_sum_p - x[rows, next_tokens], log_sum_q - y[rows, next_tokens]
    agrees = reference.argmax(axis=1) == quantized.argmax(axis=1)
    with np.errstate(invalid="ignore"):  # −∞ − −∞
        x -= y
    x[p == 0] = 0  # a token that the reference excludes adds nothing, also where both sides have −∞
    kl = np.einsum("rv,rv->r", p, x) / sum_p + log_sum_q - log_sum_p
    return RowFigures(np.maximum(kl, 0.0), nll_reference, nll_quantized, agrees)  # below zero by rounding only


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """[num_rows, vocab_size] → the logarithms of the probabilities, f64."""
    shifted = _shifted(logits)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


def _shifted(logits: np.ndarray) -> np.ndarray:
    """Logits as f64, the largest of each row 0."""
    shifted = logits.astype(np.float64)
    shifted -= logits.max(axis=1, keepdims=True)
    return shifted


def join(parts: Sequence[RowFigures]) -> RowFigures:
    """The positions of all parts, in order."""
    return RowFigures(
        np.concatenate([part.kl for part in parts]),
        np.concatenate([part.nll_reference for part in parts]),
        np.concatenate([part.nll_quantized for part in parts]),
        np.concatenate([part.agrees for part in parts]),
    )


def summarize(sequences: Sequence[RowFigures]) -> Summary:
    """One `RowFigures` per sequence. There must be at least MIN_BLOCKS blocks of positions."""
    counts, kl, nll_reference, nll_quantized, agreed = _block_sums(sequences)
    total = counts.sum()
    drift = jackknife(nll_quantized - nll_reference, counts)
    return Summary(
        mean_kl=at_least_zero(jackknife(kl, counts)),
        ppl_drift_percent=Estimate(*(100 * math.expm1(x) for x in (drift.value, drift.low, drift.high))),
        top1_agreement=agreement(agreed, counts),
        ppl_reference=math.exp(nll_reference.sum() / total),
        ppl_quantized=math.exp(nll_quantized.sum() / total),
        num_tokens=int(total),
        num_blocks=len(counts),
    )


def num_blocks_of(num_rows: Sequence[int]) -> int:
    """How many blocks sequences of so many positions make."""
    return sum(-(-count // BLOCK_LEN) for count in num_rows)


def jackknife(sums: np.ndarray, counts: np.ndarray) -> Estimate:
    """The mean Σ sums / Σ counts over blocks [num_blocks], with the interval that leaving out one block at a time gives."""
    value = float(sums.sum() / counts.sum())
    half = student_t(len(sums) - 1) * standard_error(sums, counts)
    return Estimate(value, value - half, value + half)


def standard_error(sums: np.ndarray, counts: np.ndarray) -> float:
    """Of the mean Σ sums / Σ counts, by the delete-one-block jackknife."""
    left_out = (sums.sum() - sums) / (counts.sum() - counts)
    num_blocks = len(sums)
    return math.sqrt((num_blocks - 1) / num_blocks * float(((left_out - left_out.mean()) ** 2).sum()))


def agreement(agreed: np.ndarray, counts: np.ndarray) -> Estimate:
    """A share with Wilson's interval, which stays inside 0 … 1 and is not empty when all positions agree.

    Where the blocks differ by more than independent positions would, it counts with the fewer positions that such blocks are worth."""
    num_rows = float(counts.sum())
    share = float(agreed.sum()) / num_rows
    error = standard_error(agreed.astype(np.float64), counts)
    effective = min(num_rows, share * (1 - share) / error**2) if error > 0 else num_rows
    t = student_t(len(counts) - 1)
    centre = (share + t * t / (2 * effective)) / (1 + t * t / effective)
    half = t / (1 + t * t / effective) * math.sqrt(share * (1 - share) / effective + t * t / (4 * effective**2))
    return Estimate(share, max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half)))  # min, max: rounding


def student_t(degrees: int) -> float:
    """The quantile of a two-sided 95 % interval (Abramowitz and Stegun 26.7.5; within 0.3 % from 4 degrees of freedom on)."""
    z, n = Z_95, max(degrees, 1)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / n + second / n**2 + third / n**3


def _block_sums(sequences: Sequence[RowFigures]) -> tuple[np.ndarray, ...]:
    """Per block of at most BLOCK_LEN positions of one sequence: their count, the sums of kl, both nll and agreement: [num_blocks] f64."""
    columns: list[list[float]] = [[], [], [], [], []]
    for figures in sequences:
        for start in range(0, len(figures.kl), BLOCK_LEN):
            block = slice(start, start + BLOCK_LEN)
            arrays = (figures.kl[block], figures.nll_reference[block], figures.nll_quantized[block], figures.agrees[block])
            for column, value in zip(columns, (len(arrays[0]), *(array.sum() for array in arrays)), strict=True):
                column.append(float(value))
    return tuple(np.array(column) for column in columns)


def at_least_zero(estimate: Estimate) -> Estimate:
    """The interval of what cannot be negative."""
    return Estimate(estimate.value, max(0.0, estimate.low), estimate.high)
