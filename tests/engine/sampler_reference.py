"""The sampler written plainly in numpy float64: penalties and masks, filters, log-probabilities. The oracle of csrc/engine/sampler.cpp."""

import numpy as np
from friendli_runtime.sampling import SamplingParams


def ends_with(tokens: list[int], tail: tuple[int, ...]) -> bool:
    return len(tail) == 0 or tuple(tokens[-len(tail) :]) == tuple(tail)


def processed_logits(logits: np.ndarray, prompt: list[int], output: list[int], params: SamplingParams) -> np.ndarray:
    """f64 [vocab_size]: the logits after penalties, bias and masks; excluded tokens are -inf."""
    x = logits.astype(np.float64)
    history = [*prompt, *output]
    for token in set(history):
        x[token] = x[token] * params.repetition_penalty if x[token] < 0 else x[token] / params.repetition_penalty
    for token in set(output):
        x[token] -= params.frequency_penalty * output.count(token) + params.presence_penalty
    for token, bias in params.logit_bias.items():
        x[token] += bias
    n = params.no_repeat_ngram
    if n > 1:
        for start in range(len(history) - n + 1):
            if len(history) >= n - 1 and history[start : start + n - 1] == history[len(history) - n + 1 :]:
                x[history[start + n - 1]] = -np.inf
    for word in params.bad_words_ids:
        if ends_with(history, word[:-1]):
            x[word[-1]] = -np.inf
    if len(output) < params.min_tokens:
        endings = [*params.stop_token_ids, *(() if params.ignore_eos else params.eos_token_ids)]
        endings += [tail[-1] for tail in params.stop_token_sequences if ends_with(output, tail[:-1])]
        x[endings] = -np.inf
    return x


def distribution(x: np.ndarray, params: SamplingParams, has_xtc_fired: bool = False) -> np.ndarray:
    """f64 [vocab_size]: the probability of each token after temperature, top_k, top_p, min_p and XTC."""
    weights = np.exp((x - x.max()) / params.temperature)
    order = np.lexsort((np.arange(len(x)), -x))
    order = order[weights[order] > 0]
    if params.top_k:
        order = order[: params.top_k]
    share = weights[order] / weights[order].sum()
    num_kept = 1 + int((np.cumsum(share)[:-1] < params.top_p).sum()) if params.top_p < 1 else len(order)
    order = order[:num_kept]
    order = order[weights[order] >= params.min_p * weights[order[0]]]
    if has_xtc_fired:
        share = weights[order] / weights[order].sum()
        num_above = int((share >= params.xtc_threshold).sum())
        order = order[max(num_above - 1, 0) :]
    result = np.zeros(len(x))
    result[order] = weights[order] / weights[order].sum()
    return result


def log_softmax(logits: np.ndarray) -> np.ndarray:
    x = logits.astype(np.float64)
    x = x - x.max()
    return x - np.log(np.exp(x).sum())
