"""Guessed tokens: what is proposed, when guessing stops, and that it changes the number of steps and nothing else."""

import random
from dataclasses import dataclass

import numpy as np
import pytest
from friendli_runtime._core import NgramProposer
from friendli_runtime.sampling import SamplingParams

from .hash_model import HashModel, ManualEngine


@pytest.mark.parametrize(
    ("tokens", "limit", "expected"),
    [
        ([1, 2, 3, 4, 5, 6, 1, 2, 3], 3, [4, 5, 6]),
        ([1, 2, 3, 4, 5, 6, 1, 2, 3], 2, [4, 5]),
        ([9, 2, 3, 4, 1, 2, 3, 5, 0, 9, 2, 3], 3, [4, 1, 2]),  # three tokens decide before two
        ([7, 2, 3, 4, 1, 2, 3, 5, 0, 8, 2, 3], 3, [5, 0, 8]),  # two tokens: the last time counts
        ([1, 2, 1, 2, 1, 2], 5, [1, 2, 1]),  # at most 3; goes on in its own guesses
        ([4, 4, 4], 3, [4, 4, 4]),
        ([1, 2, 3, 4, 5], 3, []),
        ([5], 3, []),
        ([1, 2, 3, 1, 2, 3], 0, []),
    ],
)
def test_what_followed_the_same_tokens_before_is_proposed(tokens, limit, expected):
    proposer = NgramProposer(3, 64)
    proposer.note_outcome(1, 1, 0)  # no longer on trial
    assert proposer.propose(tokens, limit) == expected


def test_a_table_that_is_too_small_finds_less_and_nothing_wrong():
    rng = random.Random(1)
    tokens = [rng.randrange(5) for _ in range(300)]
    proposer = NgramProposer(1, 4)
    for length in range(1, 300):
        for proposed in [proposer.propose(tokens[:length], 1)]:
            followers = {tokens[idx + 2] for idx in range(length - 2) if tokens[idx : idx + 2] == tokens[length - 2 : length]}
            assert set(proposed) <= followers


def test_guesses_that_do_not_come_true_are_made_ever_more_rarely_and_success_brings_them_back():
    proposer, tokens = NgramProposer(3, 8192), [1, 2] * 50
    tries = []
    for _ in range(3000):
        if proposed := proposer.propose(tokens, 3):
            assert len(proposed) == 1, "one token on trial"
            tries.append(len(tokens))
            proposer.note_outcome(0, 1, len(tokens) + 1)
        tokens += [1]
    gaps = np.diff(tries)
    assert len(tries) < 15 and (np.diff(gaps[2:]) >= 0).all() and gaps[-1] > 500
    while not proposer.propose(tokens, 3):
        tokens += [1]
    for _ in range(8):
        proposer.note_outcome(3, 3, len(tokens))
        assert proposer.propose(tokens, 3)


def test_more_is_guessed_while_all_comes_true_and_the_usual_number_after_a_mistake():
    proposer, tokens = NgramProposer(3, 64), [1, 2, 3, 4, 5, 6, 7, 8, 9] * 3
    lengths = []
    for num_wrong in (0, 0, 0, 0, 0, 1, 0, 0):
        proposed = proposer.propose(tokens, 100)
        lengths.append(len(proposed))
        proposer.note_outcome(len(proposed) - num_wrong, len(proposed), len(tokens))
    assert lengths == [1, 3, 4, 5, 5, 5, 3, 4]
    assert len(proposer.propose(tokens, 2)) == 2
    proposer.note_outcome(2, 2, len(tokens))
    assert len(proposer.propose(tokens, 100)) == 5, "a step without room for all teaches nothing"


@dataclass
class EchoModel(HashModel):
    """Mostly says again what followed the last two tokens before: a text that copies itself, with mistakes that depend on all of it."""

    copies: float = 9.0

    def logits(self, history):
        logits = super().logits(history)
        for idx in range(len(history) - 3, -1, -1):
            if history[idx : idx + 2] == history[-2:]:
                logits[history[idx + 2]] += self.copies
                break
        return logits


def run(ngram_size: int, params: SamplingParams, prompts: list[list[int]], copies: float = 9.0, **options) -> tuple[list, ManualEngine]:
    model = EchoModel(num_blocks=options.pop("num_blocks", 96), copies=copies)
    engine = ManualEngine(model, max_num_seqs=4, max_num_tokens=24, max_context_len=120, ngram_size=ngram_size, **options)
    ids = [engine.submit(prompt, params) for prompt in prompts]
    engine.run()
    rows = [[row[:6] for row in engine.answers[request_id, sample].rows] for request_id in ids for sample in range(params.n)]
    return rows, engine


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0.0, max_tokens=60),
        SamplingParams(temperature=1.3, seed=5, max_tokens=60, logprobs=2, n=2),
        SamplingParams(temperature=0.9, seed=6, max_tokens=60, repetition_penalty=1.05, frequency_penalty=0.1, top_p=0.95),
        SamplingParams(temperature=0.0, max_tokens=60, stop_token_sequences=((3, 4, 5),), min_tokens=20),
        SamplingParams(temperature=0.0, max_tokens=60, forced_output_tokens=(7, 8, 9, 7, 8, 9, 7, 8)),
        SamplingParams(temperature=0.0, max_tokens=60, no_repeat_ngram=9, bad_words_ids=((4, 5),)),
    ],
)
@pytest.mark.parametrize("num_blocks", [96, 34])
def test_tokens_scores_and_ends_are_those_of_plain_decoding(params, num_blocks):
    prompts = [[1, 2, 3, 4, 5, 6], [9, 8] * 6, list(range(20)), [5]]
    plain, without = run(0, params, prompts, num_blocks=num_blocks)
    for ngram_size in (1, 3, 8):
        guessed, engine = run(ngram_size, params, prompts, num_blocks=num_blocks)
        assert guessed == plain
        assert 0 < engine.stat("num_accepted_tokens") <= engine.stat("num_proposed_tokens")
        assert engine.stat("num_steps") <= without.stat("num_steps")


def test_copying_text_takes_less_than_half_of_the_steps():
    params = SamplingParams(temperature=0.0, max_tokens=100)
    steps = {size: run(size, params, [[1, 2, 3, 4, 5] * 3], copies=20.0)[1].stat("num_steps") for size in (0, 3)}
    assert steps[0] == 100 and steps[3] < 40


def test_text_that_does_not_repeat_is_left_alone():
    _, engine = run(3, SamplingParams(temperature=0.0, max_tokens=100), [[1, 2, 3]], copies=0.0)
    assert engine.stat("num_proposed_tokens") <= 3 * 8


def test_guesses_never_take_rows_from_prompts():
    model = EchoModel(num_blocks=96, copies=20.0)
    engine = ManualEngine(model, max_num_seqs=4, max_num_tokens=8, max_context_len=120, ngram_size=3)
    engine.submit([1, 2, 3, 1, 2, 3], SamplingParams(temperature=0.0, max_tokens=60))
    for _ in range(8):
        engine.step()
    proposed = engine.stat("num_proposed_tokens")
    assert proposed > 0
    engine.submit(list(range(24)) * 3, SamplingParams(temperature=0.0, max_tokens=2))  # 72 rows: 7 a step beside the decoding one
    for _ in range(10):
        engine.step()
    assert engine.stat("num_proposed_tokens") == proposed
    engine.run()
