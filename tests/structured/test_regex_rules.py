"""Patterns: what matches, what is refused."""

import re

import pytest
from friendli_runtime.structured.errors import InvalidConstraint
from friendli_runtime.structured.regex_rules import translated_regex
from hypothesis import given, settings
from hypothesis import strategies as st

from .random_model import Babbler


@pytest.fixture(scope="module")
def babbler():
    running = Babbler()
    yield running
    running.close()


def accepts(babbler: Babbler, pattern: str, text: str) -> bool:
    return babbler.constraint({"type": "regex", "schema": pattern}).accepts(text)


@pytest.mark.parametrize(
    ("pattern", "matching", "other"),
    [
        (r"\d+", ["0", "42"], ["", "٣", "4x"]),
        (r"\w{2}", ["a_", "Z9"], ["é1", "a"]),
        (r"a\sb", ["a b", "a\tb"], ["a\u00a0b", "ab"]),
        (r"\D\W\S", ["a-b", "é.x"], ["1-b", "a_b"]),
        (r"[\w.]+@x", ["a.b@x"], ["@x", "é@x"]),
        (r"[\D]", ["a", "é"], ["5"]),
        (r"[^\s]", ["a"], [" "]),
        (r"[[]", ["["], ["]"]),
        (r"[]]", ["]"], ["["]),
        (r"[a&&b]", ["&", "a"], ["&&"]),
        (r"[\]\[\\-]", ["]", "[", "\\", "-"], ["a"]),
        (r"a{2,3}", ["aa", "aaa"], ["a", "aaaa"]),
        (r"a{,3}b{x", ["a{,3}b{x"], ["ab"]),
        (r"(?:ab|c)+?", ["ab", "cab"], ["", "b"]),
        (r"a/b\/c", ["a/b/c"], ["a/b"]),
        (r"\x41\u0042", ["AB"], ["ab"]),
        (r"[\n ,.?!0-9\uac00-\ud7af]*", ["안녕 9", ""], ["a"]),
        (r"\.\*\+\?\(\)\{\}\|\^\$", [".*+?(){}|^$"], ["x"]),
        ("가|🙂", ["가", "🙂"], ["나"]),
        (r"x\ty\nz", ["x\ty\nz"], ["xtynz"]),
        ('say "hi"', ['say "hi"'], ["say hi"]),
        (".", ["a", "é", "🙂"], ["\n", "ab"]),
    ],
)
def test_a_pattern_describes_the_whole_text(babbler, pattern, matching, other):
    assert [text for text in matching if not accepts(babbler, pattern, text)] == []
    assert [text for text in other if accepts(babbler, pattern, text)] == []


UNSUPPORTED = [
    *(r"^a", r"a$", r"\Aa", r"a\z", r"a\Z", r"\ba", r"\Ba", r"(?=a)b", r"(?!a)b", r"(?<=a)b", r"(?<!a)b", r"(a)\1", r"(?(1)a|b)"),
    *(r"\p{L}", r"\PL", r"\N{DASH}", r"(?i)a", r"(?P<n>a)", r"[[:alpha:]]", r"[a", r"\x4", r"\ud800", r"\q", r"\aa"),
    *(r"(a", r"a)", r"*a", r"[b-a]", r"a{1000}{1000}", r"((a{1,1000}b){1,50}c){1,50}", r"a{0,999999}"),
    *("\\", "a\\"),
]


@pytest.mark.parametrize("pattern", UNSUPPORTED)
def test_what_is_not_supported_is_refused(babbler, pattern):
    with pytest.raises(InvalidConstraint) as caught:
        babbler.constraint({"type": "regex", "schema": pattern})
    assert caught.value.param == "response_format"


def test_many_repeats_side_by_side_are_not_too_many(babbler):
    pattern = "".join(f"{char}{{0,1000}}" for char in "abcdefghij")
    assert accepts(babbler, pattern, "a" * 500) and accepts(babbler, "((a{1,1000}b){1,10}c){1,10}", "aabcabc")


def test_anchors_at_the_ends_are_dropped_where_patterns_are_searched():
    assert translated_regex("^a$|^b$", strip_anchors=True) == "a|b"
    for pattern in ("a^", "(^a)", "$a", "a|b^"):
        with pytest.raises(InvalidConstraint):
            translated_regex(pattern, strip_anchors=True)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a", "<a>"), ("^a", "a>"), ("a$", "<a"), ("^a$", "a"), ("^a|b$", "a>|<b"), ("", "<>"), ("^", ">"), ("$", "<"), ("a|", "<a>|<>"),
        (r"a\$", r"<a\$>"), ("[$]", "<[$]>"), ("(a|b)$", "<(a|b)"), ("^(?:a|b)|c", "(?:a|b)>|<c>"), (r"\||a", r"<\|>|<a>"),
    ],
)  # fmt: skip
def test_a_searched_pattern_has_anything_where_it_has_no_anchor(pattern, expected):
    expected = expected.replace("<", "(?s:.*)").replace(">", "(?s:.*)")
    assert translated_regex(pattern, strip_anchors=True, is_searched=True) == expected


_PARTS = st.sampled_from(
    ["a", "b", ".", r"\d", r"\w", r"\s", "[ab]", "[^a]", r"[\d_]", "(?:a|b)", "(a)", "x{1,2}", "é", r"\.", "-", "]", "}"]
)
_REPEATS = st.sampled_from(["", "*", "+", "?", "{2}", "{1,3}"])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(_PARTS, _REPEATS), min_size=1, max_size=5), st.text("ab1_x .é-]}\n", max_size=6))
def test_patterns_mean_what_they_mean_in_python(babbler, parts, text):
    pattern = "".join(part + repeat for part, repeat in parts)
    try:
        compiled = re.compile(pattern, re.ASCII)
    except re.error:
        return
    assert accepts(babbler, pattern, text) == bool(compiled.fullmatch(text)), pattern
