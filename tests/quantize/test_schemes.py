"""The grammar of schemes, what fits which matrix, and who gets which scheme."""

from __future__ import annotations

import pytest

from friendli_compile.errors import FmoError
from friendli_compile.quantize.assign import PRESETS, Candidate, assign, parse_policy
from friendli_compile.quantize.schemes import PAIRS, alternatives, nearest_fitting, parse_scheme

SPELLINGS = ["w4a8:g32", "w4a16:g128z", "w8a8:channel", "w8a16:g64", "w7a8:g128", "w7a7:g32", "w8a7:g32", "fp8:channel", "fp8:block128",
             "fp8a16:tensor", "mxfp4", "mxfp4a16", "w4a8:channel", "w4a16:g8"]  # fmt: skip
WRONG = {
    "w5a8": "no quantization scheme",
    "w8a7x": "'w8' do not go with 'a7x'",
    "w4a7": "'w4' do not go with 'a7'",
    "w4a8:g33": "a group of 33 columns is no multiple of 32",
    "w4a16:g4": "a group of 4 columns",
    "w8a8:g64z": "zero points (z) go only with w4",
    "w8a8:tensor": "'tensor' goes only with fp8",
    "w8a8:rows": "'rows' does not say what shares a scale",
    "mxfp4:g64": "'g64' does not go with mxfp4",
    "fp8a8": "'fp8' do not go with 'a8'",
}


def candidate(name: str, *dims: int, role: str = "linear", call_group: str = "") -> Candidate:
    return Candidate(name, role, dims, (f"{name}.weight",), f"module.{name}", call_group or name)


@pytest.mark.parametrize("text", SPELLINGS)
def test_a_canonical_spelling_is_read_back_as_itself(text: str) -> None:
    assert str(parse_scheme(text)) == text


@pytest.mark.parametrize("text", WRONG)
def test_an_error_names_the_part_of_the_scheme_that_is_wrong(text: str) -> None:
    with pytest.raises(FmoError) as error:
        parse_scheme(text)
    assert WRONG[text] in error.value.what
    assert error.value.hint


def test_a_misspelled_preset_is_answered_with_the_nearest() -> None:
    with pytest.raises(FmoError, match="no quantization scheme") as error:
        parse_policy("4bits")
    assert "'4bit'" in error.value.hint


@pytest.mark.parametrize("num_columns", [32, 36, 40, 64, 80, 96, 2880, 4096])
@pytest.mark.parametrize("text", SPELLINGS)
def test_the_nearest_scheme_fits_and_keeps_the_rules_of_the_layout(text: str, num_columns: int) -> None:
    scheme = parse_scheme(text)
    assert scheme is not None
    nearest = nearest_fitting(scheme, num_columns)
    assert nearest is not None
    for fmt in nearest.formats(64, num_columns):
        assert num_columns % fmt.group == 0
        assert num_columns % (8 if fmt.bits == 4 else 4) == 0
        if fmt.act_dtype in ("i8", "i7"):
            assert fmt.act_group % 32 == 0
            assert num_columns % fmt.act_group == 0
            assert fmt.group in (fmt.act_group, num_columns)


def test_a_scheme_that_fits_is_its_own_nearest() -> None:
    for text in SPELLINGS:
        scheme = parse_scheme(text)
        assert scheme is not None
        assert nearest_fitting(scheme, 4096) == scheme
        assert next(alternatives(scheme)) == scheme


def test_no_pair_can_leave_16_bits() -> None:
    reach = {"i4": 8, "u4": 15, "e2m1": 12, "i7": 64, "i8": 128}
    unsigned = {"i4": 15, "u4": 15, "e2m1": 24, "i7": 127, "i8": 255}
    for pairs in PAIRS.values():
        for dtype, act in pairs:
            if act in ("i8", "i7"):
                limit = {"i8": 127, "i7": 63}[act]
                assert 2 * unsigned[dtype] * limit <= 32767  # one maddubs
                assert 2 * reach[dtype] * limit * 2 <= 32767  # the final sum of a lane of four codes


