"""A request's JSON schema, checked keyword by keyword and reduced to what the grammar library follows.

Every keyword of JSON Schema is in one of three tables: followed, ignored (it says nothing about the text), or refused. Keywords that JSON
Schema does not define are ignored. Three rules of the API differ from the standard, always towards fewer texts:

    object with `properties`   holds no others, unless `additionalProperties` is a schema or the document composes objects (allOf …)
    `pattern`                  describes the whole string (those of patternProperties are searched in names); ASCII classes (regex_rules)
    `format`                   an unknown one is refused
"""

from __future__ import annotations

import json
from typing import Any

from .errors import InvalidConstraint
from .finite_value import has_finite_value, referred
from .regex_rules import translated_regex

MAX_DEPTH = 48
MAX_PATTERN_PROPERTIES = 64
"""Of one object: each is compared with all others, and 200 take seconds."""
MAX_MIN_COUNT = 2**20
"""Of items, properties or characters that a value must have: what a context holds at most."""
_SCHEMA_MAPS = frozenset({"properties", "patternProperties", "$defs", "definitions"})
_SCHEMA_LISTS = frozenset({"anyOf", "oneOf", "allOf", "prefixItems"})
_SCHEMAS = frozenset({"items", "additionalProperties"})
_VALUES = frozenset({"type", "enum", "const", "required", "pattern", "format", "$ref", "multipleOf"}) | {
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    *("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"),
}
_REFUSED: dict[str, tuple[Any, ...]] = {
    "not": (),
    "if": (),
    "then": (),
    "else": (),
    "contains": (),
    "minContains": (),
    "maxContains": (),
    "uniqueItems": (False,),
    "propertyNames": (),
    "dependentRequired": ({},),
    "dependentSchemas": ({},),
    "dependencies": ({},),
    "unevaluatedItems": (True,),
    "unevaluatedProperties": (True,),
    "additionalItems": (),
    "$dynamicRef": (),
    "$recursiveRef": (),
}
"""Keywords that are not followed → the values that ask for nothing."""
FORMATS = frozenset(["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"])
_UPPER_CASE = {"date-time": "^[0-9:.TZ+-]*$", "time": "^[0-9:.Z+-]*$"}
"""RFC 3339 allows lower-case t and z too, which many readers do not know."""
_TYPES = frozenset(["null", "boolean", "integer", "number", "string", "array", "object"])
_BOUNDS = frozenset(["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"])
_INTEGER_LIMITS = frozenset(["minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"])
_MIN_COUNTS = frozenset(["minLength", "minItems", "minProperties"])


class PatternBudget:
    """Patterns and formats that the schemas of one request may still have. What they cost is why a grammar takes at most about a second."""

    def __init__(self, max_patterns: int) -> None:
        self._max_patterns = max_patterns
        self._num_left = max_patterns

    def spend(self, num_patterns: int, param: str) -> None:
        """Raises InvalidConstraint when there are not so many left."""
        self._num_left -= num_patterns
        if self._num_left < 0:
            raise InvalidConstraint(f"the request has more than {self._max_patterns} patterns and formats in its schemas", param)


def checked_schema(schema: Any, *, max_subschemas: int, patterns: PatternBudget, param: str = "response_format") -> str:
    """The schema as JSON text that holds only what is followed. Raises InvalidConstraint naming keyword and place."""
    if schema is True:
        schema = {}
    if not isinstance(schema, dict | bool):
        raise InvalidConstraint(f"the schema is a JSON {_json_type(schema)}, expected an object", param)
    reducer = _Reducer(max_subschemas, patterns, param, closes_objects=not _composes_objects(schema))
    reduced = reducer.reduced(schema, "#", 0)
    for reference, where in reducer.references.items():
        try:
            referred(reference, reduced)
        except KeyError:
            raise InvalidConstraint(f"the schema's '{where}' is {reference[:80]!r}, and there is no schema at that place", param) from None
    if not has_finite_value(reduced):
        what = "the schema's '#' has no finite value: what it requires is false, contradicts itself or contains itself without end"
        raise InvalidConstraint(f"{what}; take what refers back out of 'required', or allow null in its place", param)
    return json.dumps(reduced, ensure_ascii=False)


def _composes_objects(schema: Any) -> bool:
    """Whether some object's properties are spread over several subschemas; then closing each of them would forbid the others'."""
    stack = [schema]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            if "allOf" in node or ("properties" in node and not {"$ref", "anyOf", "oneOf"}.isdisjoint(node)):
                return True
            stack += node.values()
        elif isinstance(node, list):
            stack += node
    return False


