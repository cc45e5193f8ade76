"""`token_index_to_replace` and `embedding_to_replace` over HTTP, on the real engine and a small model of token ids."""

from collections.abc import Iterator
from typing import Any

import pytest
from artifact.tiny import tiny_plan, write_tiny_artifact
from friendli_runtime.artifact import Artifact
from friendli_runtime.engine import Engine
from friendli_runtime.executor import load_executor
from plan.graphs import VOCAB

from friendli_compile.artifact.layouts import round_to_bf16

from .conftest import TestServer, start

FIELDS: dict[str, Any] = {"max_tokens": 8, "temperature": 0, "ignore_eos": True}
TABLE = round_to_bf16(tiny_plan()[1]["embed.weight"])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestServer]:
    artifact = Artifact.open(write_tiny_artifact(tmp_path_factory.mktemp("replaced") / "tiny"))

    def make_engine(tokenizer: Any, eos_id: int, **options: Any) -> Engine:
        executor = load_executor(artifact, max_num_tokens=16, max_num_logits=8, num_blocks=32)
        sizes = {"max_num_seqs": 8, "max_num_tokens": 16, "max_context_len": 64, "vocab_size": VOCAB}
        return Engine(executor, **sizes, has_dispatcher=False, **options)

    running, stop = start(make_engine=make_engine, with_tokenizer=False)
    yield running
    stop()


def tokens_of(server: TestServer, tokens: list[int], **fields: Any) -> list[int]:
    response = server.post("/v1/completions", tokens=tokens, **FIELDS, **fields)
    assert response.status_code == 200, response.text
    found: list[int] = response.json()["choices"][0]["tokens"]
    return found


def test_vectors_stand_in_place_of_the_embeddings(tiny: TestServer) -> None:
    vectors = [float(value) for value in TABLE[[9, 30]].ravel()]
    asked = {"token_index_to_replace": [1, 3], "embedding_to_replace": vectors}
    assert tokens_of(tiny, [5, 1, 7, 1, 8], **asked) == tokens_of(tiny, [5, 9, 7, 30, 8]) != tokens_of(tiny, [5, 1, 7, 1, 8])
    nothing: dict[str, Any] = {"token_index_to_replace": [], "embedding_to_replace": []}
    assert tokens_of(tiny, [5, 1, 7], **nothing) == tokens_of(tiny, [5, 1, 7])


@pytest.mark.parametrize(
    ("status", "param", "positions", "num_values"),
    [
        (422, "token_index_to_replace", [5], 1),
        (422, "token_index_to_replace", [-1], 1),
        (422, "token_index_to_replace", [2, 1], 2),
        (422, "token_index_to_replace", [1, 1], 2),
        (422, "token_index_to_replace", [10**30], 1),
        (422, "embedding_to_replace", [0, 1], 1),
        (422, "embedding_to_replace", [0], 0),
        (422, "embedding_to_replace", [], 1),
        (400, "token_index_to_replace", ["1"], 1),
    ],
)
def test_what_does_not_fit_is_refused_by_name(tiny: TestServer, status: int, param: str, positions: list[Any], num_values: int) -> None:
    vectors = [0.5] * TABLE.shape[1] * num_values
    body = {"token_index_to_replace": positions, "embedding_to_replace": vectors}
    response = tiny.post("/v1/completions", tokens=[1, 2, 3, 4, 5], **FIELDS, **body)
    assert (response.status_code, response.json()["error"]["param"]) == (status, param), response.text


def test_numbers_out_of_range_are_refused(tiny: TestServer) -> None:
    for value in (1e39, -1e300, 10**400):
        vectors = [value, *[0.5] * (TABLE.shape[1] - 1)]
        body = {"token_index_to_replace": [0], "embedding_to_replace": vectors}
        assert tiny.post("/v1/completions", tokens=[1, 2], **FIELDS, **body).status_code in (400, 422)
    assert tokens_of(tiny, [5, 1, 7])
