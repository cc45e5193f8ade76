"""What one request asks of the sampler, the stop rules and the prefix cache, and the check of every value.

`SamplingParams` is plain data: text-level stop strings (`stop`) are carried for the text layer and ignored by the engine; everything else
is honoured by the C++ engine. `validate` is the one place where a value is judged: it rejects NaN and infinities, names the field, the
value and the bounds, and knows the limits of the model. Nothing here touches the C++ core.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

MAX_NUM_SAMPLES = 128
"""Upper bound of `n`: every sample holds a copy of the prompt's token ids."""
MAX_CACHE_SALT_LEN = 1024
"""Upper bound of the characters of `cache_salt`."""
MAX_LOGIT_BIAS = 1e6
"""Upper bound of |logit_bias|: far above any logit, far below the float32 range."""
MAX_EMBEDDING = 1e30
"""Upper bound of the numbers of an embedding, below the float32 range."""
_FLOAT_BOUNDS = {
    "temperature": (0.0, 100.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "frequency_penalty": (-2.0, 2.0),
    "presence_penalty": (-2.0, 2.0),
    "xtc_threshold": (0.0, 1.0),
    "xtc_probability": (0.0, 1.0),
}
_TOKEN_LISTS = ("stop_token_ids", "forced_output_tokens", "logit_bias")
_SEQUENCE_LISTS = ("stop_token_sequences", "bad_words_ids")
_UINT64_MAX = 2**64 - 1
_MIX_A, _MIX_B, _GOLDEN = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0x9E3779B97F4A7C15


class InvalidSamplingParams(ValueError):
    """A sampling parameter is outside its bounds. `field`, `value` and `bounds` say which, what it was and what is allowed."""

    def __init__(self, field_name: str, value: object, bounds: str, hint: str | None = None) -> None:
        self.field = field_name
        self.value = value
        self.bounds = bounds
        shown = repr(value)
        shown = shown if len(shown) <= 120 else shown[:117] + "..."
        message = f"'{field_name}' is {shown}, expected {bounds}"
        super().__init__(message + (f"; {hint}" if hint else ""))


@dataclass(frozen=True, slots=True)
class ReplacedEmbeddings:
    """Vectors that stand in place of the embeddings of prompt tokens, before anything that the model does to those.

    `positions`: of the prompt, rising. `vectors`: one after the other, each as long as the model's embeddings.
    """

    positions: tuple[int, ...]
    vectors: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How to choose tokens and when to stop. The defaults sample from the model's own distribution until it ends or the context is full.

    An instance made by `of` holds only what it was given, and only that is checked by `validate`: the rest are the defaults of the class.

    `max_tokens` None: until the context is full, or exactly the forced tokens if there are any.
    `max_total_tokens`: prompt + output; the smaller of the two limits counts.
    `temperature` 0: greedy. `top_k` 0, `top_p` 1, `min_p` 0, `xtc_probability` 0, `no_repeat_ngram` 0 or 1: off.
    `seed`: one number, or one per sample; None draws a random one at submit (`sample_seeds` fixes them beforehand).
    `logprobs`: None off; N gives the chosen token's log-probability and the N most likely tokens, of the raw logits.
    `prompt_logprobs`: the same for the tokens of the prompt, from the second on; all of the prompt is computed then, cached or not.
    `eos_token_ids`, `stop_token_ids`: end the sample; the ending token is reported. `ignore_eos` disables `eos_token_ids` only.
    `stop_token_sequences`: end the sample as soon as its output ends with one of them.
    `forced_output_tokens`: the first output tokens, whatever the model says; stop rules look again from the last of them on.
    `stop`: strings, for the text layer.
    `cache_salt`: computed prompts are shared with requests of the same salt only, so that no tenant can tell by the time of an answer what
    another has asked.
    `response_format`: what the text must look like, for the text layer: {"type": "json_schema", …}, {"type": "json_object"} or
    {"type": "regex", …} (docs/http-api.md). Such an answer ends where the format allows it, so nothing else may force its length.
    `replaced_embeddings`: the token ids at those positions count in penalties, and the request shares computed prompts with no other.
    """

    max_tokens: int | None = None
    max_total_tokens: int | None = None
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    seed: int | tuple[int, ...] | None = None
    n: int = 1
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    stop_token_sequences: tuple[tuple[int, ...], ...] = ()
    eos_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    no_repeat_ngram: int = 0
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    forced_output_tokens: tuple[int, ...] = ()
    xtc_threshold: float = 0.0
    xtc_probability: float = 0.0
    cache_salt: str = ""
    response_format: Mapping[str, Any] | None = None
    replaced_embeddings: ReplacedEmbeddings | None = None
    _valid_for: tuple[int, int, int] | None = field(default=None, init=False, repr=False, compare=False)  # what `validate` got

    @staticmethod
    def of(values: dict[str, Any]) -> SamplingParams:
        """As the constructor, several times as fast: it is called for every request."""
        if not _FIELD_NAMES.issuperset(values):
            raise TypeError(f"SamplingParams has no field '{min(values.keys() - _FIELD_NAMES)}'")
        made = object.__new__(SamplingParams)
        made.__dict__.update(values)
        return made

    def with_(self, **changes: Any) -> SamplingParams:
        """`dataclasses.replace` in the manner of `of`."""
        given = self.__dict__ | changes
        given.pop("_valid_for", None)
        return SamplingParams.of(given)

    @property
    def is_constrained(self) -> bool:
        """Whether the answer must have a format."""
        return self.response_format is not None and self.response_format.get("type") != "text"

    def validate(self, vocab_size: int, max_context_len: int, prompt_len: int, embedding_width: int = 0) -> None:
        """Raises InvalidSamplingParams for the first value out of bounds, for this model and this prompt.

        `embedding_width`: numbers of an embedding; 0 for a model in which none can be replaced. What does not depend on the prompt is
        looked at once: the server asks, then the engine, and for every request of the same parameters.
        """
        max_tokens, room = self.max_tokens, max_context_len - prompt_len
        if not (prompt_len > 0 and (room >= 1 if max_tokens is None else type(max_tokens) is int and 1 <= max_tokens <= room)):
            self._check_max_tokens(max_context_len, prompt_len)
        given, model = self.__dict__, (vocab_size, max_context_len, embedding_width)
        if given.get("_valid_for") == model:
            return
        has_lengths = not _LENGTH_NAMES.isdisjoint(given)
        if has_lengths:
            self._check_lengths(given, max_context_len, prompt_len)
            if self.replaced_embeddings is not None:
                _check_replaced(self.replaced_embeddings, prompt_len, embedding_width)
        for name, value in given.items():
            bounds = _FLOAT_BOUNDS.get(name)
            if bounds is not None and not (type(value) is float and bounds[0] <= value <= bounds[1]):
                _check_float(name, value, *bounds)
        if not _COMMON_NAMES.issuperset(given):
            self._check_uncommon(given, vocab_size)
        if self.seed is not None:
            self._check_seed()
        _check_token_ids("eos_token_ids", self.eos_token_ids, vocab_size)
        if not has_lengths:
            given["_valid_for"] = model

    def _check_uncommon(self, given: dict[str, Any], vocab_size: int) -> None:
        """The fields that most requests do not have."""
        if "repetition_penalty" in given and not (_is_number(self.repetition_penalty) and 0.0 < self.repetition_penalty <= 100.0):
            raise InvalidSamplingParams("repetition_penalty", self.repetition_penalty, "a number with 0 < repetition_penalty <= 100")
        if "top_k" in given:
            _check_int("top_k", self.top_k, 0, vocab_size)
        if "n" in given:
            _check_int("n", self.n, 1, MAX_NUM_SAMPLES)
        if self.logprobs is not None:
            _check_int("logprobs", self.logprobs, 0, vocab_size)
        if self.prompt_logprobs is not None:
            _check_int("prompt_logprobs", self.prompt_logprobs, 0, vocab_size)
        if "cache_salt" in given and not (isinstance(self.cache_salt, str) and len(self.cache_salt) <= MAX_CACHE_SALT_LEN):
            raise InvalidSamplingParams("cache_salt", self.cache_salt, f"a string of at most {MAX_CACHE_SALT_LEN} characters")
        self._check_token_lists(given, vocab_size)
        if self.response_format is not None and self.is_constrained:
            self._check_format()

    def _check_max_tokens(self, max_context_len: int, prompt_len: int) -> None:
        if not 1 <= prompt_len <= max_context_len - 1:
            raise InvalidSamplingParams(
                "prompt",
                f"{prompt_len} tokens",
                f"1 to {max_context_len - 1} tokens",
                f"the context of this model is {max_context_len} tokens, one is for the answer",
            )
        max_tokens = self.max_tokens
        if max_tokens is not None and not (type(max_tokens) is int and 1 <= max_tokens <= max_context_len - prompt_len):
            _check_int("max_tokens", max_tokens, 1, max_context_len - prompt_len, _where(max_context_len, prompt_len))

    def _check_lengths(self, given: dict[str, Any], max_context_len: int, prompt_len: int) -> None:
        room, where = max_context_len - prompt_len, _where(max_context_len, prompt_len)
        if self.max_total_tokens is not None:
            _check_int("max_total_tokens", self.max_total_tokens, prompt_len + 1, max_context_len, where)
        if "min_tokens" in given:
            _check_int("min_tokens", self.min_tokens, 0, self.output_limit(max_context_len, prompt_len), where)
        if "forced_output_tokens" in given and len(self.forced_output_tokens) > room:
            raise InvalidSamplingParams("forced_output_tokens", f"{len(self.forced_output_tokens)} tokens", f"at most {room} tokens", where)
        if "no_repeat_ngram" in given:
            _check_int("no_repeat_ngram", self.no_repeat_ngram, 0, max_context_len)

    def _check_format(self) -> None:
        why = "an answer with a 'response_format' ends where the format allows it"
        for name, neutral in (("min_tokens", 0), ("ignore_eos", False), ("forced_output_tokens", ()), ("stop_token_sequences", ())):
            if getattr(self, name) != neutral:
                raise InvalidSamplingParams(name, getattr(self, name), f"no '{name}' together with 'response_format'", why)

    def _check_seed(self) -> None:
        if isinstance(self.seed, tuple):
            if len(self.seed) != self.n:
                raise InvalidSamplingParams("seed", self.seed, f"one number or {self.n} of them, one per sample (n = {self.n})")
            for seed in self.seed:
                if not (type(seed) is int and 0 <= seed <= _UINT64_MAX):
                    _check_int("seed", seed, 0, _UINT64_MAX)
        else:
            assert self.seed is not None
            _check_int("seed", self.seed, 0, _UINT64_MAX)

    def _check_token_lists(self, given: dict[str, Any], vocab_size: int) -> None:
        for name in _TOKEN_LISTS:
            if name in given:
                _check_token_ids(name, given[name], vocab_size)
        if "logit_bias" in given:
            for token_id, bias in self.logit_bias.items():
                _check_float(f"logit_bias[{token_id}]", bias, -MAX_LOGIT_BIAS, MAX_LOGIT_BIAS)
        for name in _SEQUENCE_LISTS:
            if name in given:
                for sequence in given[name]:
                    if len(sequence) == 0:
                        raise InvalidSamplingParams(name, given[name], "token sequences of at least one token")
                    _check_token_ids(name, sequence, vocab_size)

    def output_limit(self, max_context_len: int, prompt_len: int) -> int:
        """The largest number of output tokens of one sample, >= 1 for values that `validate` accepts."""
        limit = max_context_len - prompt_len
        if self.max_tokens is not None:
            limit = min(limit, self.max_tokens)
        elif self.forced_output_tokens:
            limit = min(limit, len(self.forced_output_tokens))
        if self.max_total_tokens is not None:
            limit = min(limit, self.max_total_tokens - prompt_len)
        return limit

    def sample_seeds(self) -> tuple[int, ...]:
        """The seed of each sample, `n` of them. A request with n = 1 and one of these seeds replays that sample.

        One number is the seed of the first sample; the others get numbers below 2**53 derived from it. None draws at random.
        """
        return sample_seeds(self.seed, self.n)


SamplingParams.logit_bias = {}  # a default that the class lacks as the constructor makes a new one each time
_FIELD_NAMES = frozenset(one.name for one in fields(SamplingParams) if one.init)
_LENGTH_NAMES = frozenset({"max_total_tokens", "min_tokens", "forced_output_tokens", "no_repeat_ngram", "replaced_embeddings"})
"""Fields whose bounds depend on the prompt; `max_tokens` apart."""
_COMMON_NAMES = frozenset({*_FLOAT_BOUNDS, "max_tokens", "ignore_eos", "seed", "eos_token_ids", "stop"})
"""Fields that `validate` looks at in every request, or that hold nothing to look at."""


def _where(max_context_len: int, prompt_len: int) -> str:
    return f"prompt of {prompt_len} tokens in a context of {max_context_len}"


def sample_seeds(seed: int | tuple[int, ...] | None, n: int) -> tuple[int, ...]:
    """`SamplingParams.sample_seeds` of such values."""
    if isinstance(seed, tuple):
        return seed
    first = int.from_bytes(os.urandom(8), "little") >> 11 if seed is None else seed
    return (first,) if n == 1 else (first, *(_derive_seed(first, sample_idx) for sample_idx in range(1, n)))


def _derive_seed(seed: int, sample_idx: int) -> int:
    """A well mixed 53-bit number of the pair (splitmix64's finaliser; exact in JSON readers that hold numbers as doubles)."""
    x = (seed + _GOLDEN * sample_idx) & _UINT64_MAX
    x = ((x ^ (x >> 30)) * _MIX_A) & _UINT64_MAX
    x = ((x ^ (x >> 27)) * _MIX_B) & _UINT64_MAX
    return (x ^ (x >> 31)) >> 11


def _check_replaced(replaced: ReplacedEmbeddings, prompt_len: int, embedding_width: int) -> None:
    positions, vectors = replaced.positions, replaced.vectors
    if embedding_width == 0:
        raise InvalidSamplingParams("replaced_embeddings.positions", positions, "none: this model does not take embeddings from outside")
    for position, previous in zip(positions, (-1, *positions), strict=False):
        _check_int("replaced_embeddings.positions", position, previous + 1, prompt_len - 1, "positions of the prompt, rising")
    if len(vectors) != len(positions) * embedding_width:
        wanted = f"{len(positions)} x {embedding_width}, as many as an embedding of this model has for each position"
        raise InvalidSamplingParams("replaced_embeddings.vectors", f"{len(vectors)} numbers", wanted)
    for value in vectors:
        if not (_is_number(value) and abs(value) <= MAX_EMBEDDING):
            raise InvalidSamplingParams("replaced_embeddings.vectors", value, f"numbers from {-MAX_EMBEDDING:g} to {MAX_EMBEDDING:g}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_float(name: str, value: float, low: float, high: float) -> None:
    if not (_is_number(value) and low <= value <= high):
        raise InvalidSamplingParams(name, value, f"a number from {low:g} to {high:g}")


def _check_int(name: str, value: int, low: int, high: int, hint: str | None = None) -> None:
    if not (isinstance(value, int) and not isinstance(value, bool) and low <= value <= high):
        raise InvalidSamplingParams(name, value, f"an integer from {low} to {high}", hint)


def _check_token_ids(name: str, token_ids: Iterable[int], vocab_size: int) -> None:
    for token_id in token_ids:
        if not (type(token_id) is int and 0 <= token_id < vocab_size) and not _is_token_id(token_id, vocab_size):
            raise InvalidSamplingParams(name, token_id, f"token ids from 0 to {vocab_size - 1}")


def _is_token_id(token_id: object, vocab_size: int) -> bool:
    """Of any integer type."""
    return isinstance(token_id, int) and not isinstance(token_id, bool) and 0 <= token_id < vocab_size
