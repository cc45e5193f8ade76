"""A schema that only an endless text satisfies is told from one that merely allows recursion."""

from typing import Any

import pytest
from friendli_runtime.structured import finite_value
from friendli_runtime.structured.errors import InvalidConstraint
from friendli_runtime.structured.finite_value import has_finite_value
from friendli_runtime.structured.json_schema import PatternBudget, checked_schema

SELF = {"$ref": "#"}
NODE = {"type": "object", "properties": {"a": SELF}, "required": ["a"]}
TREE = {"type": "object", "properties": {"l": {"$ref": "#/$defs/t"}, "r": {"$ref": "#/$defs/t"}}, "required": ["l", "r"]}

ENDLESS: list[Any] = [
    False,
    SELF,
    NODE,
    {**NODE, "properties": {"a": {"anyOf": [SELF, False]}}},
    {"type": "array", "items": SELF, "minItems": 1},
    {"type": "array", "prefixItems": [{}, SELF], "minItems": 2},
    {"type": "array", "prefixItems": [{}], "items": False, "minItems": 2},
    {"type": "object", "additionalProperties": SELF, "required": ["x"]},
    {"type": "object", "additionalProperties": SELF, "minProperties": 1},
    {"type": "object", "patternProperties": {"^a$": SELF}, "additionalProperties": False, "minProperties": 1},
    {"anyOf": [NODE, {"type": "array", "items": SELF, "minItems": 1}]},
    {"allOf": [{"type": "object"}, {"anyOf": [NODE, {"type": "string"}]}]},
    {"allOf": [{"type": "string"}, {"type": "integer"}]},
    {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    {"$defs": {"t": {"oneOf": [TREE, SELF]}}, "$ref": "#/$defs/t"},
    {"$defs": {"a/b~c d": NODE}, "type": "object", "properties": {"a": {"$ref": "#/$defs/a~1b~0c%20d"}}, "required": ["a"], "not": {}},
    {
        "$defs": {"x": {"prefixItems": [{"$ref": "#/prefixItems/0"}]}},
        "type": "array",
        "prefixItems": [{"$ref": "#/prefixItems/0"}],
        "minItems": 1,
    },
]
FINITE: list[Any] = [
    True,
    {},
    {**NODE, "required": []},
    {**NODE, "properties": {"a": {"anyOf": [SELF, {"type": "null"}]}}},
    {"properties": {"a": SELF}, "required": ["a"]},  # no object need be
    {**NODE, "type": ["object", "integer"]},
    {"type": "array", "items": SELF},
    {"type": "array", "prefixItems": [{}, SELF], "minItems": 1},
    {"type": "object", "additionalProperties": SELF},
    {"type": "object", "properties": {"a": {}}, "additionalProperties": SELF, "minProperties": 1},
    {"type": "object", "properties": {"a": False}, "required": ["b"]},
    {"$defs": {"t": {"oneOf": [TREE, {"type": "number"}]}}, "$ref": "#/$defs/t"},
    {"enum": [{"a": 1}, 2], "type": "integer"},
]


@pytest.mark.parametrize("schema", ENDLESS, ids=str)
def test_a_schema_that_requires_itself_has_no_finite_value(schema: Any) -> None:
    assert not has_finite_value(schema)


@pytest.mark.parametrize("schema", FINITE, ids=str)
def test_a_schema_that_may_end_has_a_finite_value(schema: Any) -> None:
    assert has_finite_value(schema)


def test_an_endless_schema_is_refused_with_what_to_do() -> None:
    with pytest.raises(InvalidConstraint, match=r"no finite value.*out of 'required'"):
        checked_schema(NODE, max_subschemas=10, patterns=PatternBudget(10))


@pytest.mark.parametrize("keyword", ["minItems", "minLength", "minProperties"])
def test_a_minimum_that_no_context_holds_is_refused_by_name(keyword: str) -> None:
    with pytest.raises(InvalidConstraint, match=f"#/properties/a/{keyword}' is 1000000000, at most"):
        schema = {"type": "object", "properties": {"a": {keyword: 10**9}}}
        checked_schema(schema, max_subschemas=10, patterns=PatternBudget(10))


def test_long_chains_and_wide_objects_are_looked_through_in_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    num_links, looked_at, real = 500, [], finite_value._Kinds._kinds
    monkeypatch.setattr(finite_value._Kinds, "_kinds", lambda self, node: (looked_at.append(id(node)), real(self, node))[1])
    links = {f"d{i}": {"type": "object", "properties": {"x": {"$ref": f"#/$defs/d{i + 1}"}}, "required": ["x"]} for i in range(num_links)}
    wide = {"type": "object", "properties": {f"p{i}": {"$ref": f"#/$defs/d{i}"} for i in range(num_links)}}
    schema = {"$defs": links | {f"d{num_links}": {"type": "null"}}, **wide, "required": list(wide["properties"])}
    assert has_finite_value(schema)
    assert len(looked_at) <= 8 * num_links
