"""POST /v1/embeddings: texts or token ids to vectors, of a model that was compiled from an embedding checkpoint.

input: "…" | ["…", …] | [1, 2] | [[1, 2], …]  ─▶  prompts ─▶ Embedder ─▶  data: [{index, embedding: [0.1, …] or base64 of float32}]

`dimensions` keeps the first numbers of each vector and, where the model normalizes, makes it one of length 1 again.
"""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import msgspec
import numpy as np

from ..embedder import Embedder, ModelComputedNaN, normalized
from ..engine import EngineStopped, QueueFull
from ..tokenizer.tokenizer import Tokenizer
from .completions import as_prompts, encode_prompts
from .errors import ApiError, bad_request, invalid_value, unavailable
from .exchange import Exchange
from .limits import Limits
from .params import check_prompt

ENCODINGS = ("float", "base64")


class EmbeddingsRequest(msgspec.Struct, kw_only=True):
    """POST /v1/embeddings."""

    input: str | list[str | int | list[int]]
    model: str | None = None
    encoding_format: str | None = None
    dimensions: int | None = None


def embedding_prompts(request: EmbeddingsRequest, embedder: Embedder, tokenizer: Tokenizer | None, limits: Limits) -> list[list[int]]:
    """Token ids of each input; the other fields are checked too. Raises ApiError."""
    if request.encoding_format not in (None, *ENCODINGS):
        given = request.encoding_format[:40]
        raise invalid_value(f"'encoding_format' is '{given}', expected {' or '.join(ENCODINGS)}", "encoding_format")
    if request.dimensions is not None and not 1 <= request.dimensions <= embedder.facts.size:
        raise invalid_value(f"'dimensions' is {request.dimensions}, expected 1 to {embedder.facts.size}", "dimensions")
    inputs = as_prompts(request.input, "input")
    if len(inputs) > limits.max_embedding_inputs:
        raise invalid_value(f"'input' has {len(inputs)} inputs, at most {limits.max_embedding_inputs} are allowed", "input")
    prompts = encode_prompts(inputs, tokenizer, embedder.max_context_len, "input")
    for i, prompt in enumerate(prompts):
        check_prompt(prompt, embedder.vocab_size, "input")
        if not prompt:
            raise invalid_value(f"'input[{i}]' is empty, expected at least one token", "input")
        if len(prompt) > embedder.max_context_len:
            what = f"'input[{i}]' has {len(prompt)} tokens, more than the context of {embedder.max_context_len}"
            raise invalid_value(what, "input", "context_exceeded")
    return prompts


async def embedded(embedder: Embedder, prompts: list[list[int]], exchange: Exchange, timeout_s: float) -> list[np.ndarray]:
    """The vectors `[size]` of the prompts. `timeout_s` 0: none. A client that leaves takes its waiting prompts with it. Raises ApiError."""
    try:
        futures = embedder.submit(prompts)
    except QueueFull as error:
        raise ApiError(429, f"the server is busy: {error}", code="queue_full", headers=(("retry-after", "1"),)) from None
    except EngineStopped:
        raise unavailable("the server is shutting down") from None
    waiting = _Waiting(asyncio.gather(*map(asyncio.wrap_future, futures)))
    exchange.listen(waiting)
    try:
        return await waiting.result(timeout_s)
    except ModelComputedNaN:
        raise ApiError(400, "the model computed a NaN for this request", code="nan_error") from None
    except EngineStopped:
        raise unavailable("the server is shutting down") from None
    finally:
        exchange.listen(None)
        for future in futures:
            future.cancel()


class _Waiting:
    """Hears of the client (exchange.Listener) while the vectors are computed."""

    def __init__(self, vectors: asyncio.Future[list[np.ndarray]]) -> None:
        self._vectors = vectors
        self._failure: Exception | None = None

    async def result(self, timeout_s: float) -> list[np.ndarray]:
        await asyncio.wait([self._vectors], timeout=timeout_s or None)
        if self._failure is not None:
            raise self._failure
        if not self._vectors.done():
            self._vectors.cancel()
            raise ApiError(504, f"the request took longer than {timeout_s:g} s", code="deadline_exceeded")
        return self._vectors.result()

    def abort(self, failure: Exception) -> None:
        self._failure = self._failure or failure
        self._vectors.cancel()

    def pause(self) -> None:
        """The answer is one piece: there is nothing to hold back."""

    def resume(self) -> None:
        """See `pause`."""


def embeddings_answer(
    request: EmbeddingsRequest, vectors: list[np.ndarray], *, is_normalized: bool, num_tokens: int, model: str
) -> dict[str, Any]:
    data = []
    for index, vector in enumerate(vectors):
        kept = vector[: request.dimensions]
        if is_normalized and request.dimensions is not None:
            kept = normalized(kept.astype(np.float64)).astype(np.float32)
        is_packed = request.encoding_format == "base64"
        value = base64.b64encode(kept.astype("<f4").tobytes()).decode() if is_packed else kept.tolist()
        data.append({"object": "embedding", "index": index, "embedding": value})
    return {"object": "list", "data": data, "model": model, "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens}}


def required_embedder(engine: object) -> Embedder:
    """Raises ApiError 400 where the model writes text."""
    if not isinstance(engine, Embedder):
        what = "this model writes text and gives no embeddings; compile and serve an embedding model"
        raise bad_request(what, "model", "no_embeddings")
    return engine


def refuse_generation(engine: object, path: str) -> None:
    """Raises ApiError 400 where the model gives embeddings and `path` asks for text."""
    if isinstance(engine, Embedder):
        raise bad_request(f"this model gives embeddings and writes no text; ask /v1/embeddings instead of {path}", "model", "no_generation")
