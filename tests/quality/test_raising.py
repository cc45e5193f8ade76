"""Steps are taken in the order of what they gain per byte, and as few of them as fit."""

import pytest

from friendli_compile.quality.raising import Option, fewest, levels_after, order_steps


@pytest.mark.parametrize("count", range(1, 40))
def test_the_fewest_steps_that_fit_are_found_in_few_tries(count: int) -> None:
    for needed in range(1, count + 1):
        tried: list[int] = []

        def fits(steps: int, needed: int = needed, tried: list[int] = tried) -> bool:
            tried.append(steps)
            return steps >= needed

        assert fewest(count, fits) == needed
        assert len(tried) <= 2 * count.bit_length() and len(set(tried)) == len(tried)


def test_where_nothing_fits_that_is_said() -> None:
    assert fewest(7, lambda steps: False) is None
    assert fewest(0, lambda steps: False) is None


def test_what_gains_most_per_byte_comes_first() -> None:
    small = [Option(0, 4.0, 100), Option(1, 1.0, 200), Option(2, 0.0, 400)]
    large = [Option(0, 8.0, 1000), Option(1, 2.0, 2000), Option(2, 0.0, 4000)]
    steps = order_steps([small, large])
    assert [(step.unit, step.level) for step in steps] == [(0, 1), (1, 1), (0, 2), (1, 2)]
    assert levels_after(steps[:3]) == {0: 2, 1: 1}


def test_a_step_that_gains_less_per_byte_than_the_next_is_joined_with_it() -> None:
    steps = order_steps([[Option(0, 4.0, 100), Option(1, 3.9, 200), Option(2, 0.0, 300)]])
    assert [(step.level, step.gain, step.num_bytes) for step in steps] == [(2, 4.0, 200)]


def test_levels_that_gain_nothing_are_left_out_and_missing_ones_do_no_harm() -> None:
    worse_eight = [Option(0, 1.0, 100), Option(1, 1.5, 90), Option(2, 0.0, 400)]
    no_eight = [Option(0, 1.0, 100), Option(2, 0.0, 400)]
    harmless = [Option(0, 0.0, 100), Option(1, 0.0, 200), Option(2, 0.0, 400)]
    assert [(step.unit, step.level) for step in order_steps([worse_eight, no_eight, harmless])] == [(0, 2), (1, 2)]


def test_a_level_that_is_better_and_smaller_comes_before_all_others() -> None:
    free = [Option(0, 0.1, 100), Option(1, 0.05, 90), Option(2, 0.0, 400)]
    costly = [Option(0, 9.0, 100), Option(2, 0.0, 120)]
    assert next((step.unit, step.level) for step in order_steps([costly, free])) == (0, 2)
    assert {(step.unit, step.level) for step in order_steps([costly, free])} == {(0, 2), (1, 1), (1, 2)}
