"""schemathesis on our own OpenAPI document: no answer of the server's fault, none that the document does not promise."""

from collections.abc import Callable
from typing import Any

import pytest
import schemathesis
from friendli_runtime.server.openapi import POSTS
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance

from .conftest import TestServer

CHECKS: list[Callable[..., Any]] = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
PHASES = [Phase.explicit, Phase.generate]


def check_operation(
    server: TestServer,
    path: str,
    num_cases: int,
    method: str = "POST",
    known: dict[str, list[Any]] | None = None,
    before: Callable[[], None] = lambda: None,
) -> None:
    """Fields that the document does not name are left out: nearly every case would have one and be refused for it.

    `known`: values of fields (or of the parameter) where random ones are never taken; then some cases must succeed. `before`: called before
    each case.
    """
    document = server.client.get("/openapi.json").json()
    if path in POSTS:
        document["components"]["schemas"][POSTS[path][0].__name__]["additionalProperties"] = False
    for name, values in (known or {}).items():
        if path in POSTS:
            document["components"]["schemas"][POSTS[path][0].__name__]["properties"][name] = {"enum": values}
        else:
            (parameter,) = document["paths"][path][method.lower()]["parameters"]
            parameter["schema"] = {"enum": values}
    operation = schemathesis.openapi.from_dict(document)[path][method]
    statuses = set()

    @settings(
        max_examples=num_cases, database=None, deadline=None, derandomize=True, phases=PHASES, suppress_health_check=list(HealthCheck)
    )
    @given(case=operation.as_strategy())
    def check(case: Any) -> None:
        before()
        response = case.call(base_url=server.url)
        assert response.status_code != 500
        case.validate_response(response, checks=CHECKS)
        statuses.add(response.status_code)

    check()
    assert known is None or 200 in statuses


@pytest.mark.parametrize("path", POSTS)
def test_generated_cases_get_the_answers_that_the_document_promises(server: TestServer, path: str) -> None:
    check_operation(server, path, 200)


@pytest.mark.slow
@pytest.mark.parametrize("path", POSTS)
def test_many_generated_cases_get_the_answers_that_the_document_promises(server: TestServer, path: str) -> None:
    check_operation(server, path, 2000)
