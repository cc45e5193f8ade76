"""Hugging Face transformers on torch: eager mode with a dynamic cache."""

from __future__ import annotations

from pathlib import Path

from workload import Emit, Workload

REQUIREMENTS = ("torch==2.13.0", "transformers==5.23.0", "accelerate")
PRECISIONS = ("fp32", "bf16")


def prepare(model_dir: Path, precision: str, out: Path) -> None:
    out.mkdir()
    for path in model_dir.iterdir():
        (out / path.name).symlink_to(path.resolve())
    (out / "precision").write_text(precision)


class _Engine:
    def __init__(self, path: Path, work: Workload) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(work.num_threads)
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[(path / "precision").read_text()]
        self._model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="sdpa").eval()

    def generate(self, prompts: list[list[int]], num_new: int, emit: Emit) -> None:
        import torch
        from transformers import DynamicCache

        cache = DynamicCache(config=self._model.config)
        token_ids = torch.tensor(prompts)
        with torch.inference_mode():
            for _ in range(num_new):
                logits = self._model(input_ids=token_ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
                token_ids = logits.argmax(-1, keepdim=True)
                for seq, token in enumerate(token_ids[:, 0].tolist()):
                    emit(seq, token)


def load(path: Path, work: Workload) -> _Engine:
    return _Engine(path, work)
