"""Arguments that a dialect writes without JSON quotes: which texts one may be, and what such a text stands for.

    schema ─alternatives─▶ one schema per kind of value: text stands as it is, everything else is JSON

A text that spells JSON (5, true, null, [1]) is that value where the schema takes it, and text where only text is taken. Lists and objects
are told by their kind: the grammar has kept them to their schema.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from ..structured.finite_value import referred

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
    """`schema`, of a document `root` that was checked (json_schema), with `$ref`, `anyOf`, `oneOf` and lists of types taken apart."""
    return list(_alternatives(schema, root, frozenset()))


def _alternatives(schema: Any, root: Mapping[str, Any], seen: frozenset[str]) -> Iterator[dict[str, Any]]:
    if not isinstance(schema, dict):
        if schema:
            yield {}
        return
    beside = {key: value for key, value in schema.items() if key not in _DEFINITIONS}
    if "$ref" in beside:
        reference = beside.pop("$ref")
        if reference not in seen:
            yield from _merged(beside, [referred(reference, root)], root, seen | {reference})
        return
    for keyword in ("anyOf", "oneOf", "allOf"):
        if keyword in beside and (keyword != "allOf" or len(beside[keyword]) == 1):
            yield from _merged(beside, beside.pop(keyword), root, seen)
            return
    if isinstance(beside.get("type"), list):
        for kind in beside["type"]:
            yield {**beside, "type": kind}
        return
    yield beside


def _merged(beside: dict[str, Any], schemas: list[Any], root: Mapping[str, Any], seen: frozenset[str]) -> Iterator[dict[str, Any]]:
    for one in schemas:
        if isinstance(one, dict):
            yield from _alternatives({**beside, **one}, root, seen)
        elif one:
            yield from _alternatives(beside, root, seen)


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
