"""An embedding checkpoint: read, compiled, checked against transformers, and embedded as sentence-transformers defines it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from friendli_runtime.artifact import Artifact
from friendli_runtime.embedder import Embedder, num_blocks_for
from friendli_runtime.engine import EngineStopped, QueueFull
from friendli_runtime.errors import ConfigError
from friendli_runtime.executor import load_executor
from friendli_runtime.llm import LLM
from frontend.architectures import tiny_config, tiny_model
from transformers import AutoModel

from friendli_compile.compile import CompileOptions, compile_model
from friendli_compile.errors import FmoError, SourceError
from friendli_compile.frontend.embedding import read_embedding
from friendli_compile.frontend.source import load_source
from friendli_compile.frontend.trace import trace_model
from friendli_compile.self_check.twin import make_twin

KEYS = {"last": "pooling_mode_lasttoken", "mean": "pooling_mode_mean_tokens", "first": "pooling_mode_cls_token"}
LENGTHS = (1, 5, 16, 17, 40, 90, 3)


def write_modules(folder: Path, pooling: dict[str, Any], kinds: tuple[str, ...] = ("Transformer", "Pooling", "Normalize")) -> None:
    modules = [{"idx": i, "path": f"{i}_{kind}", "type": f"sentence_transformers.models.{kind}"} for i, kind in enumerate(kinds)]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


def save(folder: Path, pooling: str, *, is_normalized: bool = True, **overrides: Any) -> Path:
    tiny_model("qwen3", **overrides).save_pretrained(folder)
    switches = {key: pooling == name for name, key in KEYS.items()}
    write_modules(
        folder, {"word_embedding_dimension": 64, **switches}, ("Transformer", "Pooling", *(["Normalize"] if is_normalized else []))
    )
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("embedding") / "tiny", "last")


@pytest.fixture(scope="module")
def compiled(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_model(CompileOptions(model=str(checkpoint), output_dir=tmp_path_factory.mktemp("artifacts") / "tiny")).artifact


def embedder_of(artifact: Artifact, facts: Any, *, max_num_tokens: int = 32, max_num_seqs: int = 4, max_queue_len: int = 100) -> Embedder:
    executor = load_executor(
        artifact,
        num_threads=1,
        max_num_tokens=max_num_tokens,
        max_num_logits=max_num_tokens,
        num_blocks=num_blocks_for(artifact.max_context_len, max_num_tokens, max_num_seqs),
    )
    sizes = {"max_num_tokens": max_num_tokens, "max_num_seqs": max_num_seqs, "max_queue_len": max_queue_len}
    return Embedder(executor, facts, max_context_len=artifact.max_context_len, **sizes)


def prompts(seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(3, 256, length).tolist() for length in LENGTHS]


def expected(checkpoint: Path, prompt: list[int], pooling: str, *, is_normalized: bool) -> np.ndarray:
    """As transformers and the definition of the pooling give it."""
    model = AutoModel.from_pretrained(checkpoint, dtype=torch.float32).eval()
    with torch.no_grad():
        hidden = model(input_ids=torch.tensor([prompt])).last_hidden_state[0].double().numpy()
    vector = {"last": hidden[-1], "mean": hidden.mean(axis=0), "first": hidden[0]}[pooling]
    return vector / np.linalg.norm(vector) if is_normalized else vector


def test_the_artifact_says_how_embeddings_are_made_and_was_checked(compiled: Path) -> None:
    artifact = Artifact.open(compiled)
    facts = artifact.embedding
    assert facts is not None and (facts.size, facts.pooling, facts.is_normalized) == (64, "last", True)
    assert artifact.vocab_size == 256 and artifact.plan["output_width"] == 64
    assert artifact.manifest["self_check"]["status"] == "passed" and "lm_head" not in json.dumps(artifact.plan)


@pytest.mark.parametrize("pooling", KEYS)
@pytest.mark.parametrize("is_normalized", [True, False])
def test_embeddings_are_those_of_the_definition(compiled: Path, checkpoint: Path, pooling: str, is_normalized: bool) -> None:
    artifact = Artifact.open(compiled)
    assert artifact.embedding is not None
    facts = type(artifact.embedding)(64, pooling, is_normalized)
    embedder = embedder_of(artifact, facts)
    embedder.start()
    vectors = [future.result(timeout=60) for future in embedder.submit(prompts())]
    embedder.shutdown()
    for vector, prompt in zip(vectors, prompts(), strict=True):
        np.testing.assert_allclose(vector, expected(checkpoint, prompt, pooling, is_normalized=is_normalized), atol=2e-4)


def test_a_vector_does_not_depend_on_what_else_is_embedded(compiled: Path) -> None:
    artifact = Artifact.open(compiled)
    together = embedder_of(artifact, artifact.embedding)
    futures = together.submit(prompts()) + together.submit(prompts(1))
    together.start()
    vectors = [future.result(timeout=60) for future in futures]
    together.shutdown()
    alone = embedder_of(artifact, artifact.embedding, max_num_tokens=512)
    alone.start()
    for vector, prompt in zip(vectors, prompts() + prompts(1), strict=True):
        assert alone.submit([prompt])[0].result(timeout=60).tobytes() == vector.tobytes()
    assert sorted(alone._free_blocks) == list(range(len(alone._free_blocks)))
    alone.shutdown()


def test_what_waits_can_be_cancelled_refused_and_ended(compiled: Path) -> None:
    artifact = Artifact.open(compiled)
    embedder = embedder_of(artifact, artifact.embedding, max_queue_len=3)
    first, second = embedder.submit([[1, 2], [3, 4]])
    with pytest.raises(QueueFull):
        embedder.submit([[5]] * 2)
    assert first.cancel() and embedder.stats()["num_queued_requests"] == 2
    embedder.start()
    assert second.result(timeout=60).shape == (64,)
    embedder.shutdown()
    with pytest.raises(EngineStopped):
        embedder.submit([[1]])


def test_text_is_not_asked_of_an_embedding_model(compiled: Path, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="gives embeddings, not text"):
        LLM(compiled)
    with pytest.raises(FmoError, match="--quantize is for models that write text"):
        compile_model(CompileOptions(model=str(checkpoint), output_dir=tmp_path / "out", quantize="8bit"))


def test_a_twin_of_an_embedding_model_is_one(tmp_path: Path) -> None:
    traced = trace_model(tiny_config("qwen3"), is_embedder=True)
    twin = make_twin(traced, "fp32", tmp_path)
    assert twin.traced.is_embedder and twin.plan.vocab_size == twin.traced.vocab_size and twin.plan.output_width != twin.plan.vocab_size


@pytest.mark.parametrize(
    ("pooling", "kinds", "what"),
    [
        ({KEYS["last"]: True, KEYS["mean"]: True}, ("Transformer", "Pooling"), "pooling_mode_mean_tokens"),
        ({"pooling_mode_max_tokens": True}, ("Transformer", "Pooling"), "pooling_mode_max_tokens"),
        ({"pooling_mode": "weightedmean"}, ("Transformer", "Pooling"), "weightedmean"),
        ({}, ("Transformer", "Pooling"), "not named"),
        ({KEYS["last"]: True}, ("Transformer", "Pooling", "Dense"), "Dense"),
        ({KEYS["last"]: True}, ("Transformer",), "made by Transformer"),
        ({KEYS["last"]: True}, ("CLIPModel",), "CLIPModel"),
    ],
)
def test_what_is_not_served_is_refused_by_name(tmp_path: Path, pooling: dict[str, Any], kinds: tuple[str, ...], what: str) -> None:
    write_modules(tmp_path, pooling, kinds)
    with pytest.raises(SourceError, match=what):
        read_embedding(tmp_path)


def test_both_ways_to_name_a_pooling_are_read(tmp_path: Path) -> None:
    write_modules(tmp_path, {"pooling_mode": "mean"}, ("Transformer", "Pooling"))
    found = read_embedding(tmp_path)
    assert found is not None and (found.pooling, found.is_normalized) == ("mean", False)
    (tmp_path / "modules.json").write_text("{")
    with pytest.raises(SourceError, match="is not JSON"):
        read_embedding(tmp_path)
    assert read_embedding(tmp_path / "1_Pooling") is None


def test_a_language_model_has_no_embedding(tiny_checkpoint: Path) -> None:
    assert load_source(str(tiny_checkpoint)).embedding is None
