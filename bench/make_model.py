"""Writes a Hugging Face Llama folder with seeded random bf16 weights, for measuring speed.

    python bench/make_model.py 0.5b /tmp/llama-0.5b

Speed does not depend on the values of the weights. There is no tokenizer: the benchmarks send token ids.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

HEAD_DIM = 64
INIT_STD = 0.02


@dataclass(frozen=True)
class Shape:
    """Of a Llama; `num_params` in the name of a shape counts the linears without the embedding."""

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_q_heads: int
    num_kv_heads: int
    vocab_size: int


SHAPES = {
    "tiny": Shape(4, 256, 768, 4, 2, 4096),
    "125m": Shape(12, 768, 2048, 12, 12, 32000),
    "0.5b": Shape(24, 1024, 4864, 16, 8, 32000),
    "1.1b": Shape(22, 2048, 5632, 32, 4, 32000),
}


def config_of(shape: Shape) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16", "num_hidden_layers": shape.num_layers,
        "hidden_size": shape.hidden_size, "intermediate_size": shape.intermediate_size, "num_attention_heads": shape.num_q_heads,
        "num_key_value_heads": shape.num_kv_heads, "head_dim": HEAD_DIM, "vocab_size": shape.vocab_size, "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
        "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip


def weights_of(shape: Shape, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def random(*dims: int) -> torch.Tensor:
        return torch.empty(dims).normal_(0, INIT_STD, generator=generator).bfloat16()

    hidden_size = shape.hidden_size
    weights = {"model.embed_tokens.weight": random(shape.vocab_size, hidden_size), "lm_head.weight": random(shape.vocab_size, hidden_size)}
    weights["model.norm.weight"] = torch.ones(hidden_size, dtype=torch.bfloat16)
    for layer_idx in range(shape.num_layers):
        prefix = f"model.layers.{layer_idx}."
        for name, rows, columns in (
            ("self_attn.q_proj", shape.num_q_heads * HEAD_DIM, hidden_size),
            ("self_attn.k_proj", shape.num_kv_heads * HEAD_DIM, hidden_size),
            ("self_attn.v_proj", shape.num_kv_heads * HEAD_DIM, hidden_size),
            ("self_attn.o_proj", hidden_size, shape.num_q_heads * HEAD_DIM),
            ("mlp.gate_proj", shape.intermediate_size, hidden_size),
            ("mlp.up_proj", shape.intermediate_size, hidden_size),
            ("mlp.down_proj", hidden_size, shape.intermediate_size),
        ):
            weights[f"{prefix}{name}.weight"] = random(rows, columns)
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{prefix}{name}.weight"] = torch.ones(hidden_size, dtype=torch.bfloat16)
    return weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    (args.output_dir / "config.json").write_text(json.dumps(config_of(SHAPES[args.shape]), indent=2))
    save_file(weights_of(SHAPES[args.shape], args.seed), args.output_dir / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main()
