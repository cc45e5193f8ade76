"""Stop strings against a brute-force search, whatever the pieces."""

import random

import pytest
from friendli_runtime.tokenizer.stop_strings import StopStrings


def run(stops: list[str], pieces: list[str]) -> tuple[str, bool, list[str]]:
    matcher = StopStrings(stops)
    shown = [matcher.push(piece) for piece in pieces]
    return "".join(shown) + matcher.finish(), matcher.stopped, shown


def brute_force(stops: list[str], text: str) -> tuple[str, bool]:
    for end in range(1, len(text) + 1):
        matching = [stop for stop in stops if text[:end].endswith(stop)]
        if matching:
            return text[: end - len(max(matching, key=len))], True
    return text, False


def test_random_texts_in_random_pieces_stop_where_brute_force_says() -> None:
    rng = random.Random(11)
    for _ in range(3000):
        stops = ["".join(rng.choices("ab", k=rng.randint(1, 4))) for _ in range(rng.randint(0, 3))]
        text = "".join(rng.choices("abc", k=rng.randint(0, 20)))
        pieces, rest = [], text
        while rest:
            size = rng.randint(1, 5)
            pieces.append(rest[:size])
            rest = rest[size:]
        shown, stopped, _ = run(stops, pieces)
        assert (shown, stopped) == brute_force(stops, text), (stops, pieces)


def test_no_part_of_a_stop_string_is_shown_before_it_is_refuted() -> None:
    assert run(["</a>"], ["x <", "/", "b>y", "</a>z"]) == ("x </b>y", True, ["x ", "", "</b>y", ""])


def test_text_that_cannot_begin_a_stop_string_is_not_delayed() -> None:
    assert run(["END"], ["abc", "def"])[2] == ["abc", "def"]


def test_held_text_comes_out_at_the_end() -> None:
    assert run(["END"], ["abcEN"]) == ("abcEN", False, ["abc"])


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        StopStrings([""])
