"""The `response_format` of a request → a grammar of the answer, or None for plain text.

{"type": "text"}                                       {"type": "json_schema", "json_schema": {"schema": {…}}}
{"type": "json_object"}: an object or an array         {"type": "regex", "schema": "…"}: the whole answer matches
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from .errors import InvalidConstraint
from .json_schema import PatternBudget, checked_schema
from .regex_rules import translated_regex

_TYPES = ("text", "json_object", "json_schema", "regex")
_JSON_SCHEMA_KEYS = {"schema": dict, "name": str, "description": str, "strict": bool}
_ANY_JSON = {"anyOf": [{"type": "object"}, {"type": "array"}]}


@dataclass(frozen=True, slots=True)
class ConstraintLimits:
    """What one constraint may cost. Bytes of the schema's JSON text and of a pattern; subschemas of a schema, the root included.

    `max_patterns`: patterns and formats of all schemas of a request; each may cost a millisecond to compile.
    """

    max_schema_bytes: int = 256 * 2**10
    max_subschemas: int = 1024
    max_regex_bytes: int = 4096
    max_patterns: int = 256


@dataclass(frozen=True, slots=True)
class Grammar:
    """What an answer must look like. `kind`: `json_schema` (`source` is the reduced schema), `regex` or `lark`."""

    kind: str
    source: str


def grammar_of(response_format: Mapping[str, Any] | None, limits: ConstraintLimits) -> Grammar | None:
    """None when the format asks for nothing. Raises InvalidConstraint."""
    if response_format is None:
        return None
    kind = response_format.get("type")
    if kind not in _TYPES:
        near = get_close_matches(str(kind)[:40], _TYPES, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise InvalidConstraint(f"'response_format.type' is {str(kind)[:40]!r}, expected one of {', '.join(_TYPES)}{hint}")
    payload = {"json_schema": "json_schema", "regex": "schema"}.get(kind)
    extra = next((key for key, value in response_format.items() if key not in ("type", payload) and value is not None), None)
    if extra is not None:
        raise InvalidConstraint(f"'response_format' of type '{kind}' has the unknown field '{extra[:64]}'")
    if kind == "json_object":
        return Grammar("json_schema", json.dumps(_ANY_JSON))
    if kind == "json_schema":
        return schema_grammar(_schema_of(response_format.get("json_schema")), limits)
    if kind == "regex":
        return _regex_grammar(response_format.get("schema"), limits)
    return None


def schema_grammar(schema: Any, limits: ConstraintLimits, param: str = "response_format") -> Grammar:
    """A grammar of the JSON texts that are valid for `schema`. Raises InvalidConstraint."""
    num_bytes = len(json.dumps(schema, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    if num_bytes > limits.max_schema_bytes:
        raise InvalidConstraint(f"the schema has {num_bytes} bytes, at most {limits.max_schema_bytes} are allowed", param)
    patterns = PatternBudget(limits.max_patterns)
    return Grammar("json_schema", checked_schema(schema, max_subschemas=limits.max_subschemas, patterns=patterns, param=param))


def _schema_of(payload: Any) -> Any:
    if not isinstance(payload, dict):
        raise InvalidConstraint("'response_format.json_schema' is missing, expected an object with 'schema'")
    for key, value in payload.items():
        if key not in _JSON_SCHEMA_KEYS:
            raise InvalidConstraint(f"unknown field 'response_format.json_schema.{key[:64]}'")
        if key != "schema" and value is not None and not isinstance(value, _JSON_SCHEMA_KEYS[key]):
            raise InvalidConstraint(f"'response_format.json_schema.{key}' has the wrong type: expected {_JSON_SCHEMA_KEYS[key].__name__}")
    if payload.get("schema") is None:
        raise InvalidConstraint("'response_format.json_schema.schema' is missing")
    return payload["schema"]


def _regex_grammar(pattern: Any, limits: ConstraintLimits) -> Grammar:
    if not isinstance(pattern, str):
        raise InvalidConstraint("'response_format.schema' is missing, expected the pattern as a string")
    num_bytes = len(pattern.encode("utf-8", "surrogatepass"))
    if num_bytes > limits.max_regex_bytes:
        raise InvalidConstraint(f"the pattern has {num_bytes} bytes, at most {limits.max_regex_bytes} are allowed")
    return Grammar("regex", translated_regex(pattern))
