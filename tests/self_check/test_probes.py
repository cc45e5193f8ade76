"""Probes: every position of every sequence runs exactly once, lengths sit around blocks and windows, and everything is seeded."""

from __future__ import annotations

import numpy as np
import pytest

from friendli_compile.self_check.probes import MAX_PROBED_WINDOW, make_probes


@pytest.mark.parametrize("max_context_len", [1, 2, 3, 8, 17, 64, 4096])
def test_steps_cover_every_position_once_and_in_order(max_context_len: int) -> None:
    probes = make_probes(100, [0], max_context_len, [8])
    done = [0] * len(probes.tokens)
    for step in probes.steps:
        assert len({s for s, _, _ in step.rows}) == len(step.rows)
        for s, start, count in step.rows:
            assert start == done[s] and count > 0
            done[s] += count
    assert tuple(done) == probes.lengths
    assert max(probes.lengths) <= max_context_len
    assert len(probes.tokens) >= 3


def test_with_room_there_is_a_packed_prefill_a_chunk_and_sixteen_decode_steps() -> None:
    probes = make_probes(100, [], 4096, [])
    counts = [[count for _, _, count in step.rows] for step in probes.steps]
    assert len(counts[0]) >= 3 and len(set(counts[0])) >= 3
    assert max(counts[1]) > 1
    assert sum(set(step_counts) == {1} for step_counts in counts) >= 16
    assert {s for s, _, _ in probes.steps[1].rows} - {s for s, _, _ in probes.steps[0].rows}, "a sequence joins late"


def test_every_window_that_is_short_enough_is_outgrown() -> None:
    for window in (2, 8, 100, MAX_PROBED_WINDOW):
        assert max(make_probes(100, [], 4096, [window]).lengths) > window + 1
    assert max(make_probes(100, [], 4096, [MAX_PROBED_WINDOW + 1]).lengths) < MAX_PROBED_WINDOW


def test_special_tokens_are_left_out_as_long_as_others_exist() -> None:
    assert not {0, 1, 2} & {int(t) for tokens in make_probes(10, [0, 1, 2, 99], 512, []).tokens for t in tokens}
    assert {int(t) for tokens in make_probes(2, [0, 1], 512, []).tokens for t in tokens} <= {0, 1}


def test_the_same_arguments_give_the_same_probes() -> None:
    first, second = (make_probes(1000, [0], 512, [8]) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first.tokens, second.tokens, strict=True)) and first.steps == second.steps
