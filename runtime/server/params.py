"""Request fields to SamplingParams: the names of the API on one side, those of the engine on the other, the server's limits in between.

Every value out of bounds ends in a 422 that names the field as the client wrote it. What depends on the prompt's length (`max_tokens`
against the context) is checked per prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .._core import given_attributes
from ..sampling import InvalidSamplingParams, ReplacedEmbeddings, SamplingParams, sample_seeds
from ..tokenizer.tokenizer import Tokenizer
from .bad_stop import bad_word_ids
from .errors import ApiError, bad_request, invalid_value
from .fields import ChatRequest, CompletionRequest, GenerationRequest
from .limits import Limits

_SAME_NAME = (
    "max_tokens",
    "min_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "xtc_threshold",
    "xtc_probability",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
    "ignore_eos",
    "response_format",
    "n",
    "cache_salt",
)
_API_NAMES = {
    "bad_words_ids": "bad_words",
    "stop_token_ids": "stop_tokens",
    "stop_token_sequences": "stop_tokens",
    "eos_token_ids": "eos_token",
    "replaced_embeddings.positions": "token_index_to_replace",
    "replaced_embeddings.vectors": "embedding_to_replace",
}


def sampling_fields(request: GenerationRequest, limits: Limits) -> dict[str, Any]:
    """The SamplingParams fields that chat and completions share, without text that needs a tokenizer. Raises ApiError."""
    values = given_attributes(request, _SAME_NAME)
    if request.n is not None:
        _check_range("n", request.n, 1, limits.max_n)
    if request.seed is not None:
        values["seed"] = tuple(request.seed) if isinstance(request.seed, list) else request.seed
    if request.stop is not None and request.stop != []:
        values["stop"] = _stop_strings([request.stop] if isinstance(request.stop, str) else request.stop, limits)
    if request.eos_token:
        _check_count("eos_token", request.eos_token, limits.max_stop_tokens)
        values["eos_token_ids"] = tuple(request.eos_token)
    if request.logit_bias:
        _check_count("logit_bias", request.logit_bias, limits.max_logit_bias)
        values["logit_bias"] = {_token_id(key): bias for key, bias in request.logit_bias.items()}
    if request.timeout_microseconds is not None and request.timeout_microseconds < 0:
        raise invalid_value(f"'timeout_microseconds' is {request.timeout_microseconds}, expected 0 or more", "timeout_microseconds")
    return values


def check_stream(request: GenerationRequest) -> None:
    """Raises ApiError."""
    if request.stream_options is not None and not request.stream:
        raise invalid_value("'stream_options' is only allowed with 'stream': true", "stream_options")


def _stop_strings(stops: list[str], limits: Limits) -> tuple[str, ...]:
    _check_count("stop", stops, limits.max_stop)
    for stop in stops:
        if not 1 <= len(stop.encode()) <= limits.max_stop_bytes:
            raise invalid_value(f"a stop string has {len(stop.encode())} bytes, expected 1 to {limits.max_stop_bytes}", "stop")
    return tuple(stops)


def chat_params(request: ChatRequest, limits: Limits, model_eos_ids: tuple[int, ...]) -> SamplingParams:
    """With the model's own end-of-sequence tokens, and with a seed for each sample if one is given. Raises ApiError."""
    values = sampling_fields(request, limits)
    if request.max_completion_tokens is not None:
        if request.max_tokens not in (None, request.max_completion_tokens):
            raise invalid_value("give one of 'max_tokens' and 'max_completion_tokens'", "max_completion_tokens")
        values["max_tokens"] = request.max_completion_tokens
    if request.top_logprobs is not None and not request.logprobs:
        raise invalid_value("'top_logprobs' needs 'logprobs': true", "top_logprobs")
    if request.logprobs:
        values["logprobs"] = request.top_logprobs or 0
        _check_range("top_logprobs", values["logprobs"], 0, limits.max_logprobs)
    values["eos_token_ids"] = _all_eos_ids(model_eos_ids, values.get("eos_token_ids"))
    if "seed" in values:
        values["seed"] = sample_seeds(values["seed"], request.n or 1)
    return SamplingParams.of(values)


def completion_params(request: CompletionRequest, tokenizer: Tokenizer | None, limits: Limits) -> SamplingParams:
    """Everything but `max_total_tokens` and `min_total_tokens`, see `params_for_prompt`. Raises ApiError."""
    values = sampling_fields(request, limits)
    if "stop" in values and tokenizer is None:
        raise bad_request("this model has no tokenizer; give 'stop_tokens' instead of 'stop'", "stop", "tokenizer_missing")
    if request.logprobs is not None:
        _check_range("logprobs", request.logprobs, 0, limits.max_logprobs)
        values["logprobs"] = request.logprobs
        if request.echo:
            values["prompt_logprobs"] = request.logprobs
    if is_prompt_only(request):
        values["max_tokens"] = 1  # the engine gives no fewer; nobody sees it
    for name, other in (("max_total_tokens", "max_tokens"), ("min_total_tokens", "min_tokens")):
        if getattr(request, name) is not None and getattr(request, other) is not None:
            raise invalid_value(f"give one of '{name}' and '{other}'", name)
    if request.min_total_tokens is not None and request.min_total_tokens < 0:
        raise invalid_value(f"'min_total_tokens' is {request.min_total_tokens}, expected 0 or more", "min_total_tokens")
    if request.no_repeat_ngram is not None:
        values["no_repeat_ngram"] = request.no_repeat_ngram
    values["forced_output_tokens"] = tuple(request.forced_output_tokens or ())
    _check_count("stop_tokens", request.stop_tokens or [], limits.max_stop_tokens)
    sequences = [tuple(sequence.tokens) for sequence in request.stop_tokens or ()]
    values["stop_token_ids"] = tuple(sequence[0] for sequence in sequences if len(sequence) == 1)
    values["stop_token_sequences"] = tuple(sequence for sequence in sequences if len(sequence) != 1)
    values["bad_words_ids"] = _bad_words(request, tokenizer, limits)
    values["replaced_embeddings"] = _replaced_embeddings(request)
    return SamplingParams.of(values)


