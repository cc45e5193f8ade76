"""What one request and one connection may ask of the server. Every value is an option: `fmo serve --limit NAME=VALUE`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches

from ..errors import ConfigError
from ..structured.response_format import ConstraintLimits

MAX_LIMIT = 2**53
"""Of every limit: as good as none, and exact as a float."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The defaults refuse nothing that a working client sends, and bound what a broken or hostile one can cost."""

    max_body_bytes: int = 8 * 2**20
    max_bodies_bytes: int = 256 * 2**20
    max_json_depth: int = 64
    max_json_containers: int = 100_000
    max_header_bytes: int = 16 * 2**10
    max_headers: int = 100
    max_connections: int = 4096
    max_n: int = 64
    max_prompts: int = 128
    max_embedding_inputs: int = 2048
    max_messages: int = 4096
    max_logprobs: int = 20
    max_prompt_logprobs: int = 2**21
    max_stop: int = 16
    max_stop_bytes: int = 256
    max_stop_tokens: int = 64
    max_bad_words: int = 256
    max_logit_bias: int = 1024
    max_tools: int = 128
    max_schema_bytes: int = 256 * 2**10
    max_subschemas: int = 1024
    max_regex_bytes: int = 4096
    max_patterns: int = 256
    max_waiting_grammars: int = 64
    grammar_wait_s: int = 10
    header_timeout_s: int = 10
    body_timeout_s: int = 60
    write_stall_s: int = 30
    keep_alive_s: int = 75

    @property
    def of_constraints(self) -> ConstraintLimits:
        return ConstraintLimits(self.max_schema_bytes, self.max_subschemas, self.max_regex_bytes, self.max_patterns)


def limits_from(settings: Iterable[str]) -> Limits:
    """`["max_n=8", …]` over the defaults. Raises ConfigError for an unknown name or a value that is not a positive number."""
    names = [limit.name for limit in fields(Limits)]
    limits = Limits()
    for setting in settings:
        name, _, value = setting.partition("=")
        if name not in names:
            near = get_close_matches(name, names, n=1)
            hint = (f"did you mean '{near[0]}'? " if near else "") + "the limits are " + ", ".join(names)
            raise ConfigError(f"there is no limit '{name}'", where="--limit", hint=hint)
        if not value.isdecimal() or not 1 <= int(value[:20]) <= MAX_LIMIT:
            raise ConfigError(
                f"limit '{name}' is '{value[:40]}', expected a whole number from 1 to {MAX_LIMIT}",
                where="--limit",
                hint=f"for instance --limit {name}={getattr(Limits(), name)}",
            )
        limits = replace(limits, **{name: int(value)})
    return limits
