"""PEFT itself, as the oracle: wraps a tiny model, gives the adapter random weights that matter, and saves it as PEFT does."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from transformers import PreTrainedModel

TARGETS: dict[str, list[str]] = {
    "llama": ["q_proj", "v_proj", "o_proj", "down_proj"],
    "qwen2": ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "mixtral": ["q_proj", "k_proj", "v_proj", "o_proj"],
}


def make_adapter(model: PreTrainedModel, folder: Path, seed: int = 0, **config: Any) -> peft.PeftModel:
    """Saves a random adapter for a copy of `model` in `folder`; returns the wrapped copy."""
    options = {"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM", **config}
    wrapped = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(**options)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, param in wrapped.named_parameters():
            if "lora_" in name:
                param.copy_(torch.randn(param.shape, generator=generator) / np.sqrt(param.shape[1]) * 0.5)
    wrapped.save_pretrained(folder, save_embedding_layers=False)
    return wrapped


def logits_of(model: torch.nn.Module, tokens: list[int]) -> np.ndarray:
    """[length, vocab_size] of one sequence."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].numpy()
