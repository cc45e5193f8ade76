"""Arguments that a dialect writes without quotes are kept to pattern and length, and end at the first closing mark."""

import json
import random
from typing import Any

import jsonschema
import numpy as np
import pytest
from friendli_runtime.structured.constraint import ConstraintCompiler
from friendli_runtime.structured.errors import InvalidConstraint
from friendli_runtime.structured.response_format import ConstraintLimits
from friendli_runtime.tokenizer.chat_template import ChatTemplate
from friendli_runtime.tools.bare_values import alternatives
from friendli_runtime.tools.constraint import CallConstraint, call_constraint
from friendli_runtime.tools.dialect import derived_dialect
from friendli_runtime.tools.parser import CallDelta, CallParser
from friendli_runtime.tools.request import ToolRequest, tool_request
from structured.random_model import eos_of, tokenizer_of

from .templates import END_TEXTS, GLM, MINIMAX, QWEN_CODER, SPECIALS, WITH_CALLS

LIMITS = ConstraintLimits(2**18, 1024, 4096, 256)
UNQUOTED = {"qwen_coder": QWEN_CODER, "glm": GLM, "minimax": MINIMAX}


def request_of(schema: dict[str, Any]) -> ToolRequest:
    definitions = {
        "color": {"enum": ["red", "1"]},
        "node": {"type": "object", "properties": {"id": {"type": "integer"}}, "required": ["id"]},
    }
    definitions["a b"] = {"enum": ["1"]}
    parameters = {"type": "object", "properties": {"q": schema}, "required": ["q"], "$defs": definitions}
    request = tool_request([{"type": "function", "function": {"name": "find", "parameters": parameters}}], "required", None, 8, LIMITS)
    assert request is not None
    return request


def given(name: str, schema: dict[str, Any], value: str) -> str | None:
    """The arguments of a forced call whose argument is this text, written as the template writes it; None: it may not be."""
    template = ChatTemplate(UNQUOTED[name], SPECIALS)
    dialect = derived_dialect(template, END_TEXTS)
    tokenizer = tokenizer_of("byte_level")
    compiler = ConstraintCompiler(tokenizer, tokenizer.backend.num_tokens, [eos_of("byte_level")])
    constraint = call_constraint(request_of(schema), dialect, compiler, [eos_of("byte_level")])
    assert constraint is not None and dialect.parameters is not None
    form = dialect.parameters
    names = {"name": "find", "arguments": f"{form.before}q{form.middle}{value}{form.after}"}
    text = dialect.start + "".join(part if isinstance(part, str) else names[part.value] for part in dialect.call) + dialect.end
    masks = constraint.sample()
    mask = constraint.first_mask
    for token_id in [*tokenizer.encode(text, add_special_tokens=False), eos_of("byte_level")]:
        if not mask[token_id // 8] >> token_id % 8 & 1:
            return None
        mask = masks.advance(token_id)
    parser = CallParser(dialect, dict(request_of(schema).schemas))
    return "".join(item.arguments for item in [*parser.push(text), *parser.finish()] if isinstance(item, CallDelta))


def accepts(name: str, schema: dict[str, Any], value: str) -> bool:
    found = given(name, schema, value)
    assert found is None or json.loads(found) == {"q": value}
    return found is not None


@pytest.mark.parametrize("name", UNQUOTED)
@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"maxLength": 5}, ["", "abcde", "a\nb", "</p"], ["abcdef", "🙂" * 6]),
        ({"minLength": 2, "maxLength": 3}, ["ab", "é🙂x"], ["a", "abcd"]),
        ({"minLength": 3}, ["abc", "a" * 50], ["", "ab"]),
        ({"pattern": "^[a-z]+/[0-9]{2}$"}, ["ab/12"], ["ab/1", "ab12", "x/12 "]),
        ({"pattern": "a*b|c", "maxLength": 3}, ["c", "aab"], ["aaab", "cc", ""]),
    ],
)
def test_text_without_quotes_has_its_pattern_and_length(name: str, schema: dict[str, Any], good: list[str], bad: list[str]) -> None:
    schema = {"type": "string", **schema}
    assert [text for text in good if not accepts(name, schema, text)] == []
    assert [text for text in bad if accepts(name, schema, text)] == []


TEXT, NULL, INTEGER = {"type": "string"}, {"type": "null"}, {"type": "integer", "minimum": 10}
NODE, COLOR = {"$ref": "#/$defs/node"}, {"$ref": "#/$defs/color"}


@pytest.mark.parametrize("name", UNQUOTED)
@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        (TEXT, {"5": "5", "null": "null", '"a"': '"a"'}, []),
        ({"enum": ["1", "true", 2]}, {"1": "1", "true": "true", "2": 2}, ["3", '"1"', "false"]),
        (COLOR, {"red": "red", "1": "1"}, ['"red"', "blue"]),
        ({"anyOf": [TEXT, NULL]}, {"5": "5", "null": None, "a\nb": "a\nb", "NaN": "NaN", "1e999": "1e999"}, []),
        ({"type": ["string", "null"], "maxLength": 4}, {"5": "5", "null": None}, ["abcde"]),
        ({"anyOf": [COLOR, INTEGER]}, {"red": "red", "1": "1", "12": 12}, ["5", "blue", "1.5"]),
        ({"anyOf": [TEXT, INTEGER]}, {"5": "5", "12": 12, "12.0": 12, "12.5": "12.5"}, []),
        ({"anyOf": [TEXT, NODE]}, {'{"id": 1}': {"id": 1}, "a {b}": "a {b}", "": ""}, ['{"id": "x"}', "{}", "[1]"]),
        ({}, {"NaN": "NaN", "[1e999]": "[1e999]", "[1]": [1], "x": "x", "[" * 3000: "[" * 3000}, []),
        (NODE, {'{"id": 1}': {"id": 1}}, ["x", "{}"]),
        ({"$ref": "#/$defs/a%20b"}, {"1": "1"}, ["2"]),
    ],
)
def test_values_without_quotes_are_valid_for_their_schema(name: str, schema: dict[str, Any], good: dict[str, Any], bad: list[str]) -> None:
    for text, value in good.items():
        found = given(name, schema, text)
        assert found is not None and json.loads(found, parse_constant=pytest.fail) == {"q": value}, text
    assert [text for text in bad if given(name, schema, text) is not None] == []


