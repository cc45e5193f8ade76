"""Arguments that a dialect writes without JSON quotes: which texts one may be, and what such a text stands for.

    schema ─alternatives─▶ one schema per kind of value: text stands as it is, everything else is JSON

A text that spells JSON (5, true, null, [1]) is that value where the schema takes it, and text where only text is taken. Lists and objects
are told by their kind: the grammar has kept them to their schema.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgspec

from ..structured.errors import InvalidConstraint
from ..structured.finite_value import referred

MAX_ALTERNATIVES = 64
MAX_LOOKS = 2048
"""At subschemas, one again for each way to it."""
_DEFINITIONS = ("$defs", "definitions")
_KINDS: Mapping[str, tuple[type, ...]] = {
    "null": (type(None),),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "string": (str,),
    "array": (list,),
    "object": (dict,),
}


def alternatives(schema: Any, root: Mapping[str, Any]) -> list[dict[str, Any]]:
    """`schema`, of a document `root` that was checked (json_schema), with `$ref`, `anyOf`, `oneOf` and lists of types taken apart.

    Raises InvalidConstraint where that leads to too many: a few definitions that refer to each other twice are millions.
    """
    found: list[dict[str, Any]] = []
    waiting: list[tuple[Any, dict[str, Any], frozenset[str]]] = [
        (schema, {}, frozenset())
    ]  # with what stands beside it and how it was reached
    num_looks = 0
    while waiting:
        num_looks += 1
        if num_looks > MAX_LOOKS or len(found) > MAX_ALTERNATIVES:
            raise InvalidConstraint(f"an argument may be of more than {MAX_ALTERNATIVES} kinds; join those that are alike", "tools")
        one, beside, seen = waiting.pop()
        if one is False:
            continue
        merged = beside if one is True else beside | {key: value for key, value in one.items() if key not in _DEFINITIONS}
        union = next((key for key in ("anyOf", "oneOf", "allOf") if key in merged and (key != "allOf" or len(merged[key]) == 1)), None)
        if "$ref" in merged:
            rest = {key: value for key, value in merged.items() if key != "$ref"}
            if (reference := merged["$ref"]) not in seen:
                waiting.append((referred(reference, root), rest, seen | {reference}))
        elif union is not None:
            rest = {key: value for key, value in merged.items() if key != union}
            waiting += [(branch, rest, seen) for branch in reversed(merged[union])]
        elif isinstance(merged.get("type"), list):
            found += [{**merged, "type": kind} for kind in merged["type"]]
        else:
            found.append(merged)
    return found


def choices(schema: Mapping[str, Any]) -> list[Any]:
    """The values that `const` or `enum` name."""
    return [schema["const"]] if "const" in schema else schema.get("enum", [])


def takes_text(alternative: Mapping[str, Any]) -> bool:
    if listed := choices(alternative):
        return any(isinstance(value, str) for value in listed)
    return alternative.get("type") in (None, "string")


def beside_text(alternative: Mapping[str, Any]) -> dict[str, Any] | None:
    """The values of an alternative that are no text; None: there are none."""
    if listed := choices(alternative):
        others = [value for value in listed if not isinstance(value, str)]
        return {**{key: value for key, value in alternative.items() if key != "const"}, "enum": others} if others else None
    kind = alternative.get("type")
    if kind is None:
        return {**alternative, "type": [name for name in _KINDS if name not in ("string", "integer")]}
    return dict(alternative) if kind != "string" else None


def takes(alternative: Mapping[str, Any], value: Any) -> bool:
    """Whether a value is one of an alternative's: its kind, its choices and its bounds count."""
    kind = alternative.get("type")
    if kind is not None and not _is_of(value, kind):
        return False
    listed = choices(alternative)
    if listed and not any(type(one) is type(value) and one == value for one in listed):
        return False
    if isinstance(value, bool) or not isinstance(value, int | float):
        return True
    low, high = alternative.get("minimum", value), alternative.get("maximum", value)
    above, below = alternative.get("exclusiveMinimum"), alternative.get("exclusiveMaximum")
    in_bounds = low <= value <= high and (above is None or above < value) and (below is None or value < below)
    return in_bounds and not ("multipleOf" in alternative and value % alternative["multipleOf"])


def _is_of(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    return isinstance(value, _KINDS[kind]) or (kind == "integer" and isinstance(value, float) and value.is_integer())


def read_value(text: str, schema: Any, root: Mapping[str, Any]) -> str:
    """The JSON text of an argument that was written as `text`."""
    taking = alternatives(schema, root)
    try:
        value: Any = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        value = text
    if not isinstance(value, str) and any(takes(one, value) for one in taking):
        return text.strip()
    if isinstance(value, str) and not any(takes(one, text) for one in taking) and any(takes(one, value) for one in taking):
        text = value  # with quotes that the form does not have
    return json.dumps(text, ensure_ascii=False)
