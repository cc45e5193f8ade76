"""The numpy reference of the sampler means what the logits processors of transformers mean, so the sampler does too."""

import random

import numpy as np
import pytest
import torch
from friendli_runtime.sampling import SamplingParams
from transformers.generation import logits_process as hf

from .sampler_reference import distribution, processed_logits
from .test_sampler import make_logits


def through(processors: list, logits: np.ndarray, history: list[int]) -> np.ndarray:
    scores = torch.from_numpy(logits.astype(np.float32))[None]
    for processor in processors:
        scores = processor(torch.tensor([history]), scores)
    return scores[0].double().numpy()


@pytest.mark.parametrize("seed", range(60))
def test_penalties_and_masks_are_those_of_transformers(seed):
    rng = random.Random(seed)
    prompt, output = rng.choices(range(5), k=rng.randint(3, 12)), rng.choices(range(5), k=rng.randint(0, 12))
    penalty, ngram, min_tokens = rng.choice([0.8, 1.2, 2.0]), rng.choice([2, 3]), rng.choice([1, 6, 20])
    bad_words = [rng.choices(range(5), k=rng.randint(1, 3)) for _ in range(3)]
    params = SamplingParams(
        repetition_penalty=penalty,
        no_repeat_ngram=ngram,
        min_tokens=min_tokens,
        eos_token_ids=(7, 9),
        bad_words_ids=tuple(map(tuple, bad_words)),
    )
    processors = [
        hf.RepetitionPenaltyLogitsProcessor(penalty),
        hf.NoRepeatNGramLogitsProcessor(ngram),
        hf.NoBadWordsLogitsProcessor(bad_words, eos_token_id=None),
        hf.MinNewTokensLengthLogitsProcessor(len(prompt), min_tokens, [7, 9]),
    ]
    logits = make_logits(seed)
    np.testing.assert_allclose(processed_logits(logits, prompt, output, params), through(processors, logits, prompt + output), rtol=1e-5)


@pytest.mark.parametrize("seed", range(60))
def test_filters_are_those_of_transformers(seed):
    rng = random.Random(seed)
    params = SamplingParams(
        temperature=rng.choice([0.5, 1.0, 1.7]),
        top_k=rng.choice([0, 5, 20]),
        top_p=rng.choice([1.0, 0.9, 0.4]),
        min_p=rng.choice([0.0, 0.1]),
    )
    warpers = [hf.TemperatureLogitsWarper(params.temperature)]
    warpers += [hf.TopKLogitsWarper(params.top_k)] if params.top_k else []
    warpers += [hf.TopPLogitsWarper(params.top_p)] if params.top_p < 1 else []
    warpers += [hf.MinPLogitsWarper(params.min_p)] if params.min_p else []
    logits = make_logits(seed)
    expected = torch.softmax(torch.from_numpy(through(warpers, logits, [0])), -1).numpy()
    np.testing.assert_allclose(distribution(logits.astype(np.float64), params), expected, atol=1e-6)