MIXED = {
    "type": "object",
    "properties": {
        "text": {"type": "string"},
        "count": {"type": "integer", "minimum": 3},
        "maybe": {"anyOf": [{"type": "string", "maxLength": 6}, {"type": "null"}]},
        "kind": {"enum": ["1", "b", 2]},
        "node": {"$ref": "#/$defs/node"},
        "any": {},
    },
    "required": ["text", "count", "kind", "node"],
    "$defs": {"node": {"type": "object", "properties": {"ids": {"type": "array", "items": {"type": "integer"}}}, "required": ["ids"]}},
}


@pytest.mark.parametrize("schema", [{"$ref": "#/$defs/none"}, {"anyOf": [TEXT, {"$ref": "#/$defs/none"}]}, {"enum": 5}, {"minimum": "a"}])
def test_a_wrong_schema_of_an_argument_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(InvalidConstraint):
        given("qwen_coder", schema, "a")


def unions_of_unions(depth: int, *ends: Any) -> dict[str, Any]:
    """Definitions that lead to their end in two ways each."""
    twice = {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}, {"$ref": f"#/$defs/d{i + 1}"}]} for i in range(depth)}
    return {"properties": {"q": {"$ref": "#/$defs/d0"}}, "$defs": {**twice, f"d{depth}": {"anyOf": list(ends)}}}


@pytest.mark.parametrize("parameters", [unions_of_unions(40, TEXT, {"type": "null"}), unions_of_unions(40, TEXT, False)])
def test_unions_that_multiply_are_refused_and_not_taken_apart(parameters: dict[str, Any]) -> None:
    with pytest.raises(InvalidConstraint, match="more than 64 kinds"):
        alternatives(parameters["properties"]["q"], parameters)
    assert len(alternatives({"$ref": "#/$defs/d36"}, parameters)) >= 16


def test_a_long_way_of_references_is_followed() -> None:
    chain = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(1000)} | {"d1000": TEXT, "loop": {"$ref": "#/$defs/loop"}}
    assert alternatives({"$ref": "#/$defs/d0"}, {"$defs": chain}) == [TEXT]
    assert alternatives({"anyOf": [{"$ref": "#/$defs/loop"}, True, False, TEXT]}, {"$defs": chain}) == [{}, TEXT]


def babbled(constraint: CallConstraint, closing: list[int], eos_id: int, rng: random.Random) -> list[int] | None:
    """Tokens at random that the constraint allows, text being closed now and then; None: no end within 600 of them."""
    masks, mask = constraint.sample(), constraint.first_mask
    token_ids: list[int] = []
    planned: list[int] = []
    while len(token_ids) < 600:
        allowed = np.flatnonzero(np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little")).tolist()
        if eos_id in allowed:
            return token_ids
        if not planned and rng.random() < 0.4:
            planned = list(closing)
        planned = planned if planned and planned[0] in allowed else []
        token_ids.append(planned.pop(0) if planned else rng.choice(allowed))
        mask = masks.advance(token_ids[-1])
    return None


@pytest.mark.parametrize("name", WITH_CALLS)
def test_forced_calls_of_every_family_are_valid_whatever_the_model_babbles(name: str) -> None:
    tools = [{"type": "function", "function": {"name": called, "parameters": MIXED}} for called in ("first", "second-one")]
    request = tool_request(tools, "required", None, 8, LIMITS)
    dialect = derived_dialect(ChatTemplate(WITH_CALLS[name], SPECIALS), END_TEXTS)
    tokenizer, eos_id = tokenizer_of("byte_level"), eos_of("byte_level")
    compiler = ConstraintCompiler(tokenizer, tokenizer.backend.num_tokens, [eos_id])
    assert request is not None
    constraint = call_constraint(request, dialect, compiler, [eos_id])
    assert constraint is not None
    form = dialect.parameters
    closing = tokenizer.encode(form.after if form is not None and not form.is_json else '"', add_special_tokens=False)
    num_whole = 0
    for seed in range(8):
        token_ids = babbled(constraint, closing, eos_id, random.Random(seed)) if num_whole < 2 else None
        if token_ids is None:
            continue
        num_whole += 1
        parser = CallParser(dialect, dict(request.schemas))
        text = tokenizer.decode(token_ids)
        pieces = [*parser.push(text), *parser.finish()]
        calls = [item for item in pieces if isinstance(item, CallDelta) and item.name is not None]
        assert calls and parser.num_calls == len(calls) and not any(isinstance(item, str) for item in pieces), text
        for call in calls:
            arguments = "".join(item.arguments for item in pieces if isinstance(item, CallDelta) and item.call_idx == call.call_idx)
            jsonschema.validate(json.loads(arguments, parse_constant=pytest.fail), MIXED)
    assert num_whole > 0