def test_presets_give_the_head_more_bits_and_leave_tiny_matrices() -> None:
    candidates = [candidate("up", 256, 128), candidate("gate", 1, 128), candidate("head", 512, 128, role="tied")]
    assigned = assign(candidates, parse_policy("4bit"))
    assert {name: str(scheme) for name, scheme in assigned.schemes.items()} == {"up": "w4a8:g32", "gate": "None", "head": "w7a7:g128"}
    assert assigned.notes == []


def test_a_preset_that_does_not_fit_gives_way_with_a_note() -> None:
    assigned = assign([candidate("odd", 64, 80)], parse_policy("4bit"))
    assert str(assigned.schemes["odd"]) == "w4a16:g16"
    assert "w4a8:g32 does not fit" in assigned.notes[0]


def test_a_preset_that_fits_no_matrix_at_all_is_refused() -> None:
    odd = candidate("odd", 64, 90)
    with pytest.raises(FmoError, match=r"'odd' \[64, 90\] cannot be stored as w7a7:g128"):
        assign([odd], parse_policy("8bit"))
    assert assign([odd, candidate("fits", 64, 128)], parse_policy("8bit")).schemes["odd"] is None


def test_an_explicit_scheme_that_does_not_fit_is_refused_with_the_nearest_that_works() -> None:
    with pytest.raises(FmoError) as error:
        assign([candidate("odd", 64, 80)], parse_policy("w4a8:g32"))
    assert "'odd' [64, 80]" in error.value.what
    assert "odd=w4a16:g16" in error.value.hint
    lenient = assign([candidate("odd", 64, 80)], parse_policy("w4a8:g32").lenient())
    assert str(lenient.schemes["odd"]) == "w4a16:g16"


def test_where_several_matrices_do_not_fit_all_are_counted_and_what_fits_all_is_said() -> None:
    candidates = [candidate("a", 64, 96), candidate("fits", 64, 256), candidate("b", 64, 64)]
    with pytest.raises(FmoError, match=r"'a' \[64, 96\] cannot be stored as w4a16:g128") as error:
        assign(candidates, parse_policy("w4a16:g128"))
    assert error.value.where.endswith("and 1 more")
    assert "'a=w4a16:g32'; for all 2: w4a16:g32" in error.value.hint


def test_the_nearest_of_an_odd_group_is_a_power_of_two() -> None:
    scheme = parse_scheme("w4a16:g48")
    assert scheme is not None and str(nearest_fitting(scheme, 64)) == "w4a16:g32"


def test_the_last_override_that_matches_wins() -> None:
    policy = parse_policy("4bit", ["*=none", "module.a*=w8a16", "ab.weight=8bit"])
    schemes = assign([candidate("aa", 64, 128), candidate("ab", 64, 128), candidate("b", 64, 128)], policy).schemes
    assert [str(schemes[name]) for name in ("aa", "ab", "b")] == ["w8a16:g128", "w7a7:g128", "None"]


def test_a_pattern_that_names_nothing_is_refused_with_a_near_name() -> None:
    with pytest.raises(FmoError, match="names no weight") as error:
        assign([candidate("up_proj", 64, 128)], parse_policy("4bit", ["upproj=none"]))
    assert "up_proj" in error.value.hint


def test_matrices_of_one_call_share_their_activations() -> None:
    candidates = [candidate("up", 4, 64, 128, call_group="experts"), candidate("down", 4, 128, 80, call_group="experts")]
    schemes = assign(candidates, parse_policy("4bit")).schemes
    assert [str(schemes[name]) for name in ("up", "down")] == ["w4a16:g32", "w4a16:g16"]
    stays = [candidate("up", 4, 64, 128, call_group="experts"), candidate("down", 4, 128, 38, call_group="experts")]
    assert set(assign(stays, parse_policy("4bit")).schemes.values()) == {None}


def test_every_preset_is_made_of_schemes_of_the_grammar() -> None:
    for preset in PRESETS.values():
        for role in ("linear", "experts", "head", "tied", "embedding"):
            preset.scheme(role)
