"""The OpenAPI document is true: it has every route and field, and bodies made from it get the answers that it promises."""

import json
import random
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
from friendli_runtime.server.openapi import POSTS

from .conftest import TestServer


@pytest.fixture(scope="module")
def document(server: TestServer) -> dict[str, Any]:
    return server.client.get("/openapi.json").json()


def test_every_route_is_in_the_document(server: TestServer, document: dict[str, Any]) -> None:
    unlisted = {"/openapi.json", "/docs", f"/v1/models/{server.app.model.name}"}
    routes = {path: route.method for path, route in server.app._routes.items()}
    listed = {path: method.upper() for path, methods in document["paths"].items() for method in methods}
    for path in ("/v1/models/{name}", "/v1/adapters/{name}"):
        assert server.app._named_route(path).method == listed.pop(path)
    assert listed == {path: method for path, method in routes.items() if path not in unlisted}


def test_every_field_is_in_the_document(document: dict[str, Any]) -> None:
    for request, _, _ in POSTS.values():
        assert set(document["components"]["schemas"][request.__name__]["properties"]) == set(request.__struct_fields__)


def test_the_page_names_every_route(server: TestServer, document: dict[str, Any]) -> None:
    page = server.client.get("/docs").text
    assert all(path in page for path in document["paths"]) and "http://" not in page


def value_for(schema: dict[str, Any], document: dict[str, Any], rng: random.Random, depth: int = 0) -> Any:
    """A value of the schema's type, often an odd one."""
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    if "anyOf" in schema:
        return value_for(rng.choice(schema["anyOf"]), document, rng, depth)
    kind = schema.get("type", rng.choice(["string", "integer", "null"]))
    if kind == "object":
        properties = schema.get("properties") or {name: {} for name in rng.sample(["a", "role", "type", "1", "content"], rng.randint(0, 3))}
        wanted = [name for name in properties if name in schema.get("required", ()) or rng.random() < 0.4]
        return {name: value_for(properties[name], document, rng, depth + 1) for name in wanted} if depth < 6 else {}
    if kind == "array":
        return [value_for(schema.get("items", {}), document, rng, depth + 1) for _ in range(rng.randint(0, 3))] if depth < 6 else []
    return {
        "string": rng.choice(["", "a", "[[hello]]", "auto", "user", "\u0000", "é🙂" * 20, "-1"]),
        "integer": rng.choice([0, 1, 2, -1, 5, 300, 2**31, 2**63, -(2**64)]),
        "number": rng.choice([0, 0.5, 1, -1, 1e300, -0.0]),
        "boolean": rng.random() < 0.5,
        "null": None,
    }[kind]


FINE: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "[[hi]]"}], "max_tokens": 5},
    "/v1/completions": {"prompt": "[[hi]]", "max_tokens": 5},
    "/v1/messages": {"messages": [{"role": "user", "content": "[[hi]]"}], "max_tokens": 5},
    "/v1/messages/count_tokens": {"messages": [{"role": "user", "content": "[[hi]]"}]},
    "/v1/responses": {"input": "[[hi]]", "max_output_tokens": 5},
    "/v1/tokenize": {"prompt": "hi"},
    "/v1/detokenize": {"tokens": [40]},
}


def check_random_bodies(
    server: TestServer,
    document: dict[str, Any],
    path: str,
    num_bodies: int,
    seed: int,
    fine: dict[str, Any] | None = None,
    before: Callable[[], None] = lambda: None,
) -> None:
    """`fine`: a body that is answered. `before`: called before each request."""
    fine = fine or FINE.get(path)
    rng = random.Random(f"{path} {seed}")
    schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    validator = jsonschema.Draft202012Validator({"$ref": "#/components/schemas/Error", "components": document["components"]})
    statuses = set()
    for _ in range(num_bodies):
        body = value_for(schema, document, rng)
        if fine is not None and rng.random() < 0.7:  # a few odd fields beside a body that would be answered
            others = [name for name in body if name not in ("model", *fine)]
            body = {name: body[name] for name in rng.sample(others, min(len(others), rng.randint(0, 3)))} | fine
        before()
        response = server.client.post(path, content=json.dumps(body).encode())
        assert response.status_code in (200, 400, 403, 404, 422, 504), (path, body, response.text)
        assert str(response.status_code) in document["paths"][path]["post"]["responses"]
        if response.status_code != 200:
            validator.validate(response.json())
        statuses.add(response.status_code)
    assert len(statuses) > 1 and 200 in statuses if fine is not None else 200 not in statuses


@pytest.mark.parametrize("path", POSTS)
def test_bodies_made_from_the_document_never_fail(server: TestServer, document: dict[str, Any], path: str) -> None:
    check_random_bodies(server, document, path, 200, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("seed", range(2, 12))
def test_a_hundred_thousand_bodies_made_from_the_document_never_fail(
    server: TestServer, document: dict[str, Any], path: str, seed: int
) -> None:
    check_random_bodies(server, document, path, 10_000 // len(POSTS) + 1, seed)