class _Reducer:
    def __init__(self, max_subschemas: int, patterns: PatternBudget, param: str, *, closes_objects: bool) -> None:
        self._max_subschemas = max_subschemas
        self._patterns = patterns
        self._param = param
        self._closes_objects = closes_objects
        self._num_subschemas = 0
        self.references: dict[str, str] = {}
        """What `$ref` names, with the place of the first that does."""

    def reduced(self, schema: Any, where: str, depth: int) -> Any:
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, dict):
            raise self._error(f"is a JSON {_json_type(schema)}, expected a schema", where)
        self._num_subschemas += 1
        if self._num_subschemas > self._max_subschemas:
            raise InvalidConstraint(f"the schema has more than {self._max_subschemas} subschemas", self._param)
        if depth > MAX_DEPTH:
            raise InvalidConstraint(f"the schema nests deeper than {MAX_DEPTH} levels", self._param)
        self._patterns.spend(("pattern" in schema) + ("format" in schema), self._param)
        kept: dict[str, Any] = {}
        for keyword, value in schema.items():
            place = f"{where}/{keyword}"
            if keyword in _REFUSED and not any(type(value) is type(one) and value == one for one in _REFUSED[keyword]):
                raise self._error("is not supported", place)
            if keyword in _SCHEMA_MAPS:
                kept[keyword] = self._reduced_map(keyword, value, place, depth)
            elif keyword in _SCHEMA_LISTS:
                kept[keyword] = self._reduced_list(value, place, depth)
            elif keyword in _SCHEMAS:
                kept[keyword] = self.reduced(value, place, depth + 1)
            elif keyword in _VALUES:
                kept[keyword] = self._checked_value(keyword, value, place)
        if kept.get("format") in _UPPER_CASE and "pattern" not in kept:
            kept["pattern"] = _UPPER_CASE[kept["format"]]
        if self._closes_objects and "properties" in kept and kept.get("additionalProperties", True) is True:
            kept["additionalProperties"] = False
        return kept

    def _reduced_map(self, keyword: str, value: Any, where: str, depth: int) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self._error(f"is a JSON {_json_type(value)}, expected an object of schemas", where)
        reduced = {name: self.reduced(child, f"{where}/{name}", depth + 1) for name, child in value.items()}
        if keyword != "patternProperties":
            return reduced
        if len(value) > MAX_PATTERN_PROPERTIES:
            raise self._error(f"has {len(value)} patterns, at most {MAX_PATTERN_PROPERTIES} are allowed", where)
        self._patterns.spend(len(value), self._param)
        return {self._pattern(pattern, where, is_searched=True): child for pattern, child in reduced.items()}

    def _reduced_list(self, value: Any, where: str, depth: int) -> list[Any]:
        if not isinstance(value, list) or not value:
            raise self._error("is not a list of at least one schema", where)
        return [self.reduced(child, f"{where}/{i}", depth + 1) for i, child in enumerate(value)]

    def _checked_value(self, keyword: str, value: Any, where: str) -> Any:
        if keyword == "pattern":
            if not isinstance(value, str):
                raise self._error(f"is a JSON {_json_type(value)}, expected a string", where)
            return self._pattern(value, where)
        if keyword == "format" and not (isinstance(value, str) and value in FORMATS):
            raise self._error(f"is {str(value)[:40]!r}; the supported formats are {', '.join(sorted(FORMATS))}", where)
        if keyword == "$ref" and not (isinstance(value, str) and (value == "#" or value.startswith("#/"))):
            raise self._error(f"is {str(value)[:80]!r}; only references inside the schema ('#/$defs/…') are supported", where)
        if keyword == "$ref":
            self.references.setdefault(value, where)
        if keyword == "multipleOf" and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise self._error("is not a whole number above 0; only those are supported", where)
        if keyword in _BOUNDS and (not isinstance(value, int | float) or isinstance(value, bool)):
            raise self._error(f"is a JSON {_json_type(value)}, expected a number", where)
        if keyword == "enum" and not isinstance(value, list):
            raise self._error(f"is a JSON {_json_type(value)}, expected a list of values", where)
        if keyword == "type" and not all(isinstance(one, str) and one in _TYPES for one in (value if isinstance(value, list) else [value])):
            raise self._error(f"is {str(value)[:60]!r}; the types are {', '.join(sorted(_TYPES))}", where)
        if keyword in _INTEGER_LIMITS and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
            raise self._error("is not a whole number from 0 up", where)
        if keyword in _MIN_COUNTS and value > MAX_MIN_COUNT:
            raise self._error(f"is {value!s:.24}, at most {MAX_MIN_COUNT} is allowed", where)
        if keyword == "required" and not (isinstance(value, list) and all(isinstance(name, str) for name in value)):
            raise self._error("is not a list of names", where)
        return value

    def _pattern(self, pattern: str, where: str, *, is_searched: bool = False) -> str:
        try:
            return f"^(?:{translated_regex(pattern, strip_anchors=True, is_searched=is_searched, param=self._param)})$"
        except InvalidConstraint as error:
            raise self._error(f": {error}", where) from None

    def _error(self, what: str, where: str) -> InvalidConstraint:
        shown = where if len(where) <= 160 else where[:100] + "…" + where[-59:]
        return InvalidConstraint(f"the schema's '{shown}' {what}", self._param)


def _json_type(value: Any) -> str:
    names = {str: "string", bool: "boolean", int: "number", float: "number", list: "array", dict: "object"}
    return names.get(type(value), "null")
