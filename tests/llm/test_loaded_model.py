"""How much memory the KV cache gets, and options that do not fit together."""

import pytest
from friendli_runtime.artifact import Artifact
from friendli_runtime.errors import ConfigError
from friendli_runtime.loaded_model import BLOCK_SIZE, EngineOptions, TextOptions, kv_block_bytes, num_kv_blocks, open_model
from server.served import scripted_artifact


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    return Artifact.open(scripted_artifact())


def test_given_memory_is_used_to_the_last_whole_block(artifact: Artifact) -> None:
    block_bytes = kv_block_bytes(artifact, "f32")
    assert block_bytes == 2 * kv_block_bytes(artifact, "bf16")
    options = EngineOptions(kv_cache_bytes=10 * block_bytes + block_bytes // 2, kv_dtype="f32")
    assert num_kv_blocks(artifact, options) == 10


def test_without_a_figure_the_batch_gets_what_it_needs_and_one_context_always_fits(artifact: Artifact) -> None:
    blocks_per_context = -(-artifact.max_context_len // BLOCK_SIZE)
    assert blocks_per_context <= num_kv_blocks(artifact, EngineOptions(max_num_seqs=2)) <= 2 * blocks_per_context


def test_less_than_a_block_is_refused_with_what_a_context_needs(artifact: Artifact) -> None:
    with pytest.raises(ConfigError, match="do not hold one KV block") as caught:
        num_kv_blocks(artifact, EngineOptions(kv_cache_bytes=100))
    assert "full context" in caught.value.hint


def test_more_memory_than_is_free_is_refused_at_start(artifact: Artifact) -> None:
    with pytest.raises(ConfigError, match=r"would take \d+ bytes, and \d+ are free") as caught:
        num_kv_blocks(artifact, EngineOptions(kv_cache_bytes=2**60))
    assert caught.value.where == "--kv-cache-memory"


def test_a_step_smaller_than_the_batch_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot hold"):
        open_model(scripted_artifact(), EngineOptions(max_num_seqs=8, max_num_tokens=4), TextOptions())


def test_a_small_cache_bounds_the_longest_request() -> None:
    block_bytes = kv_block_bytes(Artifact.open(scripted_artifact()), "f32")
    loaded = open_model(scripted_artifact(), EngineOptions(kv_cache_bytes=4 * block_bytes, kv_dtype="f32", num_threads=1), TextOptions())
    assert loaded.engine.max_total_len <= loaded.kv_cache_tokens + 1 and loaded.kv_cache_tokens == 4 * BLOCK_SIZE
    loaded.close()
