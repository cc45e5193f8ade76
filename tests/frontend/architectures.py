"""Tiny random-weight models of every architecture we promise to compile, and of variants that switch optional features on.

`tiny_config(name)` gives a transformers config of a few layers in which every kind of layer of the architecture occurs;
`tiny_model(name, seed)` builds it in float32 with weights large enough that a wrong scale, window, norm or rotation moves the
logits far beyond the tolerance (the default initialisation is near-degenerate and hides mistakes).
Not here: the comparison itself (test_parity.py) and real checkpoints.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from friendli_compile.frontend.trace import TracedModel, trace_model

VOCAB_SIZE = 256
MAX_CONTEXT_LEN = 512

# Sizes given to every config class that has the field (under its own name: `n_embd` for `hidden_size` and so on).
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": MAX_CONTEXT_LEN, "sliding_window": 8,
    "num_experts": 8, "num_local_experts": 8, "n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "use_cache": False,
}  # fmt: skip

SLIDING_THEN_FULL = {"layer_types": ["sliding_attention", "full_attention"]}
LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
YARN_ROPE = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128,
             "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0}  # fmt: skip


def _longrope(num_factors: int) -> dict[str, Any]:
    return {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0 + 0.1 * i for i in range(num_factors)],
            "long_factor": [2.0 + 0.5 * i for i in range(num_factors)], "original_max_position_embeddings": 64}  # fmt: skip


MLA = {
    "head_dim": 8, "num_key_value_heads": 4, "q_lora_rank": 32, "kv_lora_rank": 32, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16,
    "v_head_dim": 24, "n_group": 2, "topk_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 1,
}  # fmt: skip

# name -> overrides; "model_type" where the name is a variant. Keys are canonical and mapped by the class's own attribute_map.
DENSE: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama3": {"model_type": "llama", "rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": True},
    "mistral": {},
    "qwen2": {},
    "qwen3": {},
    "gemma": {},
    "gemma2": SLIDING_THEN_FULL | {"query_pre_attn_scalar": 24},
    "gemma3_text": SLIDING_THEN_FULL | {"query_pre_attn_scalar": 24},
    "phi": {"num_key_value_heads": 4},
    "phi3": {"num_key_value_heads": 2, "original_max_position_embeddings": 64, "rope_parameters": _longrope(8), "sliding_window": 48},
    "gpt2": {},
    "gpt_neox": {},
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 64},
    "falcon": {"new_decoder_architecture": True, "num_kv_heads": 2, "alibi": False},
    "mpt": {"d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 128},
    "bloom": {},
    "starcoder2": {},
    "stablelm": {},
    "cohere": {"logit_scale": 1.0},
    "cohere2": SLIDING_THEN_FULL | {"logit_scale": 1.0},
    "olmo": {},
    "olmo2": {},
    "granite": {"embedding_multiplier": 3.0, "residual_multiplier": 0.6, "attention_multiplier": 0.2, "logits_scaling": 2.0},
    "glm4": {},
    "exaone4": SLIDING_THEN_FULL,
    "smollm3": {"no_rope_layers": [1, 0]},
}
MOE: dict[str, dict[str, Any]] = {
    "mixtral": {"sliding_window": None},
    "qwen2_moe": {"shared_expert_intermediate_size": 48, "decoder_sparse_step": 1},
    "qwen3_moe": {"decoder_sparse_step": 1, "norm_topk_prob": True},
    "olmoe": {},
    "gpt_oss": SLIDING_THEN_FULL,
    "deepseek_v3": MLA,
}
# The architectures that must compile and match.
ARCHITECTURES: dict[str, dict[str, Any]] = DENSE | MOE

# The same architectures with features that their default config leaves off, and some neighbours that work because they are traced.
VARIANTS: dict[str, dict[str, Any]] = {
    "llama_linear_rope": {"model_type": "llama", "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
    "llama_yarn": {"model_type": "llama", "rope_parameters": YARN_ROPE},
    "llama_dynamic_rope": {"model_type": "llama", "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
    "llama_biased": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "mistral_full": {"model_type": "mistral", "sliding_window": None},
    "qwen2_sliding": {"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 1, "layer_types": None},
    "gemma3_linear_rope": {
        "model_type": "gemma3_text", "query_pre_attn_scalar": 24, **SLIDING_THEN_FULL,
        "rope_parameters": {"sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                            "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0}},
    },
    "phi_qk_norm": {"model_type": "phi", "num_key_value_heads": 4, "qk_layernorm": True},
    "gpt2_scaled": {"model_type": "gpt2", "scale_attn_by_inverse_layer_idx": True},
    "gpt_neox_sequential": {"model_type": "gpt_neox", "use_parallel_residual": False},
    "opt_post_norm": {"model_type": "opt", "ffn_dim": 96, "word_embed_proj_dim": 32, "do_layer_norm_before": False},
    "falcon_multi_query": {"model_type": "falcon", "new_decoder_architecture": False, "multi_query": True, "alibi": False},
    "falcon_alibi": {"model_type": "falcon", "new_decoder_architecture": False, "multi_query": True, "alibi": True},
    "falcon_sequential": {"model_type": "falcon", "new_decoder_architecture": False, "multi_query": False, "alibi": True,
                          "parallel_attn": False, "bias": True},
    "mpt_clipped": {"model_type": "mpt", "d_model": 60, "n_heads": 6, "n_layers": 2, "max_seq_len": 128,
                    "attn_config": {"clip_qkv": 0.7, "alibi": True}},
    "bloom_post_residual": {"model_type": "bloom", "apply_residual_connection_post_layernorm": True, "hidden_size": 60,
                            "num_attention_heads": 6},
    "stablelm_parallel": {"model_type": "stablelm", "use_parallel_residual": True, "qk_layernorm": True},
    "cohere_qk_norm": {"model_type": "cohere", "use_qk_norm": True, "logit_scale": 1.0},
    "olmo_clipped": {"model_type": "olmo", "clip_qkv": 0.7},
    "qwen2_moe_mixed": {"model_type": "qwen2_moe", "shared_expert_intermediate_size": 48, "decoder_sparse_step": 2},
    "deepseek_v3_yarn": MLA | {"model_type": "deepseek_v3", "rope_parameters": YARN_ROPE},
    "deepseek_v3_dense_query": MLA | {"model_type": "deepseek_v3", "q_lora_rank": None},
    "deepseek_v2": MLA | {"topk_method": "group_limited_greedy"},
    "olmo3": SLIDING_THEN_FULL,
    "glm": {},
    "nemotron": {},
    "granitemoe": {},
    "glm4_moe": {"n_group": 2, "topk_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 1},
    "phimoe": {},
    "gptj": {"rotary_dim": 8},
    "codegen": {"rotary_dim": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "num_heads": 4, "window_size": 8},
    "gpt_bigcode": {},
    "llama4_text": {"intermediate_size_mlp": 96, "moe_layers": [1], "no_rope_layers": [1, 0], "attention_chunk_size": 8,
                    "layer_types": ["chunked_attention", "full_attention"], "num_experts_per_tok": 1, "attn_temperature_tuning": False},
}  # fmt: skip

# Must be refused: traced naively these give wrong numbers (the first three) or cannot be traced at all.
REFUSED: dict[str, dict[str, Any]] = {
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "llama4_temperature": {"model_type": "llama4_text", "intermediate_size_mlp": 96, "moe_layers": [1], "no_rope_layers": [1, 0],
                           "attention_chunk_size": 8, "layer_types": ["chunked_attention", "full_attention"],
                           "num_experts_per_tok": 1, "floor_scale": 4, "attn_scale": 0.5, "attn_temperature_tuning": True},
    "mamba": {"state_size": 8},
}  # fmt: skip


def tiny_config(name: str, **overrides: Any) -> PreTrainedConfig:
    """The tiny config of `name` (a key of ARCHITECTURES, VARIANTS or REFUSED, or any transformers model type)."""
    settings = {**ARCHITECTURES, **VARIANTS, **REFUSED}.get(name, {}) | overrides
    config_class = CONFIG_MAPPING[settings.get("model_type", name)]
    own_name: dict[str, str] = getattr(config_class, "attribute_map", None) or {}
    known = set(vars(config_class())) | {field.name for field in dataclasses.fields(config_class)}
    kwargs = {own_name.get(key, key): value for key, value in COMMON.items() if own_name.get(key, key) in known}
    kwargs |= {own_name.get(key, key): value for key, value in settings.items() if key != "model_type"}
    config = config_class(**{key: value for key, value in kwargs.items() if (key, value) != ("layer_types", None)})
    return config


def tiny_model(name: str, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A float32 eval-mode model of `tiny_config(name)` with seeded random weights, and attention as the reference computes it."""
    torch.manual_seed(seed)
    config = tiny_config(name, **overrides)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=reference_attention(config)).eval()
    randomise(model, seed + 1)
    return model


@functools.cache
def traced(name: str) -> TracedModel:
    """The tiny config of `name`, traced once per test run."""
    return trace_model(tiny_config(name))


def reference_attention(config: PreTrainedConfig) -> str:
    """Eager, except where transformers' eager code adds ALiBi twice (falcon); its sdpa code adds it once."""
    return "sdpa" if config.model_type == "falcon" and config.alibi else "eager"


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Overwrites every parameter, and the routers' correction biases, with values of the order that trained models have."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, param in model.named_parameters():
            noise = torch.randn(param.shape, generator=generator)
            if param.ndim >= 2:
                fan_in = param.shape[-1] if param.ndim == 2 else min(param.shape[-2:])
                param.copy_(noise * (1.0 if "embed" in name or "wte" in name else 1.5) * 0.6 / math.sqrt(fan_in))
            else:
                param.add_(noise * (0.1 if "norm" in name or "ln" in name else 0.3))
        for name, buffer in model.named_buffers():
            if name.endswith("correction_bias"):
                buffer.add_(torch.randn(buffer.shape, generator=generator) * 0.1)
