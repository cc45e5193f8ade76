"""The sampler against the numpy reference, and its random numbers against the distributions they claim."""

import random

import numpy as np
import pytest
from friendli_runtime._core import random_uniform, sample_token
from friendli_runtime.sampling import SamplingParams

from .sampler_reference import distribution, log_softmax, processed_logits

VOCAB = 50


def make_logits(seed: int, vocab_size: int = VOCAB) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(vocab_size) * 3).astype(np.float32)


def greedy(logits, prompt=(), output=(), **fields) -> int:
    return sample_token(np.asarray(logits, np.float32), list(prompt) or [0], list(output), SamplingParams(temperature=0.0, **fields), 0)[0]


def frequencies(logits: np.ndarray, params: SamplingParams, num_draws: int = 4000) -> np.ndarray:
    counts = np.zeros(len(logits))
    for seed in range(num_draws):
        counts[sample_token(logits, [0], [], params, seed)[0]] += 1
    return counts / num_draws


def assert_frequencies_match(observed: np.ndarray, expected: np.ndarray, num_draws: int = 4000) -> None:
    """No impossible token, and every frequency within five standard deviations; the seeds are fixed."""
    assert (observed[expected == 0] == 0).all()
    deviation = np.sqrt(expected * (1 - expected) / num_draws) + 1 / num_draws
    assert (np.abs(observed - expected) < 5 * deviation).all()


def random_processors(rng: random.Random) -> dict:
    tokens = range(VOCAB)
    return {
        "repetition_penalty": rng.choice([1.0, 1.3, 0.7]),
        "frequency_penalty": rng.choice([0.0, 1.1, -0.4]),
        "presence_penalty": rng.choice([0.0, 0.9]),
        "logit_bias": {rng.choice(tokens): rng.uniform(-9, 9) for _ in range(rng.choice([0, 3]))},
        "no_repeat_ngram": rng.choice([0, 1, 2, 3]),
        "min_tokens": rng.choice([0, 100]),
        "max_tokens": 200,
        "bad_words_ids": tuple(tuple(rng.choices(range(5), k=rng.randint(1, 3))) for _ in range(rng.choice([0, 4]))),
        "eos_token_ids": tuple(rng.choices(tokens, k=2)),
        "stop_token_ids": tuple(rng.choices(tokens, k=2)),
        "stop_token_sequences": tuple(tuple(rng.choices(range(5), k=rng.randint(1, 2))) for _ in range(3)),
        "ignore_eos": rng.random() < 0.3,
    }


@pytest.mark.parametrize("seed", range(150))
def test_greedy_after_any_penalties_is_the_reference_argmax(seed):
    rng = random.Random(seed)
    prompt, output = rng.choices(range(5), k=rng.randint(1, 12)), rng.choices(range(5), k=rng.randint(0, 12))
    params = SamplingParams(temperature=0.0, **random_processors(rng))
    logits = make_logits(seed)
    assert sample_token(logits, prompt, output, params, 0)[0] == int(np.argmax(processed_logits(logits, prompt, output, params)))


@pytest.mark.parametrize("seed", range(300))
def test_a_draw_is_the_inverse_of_the_reference_distribution(seed):
    rng = random.Random(seed)
    vocab_size = rng.choice([VOCAB, 1500])
    fields = random_processors(rng) if rng.random() < 0.5 else {}
    params = SamplingParams(
        temperature=rng.choice([0.3, 1.0, 2.5]),
        top_k=rng.choice([0, 1, 7, 40, vocab_size]),
        top_p=rng.choice([1.0, 0.99, 0.9, 0.3, 0.0]),
        min_p=rng.choice([0.0, 0.05, 1.0]),
        xtc_probability=rng.choice([0.0, 0.5]),
        xtc_threshold=rng.choice([0.0, 0.01, 0.1]),
        **fields,
    )
    prompt, output = rng.choices(range(5), k=4), rng.choices(range(5), k=rng.randint(0, 9))
    logits = make_logits(seed, vocab_size)
    x = processed_logits(logits, prompt, output, params)
    expected = distribution(x, params, has_xtc_fired=random_uniform(seed, len(output), 1) < params.xtc_probability)
    is_filtered = 0 < params.top_k < vocab_size or params.top_p < 1 or params.min_p > 0 or params.xtc_probability > 0
    order = np.lexsort((np.arange(vocab_size), -x)) if is_filtered else np.arange(vocab_size)
    bounds = np.concatenate([[0], np.cumsum(expected[order])])
    token_id = sample_token(logits, prompt, output, params, seed)[0]
    position = int(np.flatnonzero(order == token_id)[0])
    assert expected[token_id] > 0
    assert bounds[position] - 1e-6 <= random_uniform(seed, len(output), 0) <= bounds[position + 1] + 1e-6


@pytest.mark.parametrize(
    "fields", [{}, {"temperature": 0.5}, {"top_k": 5}, {"top_p": 0.8}, {"min_p": 0.1}, {"top_k": 8, "top_p": 0.9, "min_p": 0.02}]
)
def test_frequencies_over_seeds_are_those_of_the_distribution(fields):
    logits = make_logits(1, 16) / 2
    params = SamplingParams(**fields)
    assert_frequencies_match(frequencies(logits, params), distribution(logits.astype(np.float64), params))


def test_xtc_keeps_only_the_least_likely_of_the_likely_ones():
    logits = np.log(np.array([0.4, 0.3, 0.2, 0.1], np.float32))
    params = SamplingParams(xtc_probability=1.0, xtc_threshold=0.15)
    observed = frequencies(logits, params, 1000)
    assert_frequencies_match(observed, np.array([0, 0, 2 / 3, 1 / 3]), 1000)
    assert_frequencies_match(observed, distribution(logits.astype(np.float64), params, has_xtc_fired=True), 1000)


