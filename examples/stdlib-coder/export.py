"""Writes a trained model as a Hugging Face folder: config.json, model.safetensors (bfloat16), generation_config.json, tokenizer files.

Does not decide anything: the names of the parameters are already those of LlamaForCausalLM; the tied output projection is not stored.
"""

import json
from pathlib import Path

import torch
from model import Llama
from safetensors.torch import save_file
from tokenizer import BOS, EOS, IM_END, PAD, save_tokenizer
from tokenizers import Tokenizer


def export_model(model: Llama, tokenizer: Tokenizer, folder: Path) -> None:
    """Replaces the files of `folder`; others in it stay."""
    folder.mkdir(parents=True, exist_ok=True)
    bos_id, eos_id, pad_id, im_end_id = (tokenizer.token_to_id(token) for token in (BOS, EOS, PAD, IM_END))
    write_json(folder / "config.json", model.config.to_hf(bos_id, eos_id, pad_id))
    # Greedy decoding of a small model runs into loops: sample by default, as far as the probable tokens go.
    generation = {"bos_token_id": bos_id, "eos_token_id": [eos_id, im_end_id], "pad_token_id": pad_id}
    write_json(folder / "generation_config.json", {**generation, "do_sample": True, "temperature": 0.6, "top_p": 0.95})
    weights = {name: weight.detach().to("cpu", torch.bfloat16).contiguous() for name, weight in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    save_tokenizer(tokenizer, folder, model.config.max_context_len)


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of an exported folder."""
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def write_json(path: Path, value: dict[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
