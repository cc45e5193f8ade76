"""JSON schemas: every keyword followed, ignored or refused as documented; what babbling models write is valid."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from friendli_runtime.sampling import SamplingParams
from friendli_runtime.structured import json_schema
from friendli_runtime.structured.errors import InvalidConstraint
from friendli_runtime.structured.response_format import ConstraintLimits, grammar_of

from .random_model import Babbler

LIST_OF_SELF = {"type": "object", "properties": {"v": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}}
PERSON = {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}, "required": ["name"]}


def format_of(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"schema": schema}}


@pytest.fixture(scope="module")
def babbler():
    running = Babbler()
    yield running
    running.close()


def accepted(babbler: Babbler, schema: Any, values: list[Any]) -> list[Any]:
    constraint = babbler.constraint(format_of(schema))
    return [value for value in values if constraint.accepts(value if isinstance(value, str) else json.dumps(value))]


S = {"type": "string"}
TIME = r"([01]\d|2[0-3]):[0-5]\d:([0-5]\d|60)(\.\d+)?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)"
RFC3339 = {"time": TIME, "date-time": rf"\d{{4}}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])T{TIME}"}
FOLLOWED: list[tuple[Any, list[str], list[str]]] = [
    ({"type": "null"}, ["null"], ["0", ""]),
    ({"type": "boolean"}, ["true", "false"], ["True", "1"]),
    ({"type": "integer"}, ["0", "-7", "123456789012345678901"], ["1.5", "01", "+1", "1e3"]),
    ({"type": "number"}, ["0", "-7.25", "1e-9"], ["NaN", ".5", "1."]),
    (S, ['""', '"é\\n\\u0001🙂"'], ["'a'", '"\n"', '"\\x"', '"\\ud800"']),
    ({"type": "array"}, ["[]", '[1, "a"]'], ["{}", "[1,]"]),
    ({"type": "object"}, ["{}", '{"a": 1}'], ["[]", "{a: 1}"]),
    ({"type": ["integer", "null"]}, ["1", "null"], ['"a"']),
    ({"type": "integer", "minimum": -3, "maximum": 12}, ["-3", "0", "12"], ["-4", "13"]),
    ({"type": "integer", "exclusiveMinimum": 99, "exclusiveMaximum": 102}, ["100", "101"], ["99", "102"]),
    ({"type": "number", "minimum": 0.5, "exclusiveMaximum": 1.5}, ["0.5", "1.49"], ["0.4", "1.5"]),
    ({"type": "integer", "multipleOf": 5}, ["0", "15"], ["3"]),
    ({"type": "string", "minLength": 2, "maxLength": 3}, ['"ab"', '"é🙂x"'], ['"a"', '"abcd"']),
    ({"type": "string", "pattern": r"^\d{3}-[a-z]+$"}, ['"123-ab"'], ['"12-ab"', '"x123-ab"', '"٣٣٣-ab"']),
    ({"type": "string", "pattern": "ab"}, ['"ab"'], ['"xaby"']),
    ({"type": "string", "pattern": "^(a)$|^b+$"}, ['"a"', '"bb"'], ['"ab"']),
    ({"type": "string", "format": "uuid"}, ['"123e4567-e89b-12d3-a456-426614174000"'], ['"123e4567"']),
    ({"type": "string", "format": "date-time"}, ['"2024-02-29T23:59:59Z"', '"2024-01-01T00:00:00.5+02:00"'], ['"2024-02-30T00:00:00Z"']),
    ({"type": "string", "format": "date"}, ['"2024-12-31"'], ['"2024-13-01"', '"2024-04-31"']),
    ({"type": "string", "format": "time"}, ['"23:59:59Z"'], ['"24:00:00Z"']),
    ({"type": "string", "format": "duration"}, ['"P1DT2H"', '"PT5S"'], ['"1 day"', '"P"']),
    ({"type": "string", "format": "email"}, ['"a.b@example.com"'], ['"a.b"', '"@example.com"']),
    ({"type": "string", "format": "hostname"}, ['"a-1.example.com"'], ['"-a.com"', '"a b"']),
    ({"type": "string", "format": "ipv4"}, ['"127.0.0.1"'], ['"256.0.0.1"', '"1.2.3"']),
    ({"type": "string", "format": "ipv6"}, ['"::1"', '"2001:db8::8a2e:370:7334"'], ['"1::2::3"', '"12345::"']),
    ({"type": "string", "format": "uri"}, ['"https://example.com/a?b=c#d"'], ['"no scheme"', '"//a"']),
    ({"const": "a"}, ['"a"'], ['"b"']),
    ({"const": None}, ["null"], ["0"]),
    ({"enum": ["a", 1, True, None, 2.5]}, ['"a"', "1", "true", "null", "2.5"], ['"b"', "false"]),
    ({"enum": [{"a": [1]}]}, ['{"a": [1]}'], ['{"a": [2]}']),
    (PERSON, ['{"name": "x"}', '{"name": "x", "age": 3}'], ["{}", '{"age": 3}', '{"name": "x", "other": 1}', '{"age": 3, "name": "x"}']),
    ({**PERSON, "additionalProperties": True}, ['{"name": "x"}'], ['{"name": "x", "other": 1}']),
    ({**PERSON, "additionalProperties": {"type": "null"}}, ['{"name": "x", "other": null}'], ['{"name": "x", "other": 1}']),
    ({"type": "object", "additionalProperties": {"type": "integer"}}, ['{"a": 1, "b": 2}'], ['{"a": "x"}']),
    ({"type": "object", "properties": {"a": S, "b": S}, "required": ["b"]}, ['{"b": "x"}', '{"a": "y", "b": "x"}'], ['{"a": "x"}']),
    ({"type": "object", "properties": {"a": S}}, ["{}", '{"a": "x"}'], ['{"b": 1}']),
    ({"type": "object", "minProperties": 1, "additionalProperties": S}, ['{"a": "x"}'], ["{}"]),
    ({"type": "object", "maxProperties": 1, "additionalProperties": S}, ["{}", '{"a": "x"}'], ['{"a": "x", "b": "y"}']),
    (
        {"type": "object", "patternProperties": {"^x_": S}, "additionalProperties": False},
        ["{}", '{"x_": "b"}', '{"x_a": "b"}'],
        ['{"x_a": 1}', '{"y": "a"}'],
    ),
    ({"type": "object", "patternProperties": {"^x_|z": S}}, ['{"x_a": "b", "y": 1, "az": "b"}'], ['{"x_a": 1}', '{"aza": 1}']),
    ({"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 2}, ["[1]", "[1, 2]"], ["[]", "[1, 2, 3]", '["a"]']),
    ({"type": "array", "prefixItems": [S, {"type": "null"}], "items": False, "minItems": 2}, ['["a", null]'], ["[null]", '["a"]']),
    ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, ["1", "null"], ['"a"']),
    ({"oneOf": [{"type": "integer"}, {"type": "null"}]}, ["1", "null"], ['"a"']),
    ({"allOf": [PERSON, {"type": "object", "properties": {"x": {"type": "null"}}}]}, ['{"name": "a"}'], ["{}", '{"name": "a", "x": 1}']),
    ({"$defs": {"p": PERSON}, "type": "array", "items": {"$ref": "#/$defs/p"}}, ['[{"name": "x"}]'], ["[{}]"]),
    ({"definitions": {"p": S}, "$ref": "#/definitions/p"}, ['"a"'], ["1"]),
    (LIST_OF_SELF, ['{"v": 1, "next": {"v": 2, "next": null}}'], ['{"v": 1, "next": {"v": "a"}}']),
    ({"type": "integer", "title": "t", "description": "d", "default": 1, "examples": [1], "deprecated": True, "x": 1}, ["3"], ['"a"']),
    ({"type": "array", "uniqueItems": False, "items": {"type": "integer"}}, ["[1, 1]"], ['["a"]']),
    ({"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "https://a.b/c", **PERSON}, ['{"name": "a"}'], ["{}"]),
    ({"properties": {"description": {"type": "string"}, "not": S}, "type": "object"}, ['{"description": "a", "not": "b"}'], ['{"not": 1}']),
]


@pytest.mark.parametrize(("schema", "valid", "invalid"), FOLLOWED, ids=lambda value: json.dumps(value)[:50])
def test_a_keyword_is_followed(babbler, schema, valid, invalid):
    assert accepted(babbler, schema, valid) == valid
    assert accepted(babbler, schema, invalid) == []


def without(keyword: str, schema: Any, value: Any = ...) -> Any:
    """The schema as it were if `keyword` (with `value`) were ignored. Names of properties and of definitions are no keywords."""
    if not isinstance(schema, dict):
        return schema
    kept = {}
    for name, of_name in schema.items():
        if name == keyword and value in (..., of_name):
            continue
        if name in ("properties", "patternProperties", "$defs", "definitions"):
            of_name = {key: without(keyword, child, value) for key, child in of_name.items()}
        elif name in ("anyOf", "oneOf", "allOf", "prefixItems"):
            of_name = [without(keyword, child, value) for child in of_name]
        elif name in ("items", "additionalProperties"):
            of_name = without(keyword, of_name, value)
        kept[name] = of_name
    return kept


def has_case(babbler: Babbler, keyword: str, value: Any = ...) -> bool:
    """Whether some case accepts other texts, or none, when the keyword is ignored."""
    for schema, valid, invalid in FOLLOWED:
        ignored = without(keyword, schema, value)
        if ignored == schema:
            continue
        try:
            if accepted(babbler, ignored, valid) != valid or accepted(babbler, ignored, invalid):
                return True
        except InvalidConstraint:  # a reference to what is gone
            return True
    return False


FOLLOWED_KEYWORDS = sorted(json_schema._SCHEMA_MAPS | json_schema._SCHEMA_LISTS | json_schema._SCHEMAS | json_schema._VALUES)


@pytest.mark.parametrize("keyword", FOLLOWED_KEYWORDS)
def test_each_followed_keyword_has_a_case_that_fails_if_it_is_ignored(babbler, keyword):
    assert has_case(babbler, keyword)


@pytest.mark.parametrize("name", sorted(json_schema.FORMATS))
def test_each_format_has_a_case_that_fails_if_it_is_ignored(babbler, name):
    assert has_case(babbler, "format", name)


@pytest.mark.parametrize("keyword", sorted(json_schema._REFUSED))
def test_each_refused_keyword_is_named(babbler, keyword):
    for value in ({"type": "string"}, True, 1, ["a"]):
        if value not in json_schema._REFUSED[keyword]:
            with pytest.raises(InvalidConstraint, match=f"{re.escape(keyword)}' is not supported"):
                babbler.constraint(format_of({"type": "object", keyword: value}))


def test_the_documentation_names_every_keyword_and_format():
    text = (Path(__file__).parents[2] / "docs" / "http-api.md").read_text()
    words = set(re.findall(r"[$\w-]+", text.partition("## Structured outputs")[2].partition("## Tools")[0]))
    assert {*FOLLOWED_KEYWORDS, *json_schema._REFUSED, *json_schema.FORMATS} <= words


REFUSED = [
    {"not": S},
    {"if": S, "then": S},
    {"type": "array", "contains": S},
    {"type": "array", "uniqueItems": True},
    {"type": "object", "propertyNames": S},
    {"type": "object", "dependentRequired": {"a": ["b"]}},
    {"type": "object", "dependentSchemas": {"a": S}},
    {"type": "object", "unevaluatedProperties": False},
    {"type": "string", "format": "color"},
    {"type": "string", "pattern": "(?=a)b"},
    {"type": "string", "pattern": 3},
    {"type": "object", "patternProperties": {"[": S}},
    {"type": "number", "multipleOf": 0.1},
    {"type": "integer", "multipleOf": 0},
    {"type": "integer", "multipleOf": -3},
    {"type": ["string", "thing"]},
    {"$ref": "https://example.com/schema.json"},
    {"$ref": "other.json#/a"},
    {"$ref": "#/$defs/missing"},
    {"$ref": 3},
    {"$dynamicRef": "#a"},
    {"type": "thing"},
    {"type": 3},
    {"properties": []},
    {"anyOf": []},
    {"anyOf": S},
    {"items": [S]},
    {"items": 3},
    {"minLength": -1},
    {"maxItems": 1.5},
    {"enum": []},
    {"enum": 3},
    {"required": "a"},
    {"minimum": "a"},
    {"type": "integer", "minimum": 5, "maximum": 3},
    {"type": "string", "minLength": 4, "maxLength": 3},
    {"oneOf": [{"type": "integer"}, {"type": "number"}]},
    {"type": "object", "properties": {"a": False}, "required": ["a"]},
    {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    {"properties": {"a": {"not": {}}}},
    False,
    "text",
    3,
    [S],
]


@pytest.mark.parametrize("schema", REFUSED, ids=lambda value: json.dumps(value)[:50])
def test_what_is_not_supported_is_refused(babbler, schema):
    with pytest.raises(InvalidConstraint):
        babbler.constraint(format_of(schema))


def test_the_place_of_a_refused_keyword_is_named(babbler):
    schema = {"type": "object", "properties": {"a": {"type": "array", "items": {"not": {}}}}}
    with pytest.raises(InvalidConstraint, match="#/properties/a/items/not"):
        babbler.constraint(format_of(schema))


def test_size_depth_and_number_of_subschemas_are_bounded():
    deep: dict[str, Any] = {"type": "integer"}
    for _ in range(60):
        deep = {"type": "array", "items": deep}
    many = {"type": "object", "properties": {f"p{i}": {"type": "null"} for i in range(2000)}}
    long = {"type": "string", "description": "x" * 300_000}
    for schema, what in ((deep, "nests"), (many, "subschemas"), (long, "bytes")):
        with pytest.raises(InvalidConstraint, match=what):
            grammar_of(format_of(schema), ConstraintLimits())
    with pytest.raises(InvalidConstraint, match="bytes"):
        grammar_of({"type": "regex", "schema": "a" * 5000}, ConstraintLimits())


@pytest.mark.parametrize(
    "response_format",
    [
        {},
        {"type": None},
        {"type": "json"},
        {"type": 3},
        {"type": "json_schema"},
        {"type": "json_schema", "json_schema": {}},
        {"type": "json_schema", "json_schema": {"schema": None}},
        {"type": "json_schema", "json_schema": []},
        {"type": "json_schema", "schema": S},
        {"type": "json_schema", "json_schema": {"schema": S, "stricter": True}},
        {"type": "json_schema", "json_schema": {"schema": S, "strict": "yes"}},
        {"type": "regex"},
        {"type": "regex", "schema": 3},
        {"type": "regex", "pattern": "a"},
        {"type": "json_object", "schema": {}},
    ],
    ids=lambda value: json.dumps(value),
)
def test_a_malformed_format_is_refused(response_format):
    with pytest.raises(InvalidConstraint):
        grammar_of(response_format, ConstraintLimits())


def test_extra_fields_of_openai_clients_are_accepted(babbler):
    payload = {"name": "person", "description": "d", "strict": True, "schema": PERSON}
    assert babbler.constraint({"type": "json_schema", "json_schema": payload}).accepts('{"name": "a"}')


def test_text_asks_for_nothing():
    assert grammar_of({"type": "text"}, ConstraintLimits()) is None and grammar_of(None, ConstraintLimits()) is None


def test_json_object_is_an_object_or_an_array(babbler):
    constraint = babbler.constraint({"type": "json_object"})
    assert constraint.accepts('{"a": [1, {"b": null}]}') and constraint.accepts("[1]")
    assert not constraint.accepts("1") and not constraint.accepts('"a"') and not constraint.accepts("{") and not constraint.accepts("")


@pytest.mark.parametrize("kind", ["byte_level", "llama_bpe", "metaspace_unigram"])
def test_what_a_babbling_model_writes_is_valid(kind):
    babbler = Babbler(kind)
    try:
        schemas = [schema for schema, valid, _ in FOLLOWED if valid]
        if kind == "metaspace_unigram":  # its tokens cannot write every character
            schemas = [{"type": "array", "items": {"enum": ["hello", "world"]}}] if babbler.tokenizer.backend.token_to_id("[") else []
        params = [SamplingParams(max_tokens=150, temperature=1.5, seed=seed, n=2) for seed in range(2)]
        runs = babbler.answers([(format_of(schema), one) for schema in schemas for one in params])
        num_finished = 0
        for samples, schema in zip(runs, [schema for schema in schemas for _ in params], strict=True):
            for answer in samples:
                assert answer.error is None and answer.finish_reason in ("stop", "length"), (schema, answer)
                if answer.finish_reason == "stop":
                    num_finished += 1
                    assert schema.get("format") not in RFC3339 or re.fullmatch(RFC3339[schema["format"]], json.loads(answer.text))
                    jsonschema.validate(json.loads(answer.text), schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)
        assert num_finished >= len(runs)  # of two samples each
    finally:
        babbler.close()


def test_a_schema_that_is_true_allows_every_value(babbler):
    json.loads(babbler.answer(format_of(True), max_tokens=400, seed=2).text)
