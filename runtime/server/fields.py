"""The request bodies, field by field: what is read, what is refused because it is not honoured, what is ignored.

An explicit null is the same as an absent field. A field that is in none of the tables is refused with the nearest known name, so that a
typing mistake never silently changes nothing. Types are checked here (400); values and bounds in `params` (422).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from functools import cache
from typing import Any, TypeVar

import msgspec

from .errors import bad_request, invalid_value

IGNORED = frozenset({"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"}) | {
    *("cache_control", "user_profile_id", "workspace_id")  # of Anthropic's clients
}
"""Fields of clients that say nothing about the answer; accepted with any value."""

NOT_HONOURED: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "parse_reasoning": (False,),
    "include_reasoning": (True,),
    "reasoning_effort": ("none",),
    "reasoning_budget": (),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "verbosity": ("medium",),
    "web_search_options": (),
    "best_of": (1,),
    "suffix": ("",),
    "num_beams": (1,),
    "length_penalty": (1, 1.0),
    "early_stopping": (False,),
    "beam_search_type": (),
    "include": ([],),
    "previous_response_id": (),
    "conversation": (),
    "max_tool_calls": (),
    "output_config": (),
    "container": (),
    "mcp_servers": ([],),
    "thread": (False,),
    "speed": ("standard",),
    "inference_geo": (),
    "diagnostics": (),
    "beam_compat_pre_normalization": (False,),
    "beam_compat_no_post_normalization": (False,),
    "encoder_no_repeat_ngram": (0, 1),
    "encoder_repetition_penalty": (1, 1.0),
    "include_output_logits": (False,),
    "include_output_logprobs": (False,),
    "soft_prompts": ([],),
    "position_ids": ([],),
    "generation_offset": (0,),
}
"""Known fields that this server does not honour → the values that ask for nothing and are therefore accepted."""


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class TokenSequence(msgspec.Struct, forbid_unknown_fields=True):
    tokens: list[int]


class GenerationRequest(msgspec.Struct, kw_only=True):
    """The fields of both generating endpoints; None is absent."""

    model: str | None = None
    n: int | None = None
    seed: int | list[int] | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    xtc_threshold: float | None = None
    xtc_probability: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    eos_token: list[int] | None = None
    ignore_eos: bool | None = None
    response_format: dict[str, Any] | None = None
    timeout_microseconds: int | None = None
    cache_salt: str | None = None


class ChatRequest(GenerationRequest, kw_only=True):
    """POST /v1/chat/completions."""

    messages: list[dict[str, Any]]
    chat_template_kwargs: dict[str, Any] | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    parse_reasoning: bool | None = None
    include_reasoning: bool | None = None
    reasoning_effort: str | None = None
    reasoning_budget: int | None = None


class CompletionRequest(GenerationRequest, kw_only=True):
    """POST /v1/completions: exactly one of `prompt` and `tokens`."""

    prompt: str | list[str | int | list[int]] | None = None
    tokens: list[int | list[int]] | None = None
    max_total_tokens: int | None = None
    min_total_tokens: int | None = None
    logprobs: int | None = None
    no_repeat_ngram: int | None = None
    bad_words: list[str] | None = None
    bad_word_tokens: list[TokenSequence] | None = None
    stop_tokens: list[TokenSequence] | None = None
    forced_output_tokens: list[int] | None = None
    token_index_to_replace: list[int] | None = None
    embedding_to_replace: list[float] | None = None
    echo: bool | None = None


class TokenizeRequest(msgspec.Struct, kw_only=True):
    """POST /v1/tokenize."""

    prompt: str
    model: str | None = None


class DetokenizeRequest(msgspec.Struct, kw_only=True):
    """POST /v1/detokenize."""

    tokens: list[int]
    model: str | None = None


class AdapterRequest(msgspec.Struct, kw_only=True):
    """POST /v1/adapters. `folder`: a name right below --adapter-dir."""

    name: str
    folder: str


Request = TypeVar("Request", bound=msgspec.Struct)


@cache
def strict_decoder(kind: type[Request]) -> msgspec.json.Decoder[Any]:
    """Reads the JSON of a request that has fields of `kind` and ignored ones only; whatever it refuses, `decode_request` explains."""
    ignored = [(name, Any, None) for name in sorted(IGNORED - set(kind.__struct_fields__))]
    return msgspec.json.Decoder(msgspec.defstruct(kind.__name__, ignored, bases=(kind,), forbid_unknown_fields=True, kw_only=True))


def decode_request(body: dict[str, Any], kind: type[Request]) -> Request:
    """`body` as a request. Raises ApiError: 400 for missing, unknown and mistyped fields, 422 for what is not honoured."""
    known = kind.__struct_fields__
    values = {}
    for name, value in body.items():
        if value is None or name in IGNORED:
            continue
        if name in known:
            values[name] = value
        else:
            _refuse_unless_neutral(name, value, known)
    try:
        return msgspec.convert(values, kind, strict=True)
    except msgspec.ValidationError as error:
        raise _explained(str(error)) from None


def _refuse_unless_neutral(name: str, value: Any, known: tuple[str, ...]) -> None:
    if name in NOT_HONOURED:
        if not any(type(value) is type(neutral) and value == neutral for neutral in NOT_HONOURED[name]):
            raise invalid_value(f"'{name}' is not supported by this server; leave it out", name, code="unsupported_field")
        return
    hint = _hint(name, [*known, *NOT_HONOURED, *IGNORED])
    raise bad_request(f"unknown field '{name[:64]}'{hint}", name[:64], code="unknown_field")


def refuse_unknown(given: Mapping[str, Any], known: Collection[str], where: str) -> None:
    """For objects inside a request, at `where`: a 400 for what is none of its `known` fields; null is absent."""
    for name, value in given.items():
        if name not in known and value is not None:
            hint = _hint(name, known)
            raise bad_request(f"unknown field '{where}.{name[:64]}'{hint}", re.split(r"[.\[]", where)[0], code="unknown_field")


def _hint(name: str, known: Collection[str]) -> str:
    """The nearest known name; to compare takes as long as the name is."""
    near = get_close_matches(name[:64], known, n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


_PATH = re.compile(r" - at `\$\.?(.*)`$")
_MISSING = re.compile(r"Object missing required field `(\w+)`")


def _explained(text: str) -> Exception:
    """The library's message in our words, with the field that it is about."""
    path = _PATH.search(text)
    where = path[1] if path else ""
    what = text[: path.start()] if path else text
    if missing := _MISSING.match(what):
        name = f"{where}.{missing[1]}" if where else missing[1]
        return bad_request(f"field '{name}' is missing", name, code="missing_field")
    readable = what.replace("`", "").replace(" | null", "").replace("Expected", "expected")
    return bad_request(f"'{where}' has the wrong type: {readable}", re.split(r"[.\[]", where)[0] or None, code="wrong_type")
