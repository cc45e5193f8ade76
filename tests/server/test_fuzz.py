"""Random bodies: whatever a client sends, the answer is a status of the contract and the next request works."""

import random
from typing import Any

import pytest
from friendli_runtime.server.fields import IGNORED, NOT_HONOURED, ChatRequest, CompletionRequest

from .conftest import TestServer

VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 7, 64, 10**9, 10**30, -(2**70), 0.0, 0.5, -0.5, 1.0, 1e300, "", "a", "hello [[x]]", "\u0000", "🙂",
    [], [0], [1, 2, 3], [-1], [10**9], ["a"], ["a", 1], [[1, 2], [3]], [[]], [None], {}, {"1": 1}, {"1": -1e300}, {"x": 1}, {"tokens": [1]},
    [{"tokens": [1]}, {"tokens": [1, 2]}], {"include_usage": True}, {"type": "text"}, [{"role": "user", "content": "hi"}],
    [{"role": "user"}],
    [{"role": "user", "content": [{"type": "text", "text": "a"}]}], [{"role": "assistant", "content": "x", "tool_calls": [{}]}],
]  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("path", "kind"), [("/v1/completions", CompletionRequest), ("/v1/chat/completions", ChatRequest)])
def test_random_bodies_are_answered_or_refused_but_never_fail(server: TestServer, path: str, kind: Any, seed: int) -> None:
    rng = random.Random(f"{path} {seed}")
    names = [*kind.__struct_fields__, *IGNORED, *NOT_HONOURED, "unknown", ""]
    statuses = set()
    for _ in range(120):
        body = {name: rng.choice(VALUES) for name in rng.sample(names, rng.randint(0, 4))}
        if rng.random() < 0.7:
            body |= {"prompt": "[[hello]]"} if kind is CompletionRequest else {"messages": [{"role": "user", "content": "[[hello]]"}]}
        response = server.post(path, **{"max_tokens": 5, **body})
        assert response.status_code in (200, 400, 404, 422), (body, response.text)
        statuses.add(response.status_code)
    assert {200, 400, 422} <= statuses
    assert server.post("/v1/completions", prompt="[[fine]]").json()["choices"][0]["text"] == "fine"