def is_prompt_only(request: CompletionRequest) -> bool:
    """The prompt comes back, perhaps with log-probabilities, and nothing is added to it."""
    return bool(request.echo) and request.max_tokens == 0


def params_for_prompt(
    params: SamplingParams, request: CompletionRequest, prompt_len: int, model_eos_ids: tuple[int, ...]
) -> SamplingParams:
    """`params` with the limits that count prompt and answer together, with the model's own end-of-sequence tokens, and with a seed for
    each sample, drawn now, so that the answer can name them."""
    changes: dict[str, Any] = {
        "eos_token_ids": _all_eos_ids(model_eos_ids, params.eos_token_ids),
        "seed": sample_seeds(params.seed, params.n),
    }
    if request.max_total_tokens is not None:
        changes["max_total_tokens"] = request.max_total_tokens
    if request.min_total_tokens is not None:
        changes["min_tokens"] = max(0, request.min_total_tokens - prompt_len)
    return params.with_(**changes)


def _all_eos_ids(model_eos_ids: tuple[int, ...], given_ids: tuple[int, ...] | None) -> tuple[int, ...]:
    return tuple(dict.fromkeys((*model_eos_ids, *given_ids))) if given_ids else model_eos_ids


def check_prompt(prompt_ids: Sequence[int], vocab_size: int, param: str) -> None:
    """Raises ApiError 422 for token ids that the model does not have."""
    if prompt_ids and not (min(prompt_ids) >= 0 and max(prompt_ids) < vocab_size):
        wrong = next(token_id for token_id in prompt_ids if not 0 <= token_id < vocab_size)
        raise invalid_value(f"token id {wrong} is out of range, expected 0 to {vocab_size - 1}", param)


def as_api_error(error: InvalidSamplingParams, prompt_param: str, request: GenerationRequest) -> ApiError:
    """The engine's complaint about a value, with the field named as the client wrote it."""
    names = {**_API_NAMES, "prompt": prompt_param}
    if isinstance(request, ChatRequest):
        names["logprobs"] = "top_logprobs"
        if request.max_completion_tokens is not None:
            names["max_tokens"] = "max_completion_tokens"
    elif isinstance(request, CompletionRequest) and request.min_total_tokens is not None:
        names["min_tokens"] = "min_total_tokens"
        if error.field == "min_tokens" and request.response_format is None:  # its bounds are those of the answer alone
            what = f"'min_total_tokens' is {request.min_total_tokens}, more than the prompt and the longest answer have together"
            return invalid_value(what, "min_total_tokens")
    name = names.get(error.field, error.field)
    return invalid_value(str(error).replace(f"'{error.field}'", f"'{name}'", 1), name.partition("[")[0])


def _bad_words(request: CompletionRequest, tokenizer: Tokenizer | None, limits: Limits) -> tuple[tuple[int, ...], ...]:
    """Token sequences that may not come out: those given, and those of each phrase."""
    _check_count("bad_words", request.bad_words or [], limits.max_bad_words)
    _check_count("bad_word_tokens", request.bad_word_tokens or [], limits.max_bad_words)
    sequences = [tuple(sequence.tokens) for sequence in request.bad_word_tokens or ()]
    for phrase in request.bad_words or ():
        if not phrase:
            raise invalid_value("a bad word is empty", "bad_words")
        if tokenizer is None:
            raise bad_request(
                "this model has no tokenizer; give 'bad_word_tokens' instead of 'bad_words'", "bad_words", "tokenizer_missing"
            )
        sequences += bad_word_ids(phrase, tokenizer)
    return tuple(dict.fromkeys(sequence for sequence in sequences))


def _replaced_embeddings(request: CompletionRequest) -> ReplacedEmbeddings | None:
    positions, vectors = request.token_index_to_replace or [], request.embedding_to_replace or []
    if not positions and not vectors:
        return None
    if not positions:
        raise invalid_value("'embedding_to_replace' needs 'token_index_to_replace': the positions of its vectors", "embedding_to_replace")
    return ReplacedEmbeddings(tuple(positions), tuple(vectors))


def _token_id(key: str) -> int:
    if not (key.isascii() and key.isdecimal()):
        raise invalid_value(f"'logit_bias' has the key '{key[:40]}', expected a token id", "logit_bias")
    return int(key[:20])


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise invalid_value(f"'{name}' is {value}, expected {low} to {high}", name)


def _check_count(name: str, values: Sequence[Any] | dict[Any, Any], most: int) -> None:
    if len(values) > most:
        raise invalid_value(f"'{name}' has {len(values)} entries, at most {most} are allowed", name)
