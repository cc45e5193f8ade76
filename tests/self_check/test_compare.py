"""The one rule of comparison, and when a check of the whole model fits in memory."""

from __future__ import annotations

import numpy as np

from friendli_compile.self_check.compare import BASE_TOLERANCE, compare_logits, tolerance_for
from friendli_compile.self_check.memory import whole_model_bytes

LOGITS = np.array([[1.0, 2.0, 3.0], [5.0, -1.0, 0.0]], np.float32)


def test_the_tolerance_is_absolute_for_ordinary_logits_and_grows_with_large_ones() -> None:
    assert tolerance_for(LOGITS) == BASE_TOLERANCE
    assert np.isclose(tolerance_for(LOGITS * 100), BASE_TOLERANCE * 50)


def test_a_row_beyond_the_tolerance_is_wrong_and_only_that_row() -> None:
    ours = LOGITS.copy()
    ours[1, 2] += 3e-4
    comparison = compare_logits(ours, LOGITS)
    assert comparison.wrong_rows.tolist() == [False, True] and comparison.tokens_equal.all()
    assert np.isclose(comparison.max_abs_error, 3e-4, rtol=1e-3)
    assert comparison.without(np.array([False, True])).max_abs_error == 0


def test_another_greedy_token_is_wrong_unless_the_reference_is_undecided() -> None:
    tie = np.array([[1.0, 1.0 + 1e-4, 0.0]], np.float32)
    swapped = tie[:, [1, 0, 2]]
    comparison = compare_logits(swapped, tie)
    assert not comparison.wrong_tokens.any() and not comparison.tokens_equal.any()
    clear = np.array([[1.0, 1.001, 0.0]], np.float32)
    assert compare_logits(clear[:, [1, 0, 2]], clear).wrong_tokens.all()


def test_what_is_not_a_number_is_wrong_on_either_side() -> None:
    for value in (np.nan, np.inf, -np.inf):
        broken = LOGITS.copy()
        broken[0, 1] = value
        assert compare_logits(broken, LOGITS).wrong_rows[0]
        assert compare_logits(LOGITS, broken, tolerance=1.0).wrong_rows[0]
        assert compare_logits(broken, broken, tolerance=1.0).wrong_rows[0]


def test_the_memory_for_a_whole_check_covers_float32_weights_artifact_and_logits() -> None:
    small = whole_model_bytes(num_params=10**9, artifact_bytes=2 * 10**9, num_probe_tokens=200, vocab_size=32000)
    assert small > 4 * 10**9 + 2 * 10**9
    assert whole_model_bytes(10**9, 2 * 10**9, 200, 256000) > small