def test_xtc_fires_with_its_probability_and_independently_of_the_draw():
    logits = np.log(np.array([0.5, 0.3, 0.2], np.float32))
    params = SamplingParams(xtc_probability=0.25, xtc_threshold=0.25)
    fired, quiet = np.array([0, 0.6, 0.4]), np.array([0.5, 0.3, 0.2])
    assert_frequencies_match(frequencies(logits, params), 0.25 * fired + 0.75 * quiet)


def test_ties_go_to_the_lowest_id():
    assert greedy([1, 5, 5, 5]) == 1
    params = SamplingParams(top_k=2, logprobs=3)
    tied = np.zeros(6, np.float32)
    assert {sample_token(tied, [0], [], params, seed)[0] for seed in range(100)} == {0, 1}
    assert [token for token, _ in sample_token(tied, [0], [], params, 0)[2]] == [0, 1, 2]


def test_a_tiny_temperature_is_greedy_and_never_a_nan():
    for temperature in (1e-3, 1e-30, 5e-324):
        assert {sample_token(make_logits(2), [0], [], SamplingParams(temperature=temperature), seed)[0] for seed in range(20)} == {
            int(np.argmax(make_logits(2)))
        }


@pytest.mark.parametrize("seed", range(10))
def test_logprobs_are_those_of_the_raw_logits(seed):
    logits = make_logits(seed, 1000)
    expected = log_softmax(logits)
    params = SamplingParams(temperature=0.2, top_k=3, logit_bias={5: 50.0}, logprobs=seed)
    token_id, logprob, top = sample_token(logits, [0], [], params, seed)
    assert token_id == 5 and abs(logprob - expected[5]) < 1e-5
    best = np.lexsort((np.arange(1000), -logits))[:seed]
    assert [token for token, _ in top] == best.tolist()
    np.testing.assert_allclose([value for _, value in top], expected[best], atol=1e-5)


def test_logprobs_may_cover_the_whole_vocabulary_and_are_absent_unless_asked_for():
    logits = make_logits(3)
    _, logprob, top = sample_token(logits, [0], [], SamplingParams(logprobs=VOCAB), 0)
    assert abs(sum(np.exp(value) for _, value in top) - 1) < 1e-5 and logprob in [value for _, value in top]
    assert sample_token(logits, [0], [], SamplingParams(), 0)[1:] == (None, [])


def test_forced_tokens_ignore_the_logits_but_report_their_logprob():
    logits = make_logits(4)
    params = SamplingParams(forced_output_tokens=(9, 8), logprobs=0, logit_bias={8: -1e5})
    token_id, logprob, _ = sample_token(logits, [0], [9], params, 0)
    assert token_id == 8 and abs(logprob - log_softmax(logits)[8]) < 1e-5
    assert sample_token(logits, [0], [9, 8], params, 7)[0] == sample_token(logits, [0], [9, 8], SamplingParams(logit_bias={8: -1e5}), 7)[0]


def test_only_allowed_tokens_are_chosen():
    logits = make_logits(5, 70)
    allowed = [3, 33, 64]
    bits = [0, 0, 0]
    for token in allowed:
        bits[token // 32] |= 1 << (token % 32)
    chosen = {sample_token(logits, [0], [], SamplingParams(temperature=5.0), seed, bits)[0] for seed in range(200)}
    assert chosen == set(allowed)


@pytest.mark.parametrize(
    ("row", "message"), [([0, np.nan, 1], "NaN"), ([0, np.inf, 1], "no finite score"), ([-np.inf] * 3, "no finite score")]
)
def test_a_row_that_cannot_be_sampled_is_an_error_even_for_greedy_and_forced_tokens(row, message):
    for params in (SamplingParams(), SamplingParams(temperature=0.0), SamplingParams(forced_output_tokens=(1,))):
        with pytest.raises(RuntimeError, match=message):
            sample_token(np.array(row, np.float32), [0], [], params, 0)


@pytest.mark.parametrize("position", [0, 7, 8, 15, 16])
def test_a_nan_is_found_in_every_lane_of_the_row(position):
    logits = make_logits(6, 17)
    logits[position] = np.nan
    with pytest.raises(RuntimeError, match="NaN"):
        sample_token(logits, [0], [], SamplingParams(temperature=0.0), 0)


def test_tokens_that_the_model_excludes_are_never_chosen():
    logits = make_logits(7)
    logits[::2] = -np.inf
    assert all(sample_token(logits, [0], [], SamplingParams(temperature=9.0), seed)[0] % 2 for seed in range(300))


def test_excluding_every_token_is_an_error():
    with pytest.raises(RuntimeError, match="every token is excluded"):
        sample_token(make_logits(0, 2), [0], [], SamplingParams(bad_words_ids=((0,), (1,))), 0)


def test_random_numbers_are_uniform_and_do_not_repeat_between_seeds_positions_and_draws():
    values = np.array([random_uniform(seed, position, draw) for seed in range(20) for position in range(50) for draw in range(2)])
    assert len(set(values)) == len(values) and values.min() >= 0 and values.max() < 1
    histogram = np.histogram(values, 10, (0, 1))[0]
    assert np.abs(histogram - 200).max() < 5 * np.sqrt(200)
    neighbours = np.corrcoef(values.reshape(20, 50, 2).reshape(20, 100)[:-1].ravel(), values.reshape(20, 100)[1:].ravel())[0, 1]
    assert abs(neighbours) < 0.1


def test_random_numbers_are_fixed_for_ever():
    assert [random_uniform(1, 2, 3), random_uniform(2**64 - 1, 0, 0)] == [0.7001721157685389, 0.8002632065554751]
