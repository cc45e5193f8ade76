"""POST /v1/embeddings over HTTP, on a tiny embedding model; models that write text refuse it, and it refuses what asks for text."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from compile.test_embedding import embedder_of, save
from friendli_runtime.artifact import Artifact
from friendli_runtime.embedder import Embedder
from friendli_runtime.server.app import AppOptions
from tokenizer.tokenizers_made_here import backend_json

from friendli_compile.compile import CompileOptions, compile_model

from .conftest import TestServer, start
from .served import serve
from .test_bad_input import check
from .test_openapi import check_random_bodies
from .test_schemathesis import check_operation

TEXTS = ["hello world", "hello you", "a much longer text " * 20]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embedding")
    checkpoint = save(folder / "tiny", "mean", vocab_size=512)
    (checkpoint / "tokenizer.json").write_text(backend_json("byte_level"))
    return compile_model(CompileOptions(model=str(checkpoint), output_dir=folder / "artifact", self_check=False)).artifact


def make_engine_of(artifact: Path) -> Callable[..., Embedder]:
    opened = Artifact.open(artifact)
    return lambda *_, max_queue_len: embedder_of(opened, opened.embedding, max_num_tokens=64, max_queue_len=max_queue_len)


@pytest.fixture(scope="module")
def embedding(artifact: Path) -> Iterator[TestServer]:
    running, stop = start(make_engine=make_engine_of(artifact), with_template=False)
    yield running
    stop()


def embed(server: TestServer, **body: Any) -> tuple[np.ndarray, dict[str, Any]]:
    response = server.post("/v1/embeddings", **body)
    assert response.status_code == 200, response.text
    answer = response.json()
    return np.array([entry["embedding"] for entry in answer["data"]]), answer


def test_every_input_has_its_vector_in_order(embedding: TestServer) -> None:
    vectors, answer = embed(embedding, input=TEXTS, model="scripted")
    assert vectors.shape == (3, 64) and [entry["index"] for entry in answer["data"]] == [0, 1, 2]
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    token_ids = [embedding.tokenizer.encode(text) for text in TEXTS]
    assert answer["usage"] == {"prompt_tokens": sum(map(len, token_ids)), "total_tokens": sum(map(len, token_ids))}
    assert (answer["object"], answer["data"][0]["object"], answer["model"]) == ("list", "embedding", "scripted")
    for same in (TEXTS[1], [TEXTS[1]], token_ids[1], [token_ids[1]]):
        np.testing.assert_array_equal(embed(embedding, input=same)[0][0], vectors[1])


def test_base64_holds_the_same_numbers(embedding: TestServer) -> None:
    plain, _ = embed(embedding, input=TEXTS[0], encoding_format="float")
    packed = embedding.post("/v1/embeddings", input=TEXTS[0], encoding_format="base64").json()["data"][0]["embedding"]
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(packed), "<f4"), plain[0].astype(np.float32))


def test_dimensions_keep_the_first_numbers_at_length_1(embedding: TestServer) -> None:
    whole, _ = embed(embedding, input=TEXTS[0])
    cut, _ = embed(embedding, input=TEXTS[0], dimensions=8)
    np.testing.assert_allclose(cut[0], whole[0, :8] / np.linalg.norm(whole[0, :8]), atol=1e-6)


@pytest.mark.parametrize(
    ("status", "param", "body"),
    [
        (400, "input", {}),
        (400, "input", {"input": {"a": 1}}),
        (400, "input", {"input": ["a", 1]}),
        (400, "dimension", {"input": "a", "dimension": 3}),
        (400, "dimensions", {"input": "a", "dimensions": "3"}),
        (404, "model", {"input": "a", "model": "other"}),
        (422, "input", {"input": []}),
        (422, "input", {"input": ""}),
        (422, "input", {"input": [[]]}),
        (422, "input", {"input": [10**6]}),
        (422, "input", {"input": [[5], [-1]]}),
        (422, "input", {"input": [5] * 513}),
        (422, "input", {"input": "x" * 10**6}),
        (422, "input", {"input": ["a"] * 2049}),
        (422, "dimensions", {"input": "a", "dimensions": 65}),
        (422, "dimensions", {"input": "a", "dimensions": 0}),
        (422, "encoding_format", {"input": "a", "encoding_format": "int8"}),
    ],
)
def test_bad_inputs_are_refused_by_name(embedding: TestServer, status: int, param: str, body: dict[str, Any]) -> None:
    check(embedding.post("/v1/embeddings", **body), status, param)


def test_an_input_as_long_as_the_context_is_embedded(embedding: TestServer) -> None:
    assert embed(embedding, input=[5] * 512)[0].shape == (1, 64)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/messages", "/v1/responses"])
def test_what_asks_for_text_is_refused(embedding: TestServer, path: str) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}]}
    given = {"/v1/completions": {"prompt": "hi"}, "/v1/responses": {"input": "hi"}}.get(path, body)
    response = embedding.post(path, **given, **({"max_tokens": 3} if path == "/v1/messages" else {}))
    check(response, 400, "model")
    assert response.json()["error"]["code"] == "no_generation" and "/v1/embeddings" in response.json()["message"]


def test_a_model_that_writes_text_has_no_embeddings(server: TestServer) -> None:
    response = server.post("/v1/embeddings", input="hi")
    check(response, 400, "model")
    assert response.json()["error"]["code"] == "no_embeddings"


def test_the_other_routes_work(embedding: TestServer) -> None:
    tokens = embedding.post("/v1/tokenize", prompt="hello").json()["tokens"]
    assert embedding.post("/v1/detokenize", tokens=tokens).json()["text"] == "hello"
    for path in ("/v1/models", "/health", "/health/live", "/openapi.json"):
        assert embedding.client.get(path).status_code == 200
    assert "current_requests" in httpx.get(embedding.metrics_url + "/metrics").text


def test_who_waits_too_long_or_leaves_takes_the_prompts_along_and_one_too_many_is_429(artifact: Path) -> None:
    is_stepping = threading.Event()

    def make_stuck(*given: Any, **options: Any) -> Embedder:
        """The first step waits until the test has seen what waits behind it."""
        embedder = make_engine_of(artifact)(*given, **options)
        forward = embedder._executor.forward
        embedder._executor = type("Stuck", (), {"forward": lambda self, **batch: (is_stepping.wait(30), forward(**batch))[1]})()
        return embedder

    server, stop = start(AppOptions(request_timeout_s=1.0, max_queue_len=5), make_engine=make_stuck, with_template=False)
    with ThreadPoolExecutor() as pool:
        late = pool.submit(server.post, "/v1/embeddings", input=["hello"] * 9)  # four run, five wait
        while server.engine.stats()["num_queued_requests"] < 5:
            time.sleep(0.001)
        full = server.post("/v1/embeddings", input="hello")
    check(full, 429, None)
    assert full.headers["retry-after"]
    check(late.result(), 504, None)
    with pytest.raises(httpx.ReadTimeout):
        server.client.post("/v1/embeddings", json={"input": ["hello"] * 9}, timeout=0.1)
    is_stepping.set()
    while server.post("/v1/embeddings", input="hello").status_code != 200:
        time.sleep(0.001)
    assert server.engine.stats() == {"num_queued_requests": 0, "num_running": 0, "heartbeat_age_s": 0.0}
    stop()


NUM_CASES = [25, pytest.param(2000, marks=pytest.mark.slow)]
KNOWN = {"model": ["scripted", None], "dimensions": [0, 1, 8, 64, 65, None], "encoding_format": ["float", "base64", None]}


@pytest.mark.parametrize("num_cases", NUM_CASES)
@pytest.mark.parametrize("known", [None, KNOWN], ids=["any", "known"])
def test_generated_cases_get_vectors_or_what_the_document_promises(
    embedding: TestServer, known: dict[str, list[Any]] | None, num_cases: int
) -> None:
    check_operation(embedding, "/v1/embeddings", num_cases, known=known)


@pytest.mark.parametrize("num_cases", NUM_CASES)
def test_random_bodies_get_vectors_or_what_the_document_promises(embedding: TestServer, num_cases: int) -> None:
    document = embedding.client.get("/openapi.json").json()
    check_random_bodies(embedding, document, "/v1/embeddings", num_cases, seed=num_cases, fine={"input": ["hi", "you"]})


def test_a_served_artifact_answers_the_openai_client(artifact: Path) -> None:
    process = serve(artifact)
    try:
        client = openai.OpenAI(base_url=process.url + "/v1", api_key="any", max_retries=0)
        answer = client.embeddings.create(input=TEXTS, model="tiny")
        assert len(answer.data) == 3 and len(answer.data[0].embedding) == 64 and answer.usage.total_tokens > 0
        assert any("embeddings of 64 numbers" in line for line in process.lines)
    finally:
        assert process.stop() == 0
