"""Every bad value is refused by name, with its bounds; good values at the bounds pass."""

import math

import pytest
from friendli_runtime.sampling import MAX_NUM_SAMPLES, InvalidSamplingParams, SamplingParams

VOCAB, CONTEXT, PROMPT = 100, 64, 10


def validate(**fields) -> None:
    SamplingParams(**fields).validate(VOCAB, CONTEXT, PROMPT)


@pytest.mark.parametrize(
    "field",
    ["temperature", "top_p", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty", "xtc_threshold", "xtc_probability"],
)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -2.5, 1e9, "1", None, True])
def test_numbers_that_are_not_finite_or_out_of_bounds_are_refused_by_name(field, value):
    with pytest.raises(InvalidSamplingParams, match=f"'{field}' is ") as caught:
        validate(**{field: value})
    assert caught.value.field == field and caught.value.bounds


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("max_tokens", [0, -1, CONTEXT - PROMPT + 1, 10**30, 1.5]),
        ("max_total_tokens", [PROMPT, CONTEXT + 1]),
        ("min_tokens", [-1, 55]),
        ("top_k", [-1, VOCAB + 1, 2.0]),
        ("n", [0, MAX_NUM_SAMPLES + 1]),
        ("logprobs", [-1, VOCAB + 1]),
        ("seed", [-1, 2**64, 1.0, (1, 2)]),
        ("no_repeat_ngram", [-1]),
        ("stop_token_ids", [(VOCAB,), (-1,)]),
        ("eos_token_ids", [(VOCAB,)]),
        ("forced_output_tokens", [(-1,), (1,) * 55]),
        ("bad_words_ids", [((),), ((1, VOCAB),)]),
        ("stop_token_sequences", [((),), ((-1,),)]),
        ("logit_bias", [{VOCAB: 1.0}, {-1: 1.0}]),
    ],
)
def test_integers_and_token_ids_out_of_bounds_are_refused_by_name(field, values):
    for value in values:
        with pytest.raises(InvalidSamplingParams, match=f"'{field}' is "):
            validate(**{field: value})


@pytest.mark.parametrize("bias", [math.nan, math.inf, 1e7])
def test_a_bias_that_is_not_a_modest_number_is_refused(bias):
    with pytest.raises(InvalidSamplingParams, match=r"'logit_bias\[3\]' is "):
        validate(logit_bias={3: bias})


def test_values_at_the_bounds_pass():
    validate(
        temperature=0.0,
        top_k=VOCAB,
        top_p=0.0,
        min_p=1.0,
        max_tokens=CONTEXT - PROMPT,
        min_tokens=CONTEXT - PROMPT,
        logprobs=VOCAB,
        seed=2**64 - 1,
        frequency_penalty=-2.0,
        presence_penalty=2.0,
        xtc_probability=1.0,
        logit_bias={0: -100.0, VOCAB - 1: 100.0},
    )
    validate(n=3, seed=(1, 2, 3), max_total_tokens=CONTEXT, stop=("x",), forced_output_tokens=(1,) * (CONTEXT - PROMPT))


@pytest.mark.parametrize("prompt_len", [0, CONTEXT, 10**9])
def test_a_prompt_without_room_for_an_answer_is_refused(prompt_len):
    with pytest.raises(InvalidSamplingParams, match=f"expected 1 to {CONTEXT - 1} tokens"):
        SamplingParams().validate(VOCAB, CONTEXT, prompt_len)


@pytest.mark.parametrize(
    ("fields", "limit"),
    [
        ({}, 54),
        ({"max_tokens": 5}, 5),
        ({"max_total_tokens": 20}, 10),
        ({"max_tokens": 30, "max_total_tokens": 20}, 10),
        ({"forced_output_tokens": (1, 2)}, 2),
        ({"forced_output_tokens": (1, 2), "max_tokens": 7}, 7),
    ],
)
def test_the_tightest_length_limit_counts(fields, limit):
    assert SamplingParams(**fields).output_limit(CONTEXT, PROMPT) == limit


def test_sample_seeds_are_the_given_ones_or_derived_or_drawn():
    assert SamplingParams(n=2, seed=(5, 6)).sample_seeds() == (5, 6)
    derived = SamplingParams(n=4, seed=7).sample_seeds()
    assert derived[0] == 7 and len(set(derived)) == 4 and all(seed < 2**53 for seed in derived)
    assert derived == SamplingParams(n=4, seed=7).sample_seeds() and derived[1:] != SamplingParams(n=4, seed=8).sample_seeds()[1:]
    assert SamplingParams().sample_seeds() != SamplingParams().sample_seeds()


def test_a_changed_copy_has_everything_else_and_leaves_the_first_alone():
    first = SamplingParams(temperature=0.5, stop=("x",), logit_bias={1: 2.0})
    changed = first.with_(seed=(1,), temperature=0.25)
    assert changed == SamplingParams(temperature=0.25, stop=("x",), logit_bias={1: 2.0}, seed=(1,)) and first.temperature == 0.5
    with pytest.raises(TypeError, match="'temprature'"):
        first.with_(temprature=1.0)


def test_what_is_valid_for_one_prompt_is_looked_at_again_for_another_and_after_a_change() -> None:
    params = SamplingParams.of({"max_tokens": 10, "top_p": 0.5, "eos_token_ids": (90,)})
    params.validate(100, 50, 40)
    params.validate(100, 50, 40)
    with pytest.raises(InvalidSamplingParams, match="'max_tokens' is 10, expected an integer from 1 to 9"):
        params.validate(100, 50, 41)
    with pytest.raises(InvalidSamplingParams, match="'eos_token_ids' is 90"):
        params.validate(90, 50, 40)
    with pytest.raises(InvalidSamplingParams, match=r"'top_p' is 2\.0"):
        params.with_(top_p=2.0).validate(100, 50, 40)
    assert params == SamplingParams(max_tokens=10, top_p=0.5, eos_token_ids=(90,))
