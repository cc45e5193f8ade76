"""Random schemas of the followed keywords on a babbling model: what it finishes is valid, what is refused is refused cleanly."""

import json
import random
from typing import Any

import jsonschema
import pytest
from friendli_runtime.sampling import SamplingParams
from friendli_runtime.structured.errors import InvalidConstraint

from .random_model import Babbler


def random_schema(rng: random.Random, depth: int = 0) -> Any:
    kinds = ["string", "integer", "number", "boolean", "null", "enum", "const", "format", "pattern"]
    kind = rng.choice(kinds + ["object", "array", "anyOf", "tuple", "types", "map", "patterns"] * (depth < 3))
    low = rng.randint(-50, 50)
    if kind == "string":
        length = rng.randint(0, 3)
        return {"type": "string", "minLength": length, "maxLength": length + rng.randint(0, 5)}
    if kind == "integer":
        bound = rng.choice([{"minimum": low}, {"exclusiveMaximum": low}, {"minimum": low, "maximum": low + rng.randint(0, 200)}, {}])
        return {"type": "integer", **bound}
    if kind == "number":
        return {"type": "number", "minimum": low / 4, "maximum": low / 4 + rng.randint(1, 9)}
    if kind == "enum":
        return {"enum": rng.sample(["a", "b c", 'q"', 1, 2.5, True, None, "é🙂"], rng.randint(1, 5))}
    if kind == "const":
        return {"const": rng.choice(["x", 7, False, None, -1.5])}
    if kind == "format":
        return {"type": "string", "format": rng.choice(["date", "time", "date-time", "uuid"])}
    if kind == "pattern":
        return {"type": "string", "pattern": rng.choice([r"^[a-c]{1,4}$", r"^\d{3}-\w+$", "(ab|cd)+", r"^x?y{2}\.$"])}
    if kind == "object":
        names = rng.sample(["a", "b", "long name", "é", "x_1", 'q"'], rng.randint(0, 4))
        properties = {name: random_schema(rng, depth + 1) for name in names}
        return {"type": "object", "properties": properties, "required": [name for name in names if rng.random() < 0.6]}
    if kind == "map":
        return {"type": "object", "additionalProperties": random_schema(rng, depth + 1), "maxProperties": 2}
    if kind == "patterns":
        names = rng.sample(["^a", "b$", "[0-9]", "^(?:é|x)y?$"], rng.randint(1, 2))
        others = rng.choice(
            [{}, {"additionalProperties": random_schema(rng, depth + 1)}, {"properties": {"ab": random_schema(rng, depth + 1)}}]
        )
        return {
            "type": "object",
            "patternProperties": {name: random_schema(rng, depth + 1) for name in names},
            "maxProperties": 3,
            **others,
        }
    if kind == "array":
        return {"type": "array", "items": random_schema(rng, depth + 1), "minItems": rng.randint(0, 1), "maxItems": rng.randint(1, 3)}
    if kind == "tuple":
        items = [random_schema(rng, depth + 1) for _ in range(rng.randint(1, 3))]
        return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}
    if kind == "types":
        return {"type": rng.sample(["integer", "null", "boolean"], 2)}
    if kind == "anyOf":
        return {"anyOf": [random_schema(rng, depth + 1) for _ in range(rng.randint(1, 3))]}
    return {"type": kind}


def check(num_schemas: int, seed: int) -> None:
    rng = random.Random(seed)
    babbler = Babbler()
    try:
        schemas: list[Any] = []
        while len(schemas) < num_schemas:
            schema = random_schema(rng)
            if schema in schemas:
                continue
            try:
                babbler.constraint({"type": "json_schema", "json_schema": {"schema": schema}})
            except InvalidConstraint:
                continue
            schemas.append(schema)
        requests = [
            ({"type": "json_schema", "json_schema": {"schema": schema}}, SamplingParams(max_tokens=120, temperature=1.5, seed=i))
            for i, schema in enumerate(schemas)
        ]
        num_finished = 0
        for (answer,), schema in zip(babbler.answers(requests), schemas, strict=True):
            assert answer.error is None, (schema, answer)
            if answer.finish_reason == "stop":
                num_finished += 1
                jsonschema.validate(json.loads(answer.text), schema)
        assert num_finished > num_schemas / 2
    finally:
        babbler.close()


def test_answers_to_random_schemas_are_valid() -> None:
    check(300, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 12))
def test_answers_to_many_random_schemas_are_valid(seed: int) -> None:
    check(300, seed)
