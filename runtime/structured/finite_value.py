"""Whether a schema has a finite value. One that requires itself has none, and a model that follows it would write for ever.

    {"properties": {"next": {"$ref": "#"}}, "required": ["next"]}                   an object in an object in an object …: none
    {"properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}, …}       {"next": null}

Of every subschema the kinds of JSON values that satisfy it are found as a least fixed point: at first none do; a subschema gains a kind
when those it needs (required properties, minItems, $ref, allOf, one of anyOf) have values. Strings, numbers and patterns are not looked
into: the grammar compiler refuses those without values. Input: a schema as json_schema.py reduces it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

_KINDS = {"null": 1, "boolean": 2, "number": 4, "integer": 4, "string": 8, "array": 16, "object": 32}
_KIND_OF = {type(None): 1, bool: 2, int: 4, float: 4, str: 8, list: 16, dict: 32}
_ANY = 63
_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_SINGLES = ("items", "additionalProperties")


def has_finite_value(schema: Any) -> bool:
    if isinstance(schema, bool):
        return schema
    return _Kinds(schema).of(schema) != 0


class _Kinds:
    """The kinds of values of each subschema of `root`. Each gains one at most six times; then those that need it are looked at again."""

    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root
        self._found: dict[int, int] = {}  # id of a subschema → its kinds so far
        users: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for node in _subschemas(root):
            self._found[id(node)] = 0
            for child in [*_children(node), self._target(node)]:
                users[id(child)].append(node)
        waiting = {id(node): node for node in _subschemas(root)}  # in order, each once
        while waiting:
            node = waiting.pop(next(iter(waiting)))
            kinds = self._kinds(node)
            if kinds != self._found[id(node)]:
                self._found[id(node)] = kinds
                waiting.update((id(user), user) for user in users[id(node)])

    def of(self, schema: Any) -> int:
        if isinstance(schema, bool):
            return _ANY if schema else 0
        return self._found.get(id(schema), _ANY)  # names of properties, where a $ref may lead

    def _kinds(self, node: dict[str, Any]) -> int:
        kinds = _stated_kinds(node) & self.of(self._target(node))
        for child in node.get("allOf", ()):
            kinds &= self.of(child)
        for keyword in ("anyOf", "oneOf"):
            if keyword in node:
                kinds &= self._of_one(node[keyword])
        if kinds & _KINDS["array"] and not self._has_array(node):
            kinds &= ~_KINDS["array"]
        if kinds & _KINDS["object"] and not self._has_object(node):
            kinds &= ~_KINDS["object"]
        return kinds

    def _of_one(self, schemas: list[Any]) -> int:
        kinds = 0
        for schema in schemas:
            kinds |= self.of(schema)
        return kinds

    def _has_array(self, node: dict[str, Any]) -> bool:
        num_items, first = node.get("minItems", 0), node.get("prefixItems", [])
        return all(self.of(item) for item in first[:num_items]) and (num_items <= len(first) or self.of(node.get("items", True)) != 0)

    def _has_object(self, node: dict[str, Any]) -> bool:
        properties, others = (
            node.get("properties", {}),
            [*node.get("patternProperties", {}).values(), node.get("additionalProperties", True)],
        )
        required = node.get("required", ())
        if any(not (self.of(properties[name]) if name in properties else self._of_one(others)) for name in set(required)):
            return False
        return node.get("minProperties", 0) <= len(set(required)) or self._of_one([*properties.values(), *others]) != 0

    def _target(self, node: dict[str, Any]) -> Any:
        return referred(node["$ref"], self._root) if "$ref" in node else True


def _stated_kinds(node: dict[str, Any]) -> int:
    """By `type`, `enum` and `const`; malformed ones, which the compiler refuses, say nothing."""
    kinds, types = _ANY, node.get("type")
    if isinstance(types, str | list):
        kinds = 0
        for name in [types] if isinstance(types, str) else types:
            kinds |= _KINDS.get(name, _ANY) if isinstance(name, str) else _ANY
    if "const" in node:
        kinds &= _KIND_OF[type(node["const"])]
    if isinstance(node.get("enum"), list):
        of_values = 0
        for value in node["enum"]:
            of_values |= _KIND_OF[type(value)]
        kinds &= of_values
    return kinds


def _children(node: dict[str, Any]) -> Iterator[Any]:
    for keyword in _MAPS:
        yield from node.get(keyword, {}).values()
    for keyword in _LISTS:
        yield from node.get(keyword, ())
    for keyword in _SINGLES:
        if keyword in node:
            yield node[keyword]


def _subschemas(root: dict[str, Any]) -> list[dict[str, Any]]:
    """Children before their parents."""
    found, stack = [], [root]
    while stack:
        node = stack.pop()
        found.append(node)
        stack += [child for child in _children(node) if isinstance(child, dict)]
    return found[::-1]


def referred(reference: str, root: Any) -> Any:
    """The schema that a `$ref` inside `root` names. Raises KeyError when there is none, which `checked_schema` looks for."""
    found = root
    for part in reference.split("/")[1:]:
        name = unquote(part).replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and name.isdecimal() and int(name[:9]) < len(found):
            found = found[int(name[:9])]
        elif isinstance(found, dict) and name in found:
            found = found[name]
        else:
            raise KeyError(reference)
    if not isinstance(found, dict | bool):
        raise KeyError(reference)
    return found
