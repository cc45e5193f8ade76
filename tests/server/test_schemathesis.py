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


def check_operation(server: TestServer, path: str, num_cases: int) -> None:
    """Fields that the document does not name are left out: nearly every case would have one and be refused for it."""
    document = server.client.get("/openapi.json").json()
    document["components"]["schemas"][POSTS[path][0].__name__]["additionalProperties"] = False
    operation = schemathesis.openapi.from_dict(document)[path]["POST"]

    @settings(
        max_examples=num_cases, database=None, deadline=None, derandomize=True, phases=PHASES, suppress_health_check=list(HealthCheck)
    )
    @given(case=operation.as_strategy())
    def check(case: Any) -> None:
        response = case.call(base_url=server.url)
        assert response.status_code != 500
        case.validate_response(response, checks=CHECKS)

    check()


@pytest.mark.parametrize("path", POSTS)
def test_generated_cases_get_the_answers_that_the_document_promises(server: TestServer, path: str) -> None:
    check_operation(server, path, 200)


@pytest.mark.slow
@pytest.mark.parametrize("path", POSTS)
def test_many_generated_cases_get_the_answers_that_the_document_promises(server: TestServer, path: str) -> None:
    check_operation(server, path, 2000)
