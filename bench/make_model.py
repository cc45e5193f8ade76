"""Writes a Hugging Face folder of a Llama or Mixtral with seeded random bf16 weights, for measuring speed.

    python bench/make_model.py 0.5b build/llama-0.5b [--tokenizer]

Speed does not depend on the values of the weights. Benchmarks send token ids; --tokenizer writes one all the same, because the converters
of other engines want it: that of the embedded model, filled up with reserved tokens.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

EMBEDDED_MODEL = Path(__file__).resolve().parents[1] / "examples" / "stdlib-coder" / "model"
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
    num_experts: int = 0  # 0: a Llama; else a Mixtral
    top_k: int = 2

    @property
    def name(self) -> str:
        return "mixtral" if self.num_experts else "llama"


SHAPES = {
    "tiny": Shape(4, 256, 768, 4, 2, 4096),
    "125m": Shape(12, 768, 2048, 12, 12, 32000),
    "0.5b": Shape(24, 1024, 4864, 16, 8, 32000),
    "1.1b": Shape(22, 2048, 5632, 32, 4, 32000),
    "8x50m": Shape(8, 1024, 2048, 16, 8, 32000, num_experts=8),
}


def config_of(shape: Shape) -> dict[str, object]:
    experts = {"num_local_experts": shape.num_experts, "num_experts_per_tok": shape.top_k} if shape.num_experts else {}
    return {
        "architectures": [f"{shape.name.title()}ForCausalLM"], "model_type": shape.name, "torch_dtype": "bfloat16",
        "num_hidden_layers": shape.num_layers,
        "hidden_size": shape.hidden_size, "intermediate_size": shape.intermediate_size, "num_attention_heads": shape.num_q_heads,
        "num_key_value_heads": shape.num_kv_heads, "head_dim": HEAD_DIM, "vocab_size": shape.vocab_size, "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
        "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, **experts,
    }  # fmt: skip


def mlp_of(shape: Shape) -> list[tuple[str, int, int]]:
    """(name, rows, columns) of a layer's matrices after attention."""
    wide, narrow = (shape.intermediate_size, shape.hidden_size), (shape.hidden_size, shape.intermediate_size)
    if not shape.num_experts:
        return [("mlp.gate_proj", *wide), ("mlp.up_proj", *wide), ("mlp.down_proj", *narrow)]
    experts = [f"block_sparse_moe.experts.{expert}" for expert in range(shape.num_experts)]
    matrices = [(f"{name}.{part}", *dims) for name in experts for part, dims in (("w1", wide), ("w3", wide), ("w2", narrow))]
    return [("block_sparse_moe.gate", shape.num_experts, shape.hidden_size), *matrices]


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
            *mlp_of(shape),
        ):
            weights[f"{prefix}{name}.weight"] = random(rows, columns)
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{prefix}{name}.weight"] = torch.ones(hidden_size, dtype=torch.bfloat16)
    return weights


def write_tokenizer(shape: Shape, output_dir: Path) -> None:
    """tokenizer.json of exactly `vocab_size` tokens, its settings and an empty generation_config.json."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(EMBEDDED_MODEL / "tokenizer.json"))
    num_missing = shape.vocab_size - tokenizer.get_vocab_size()
    tokenizer.add_special_tokens([f"<|reserved_{i}|>" for i in range(num_missing)])
    tokenizer.save(str(output_dir / "tokenizer.json"))
    (output_dir / "tokenizer_config.json").write_text((EMBEDDED_MODEL / "tokenizer_config.json").read_text())
    settings = {"do_sample": False, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    (output_dir / "generation_config.json").write_text(json.dumps(settings))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokenizer", action="store_true", help="write a tokenizer too")
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    (args.output_dir / "config.json").write_text(json.dumps(config_of(SHAPES[args.shape]), indent=2))
    save_file(weights_of(SHAPES[args.shape], args.seed), args.output_dir / "model.safetensors", metadata={"format": "pt"})
    if args.tokenizer:
        write_tokenizer(SHAPES[args.shape], args.output_dir)


if __name__ == "__main__":
    main()
