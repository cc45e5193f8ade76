"""The twin is small, has every kind of layer of the real model, and keeps what decides numerics: head dims, grouping, rotary scaling."""

from __future__ import annotations

import pytest

from friendli_compile.errors import SelfCheckFailed
from friendli_compile.frontend.trace import TracedModel, trace_model
from friendli_compile.self_check.twin import layer_kinds, trace_twin
from tests.frontend.architectures import LLAMA3_ROPE, tiny_config


def traced(name: str, **overrides: object) -> TracedModel:
    return trace_model(tiny_config(name, **overrides))


def test_heads_keep_their_dims_and_grouping_and_rotary_scaling_is_the_real_one() -> None:
    real = traced(
        "llama", num_hidden_layers=3, hidden_size=1024, intermediate_size=4096, num_attention_heads=32, num_key_value_heads=8, head_dim=64,
        vocab_size=4096, eos_token_id=[2, 4001], rope_parameters=LLAMA3_ROPE,
    )  # fmt: skip
    twin = trace_twin(real)
    config = twin.config
    assert config.num_attention_heads / config.num_key_value_heads == 4 and config.head_dim == 64
    assert config.rope_parameters == real.config.rope_parameters
    assert twin.num_params < real.num_params / 10 and config.num_hidden_layers == 2
    assert all(token < config.vocab_size for token in config.eos_token_id)
    assert set(layer_kinds(twin.graph)) == set(layer_kinds(real.graph))


def test_the_twin_is_as_long_as_the_first_layers_that_show_every_kind() -> None:
    pattern = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
    real = traced("gemma3_text", num_hidden_layers=4, layer_types=pattern, sliding_window=100)
    kinds = layer_kinds(real.graph)
    assert len(kinds) == 4 and len(set(kinds)) == 2
    twin = trace_twin(real)
    assert twin.config.num_hidden_layers == 3 and len(twin.config.layer_types) == 3
    assert set(layer_kinds(twin.graph)) == set(kinds)
    windows = {node.attrs["window"] for node in twin.graph.nodes if node.op == "attn.paged"}
    assert 0 in windows and 0 < max(windows) < 33, "probes outgrow the twin's window"


def test_dense_and_expert_layers_are_both_in_the_twin_of_a_mixture() -> None:
    real = traced("deepseek_v3", num_hidden_layers=3, n_routed_experts=32, q_lora_rank=64, kv_lora_rank=96)
    twin = trace_twin(real)
    assert twin.config.num_hidden_layers == 2 and twin.config.n_routed_experts < 32
    assert twin.config.num_experts_per_tok == real.config.num_experts_per_tok and twin.config.n_group == real.config.n_group
    assert set(layer_kinds(twin.graph)) == set(layer_kinds(real.graph))


def test_a_model_whose_kinds_of_layers_no_twin_shows_is_refused_and_not_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = traced("llama")
    other = traced("qwen3")
    real.graph = other.graph  # a graph that no config of this architecture gives
    with pytest.raises(SelfCheckFailed, match="no small twin") as caught:
        trace_twin(real)
    assert "--no-self-check" in caught.value.hint
