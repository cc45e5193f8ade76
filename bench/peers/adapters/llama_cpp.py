"""llama.cpp through the C API of llama-cpp-python; the GGUF file is written here from the checkpoint and quantized by llama.cpp."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from typing import Any

from workload import Emit, Workload

REQUIREMENTS = ("torch==2.13.0", "gguf==0.19.0", "safetensors==0.8.0", "numpy", "llama-cpp-python==0.3.36")
BUILD_ENVIRONMENT = {"CMAKE_ARGS": "-DGGML_NATIVE=ON -DLLAMA_CURL=OFF -DLLAVA_BUILD=OFF -DMTMD_BUILD=OFF -DCMAKE_BUILD_TYPE=Release"}
PRECISIONS = ("f16", "q8_0", "q4_0", "q4_k_m")
MAX_BATCH_TOKENS, MAX_STEP_TOKENS = 2048, 512

_TENSOR_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def prepare(model_dir: Path, precision: str, out: Path) -> None:
    import llama_cpp

    out.mkdir()
    plain = out / "f16.gguf"
    _write_gguf(model_dir, plain)
    if precision == "f16":
        return
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{precision.upper()}")
    target = out / f"{precision}.gguf"
    if llama_cpp.llama_model_quantize(str(plain).encode(), str(target).encode(), params) != 0:
        raise RuntimeError(f"llama.cpp cannot quantize to {precision}")
    plain.unlink()


def _write_gguf(model_dir: Path, path: Path) -> None:
    import gguf
    import torch
    from safetensors.torch import load_file

    config = json.loads((model_dir / "config.json").read_text())
    writer = gguf.GGUFWriter(str(path), "llama")
    _write_head(writer, config, json.loads((model_dir / "tokenizer.json").read_text()))
    for name, tensor in load_file(model_dir / "model.safetensors").items():
        new_name = _gguf_name(name)
        if new_name.endswith(("attn_q.weight", "attn_k.weight")):  # halves of a head → interleaved pairs
            num_rows, num_columns = tensor.shape
            halves = tensor.reshape(-1, 2, config["head_dim"] // 2, num_columns)
            tensor = halves.transpose(1, 2).reshape(num_rows, num_columns)
        dtype = torch.float32 if tensor.dim() == 1 else torch.float16
        writer.add_tensor(new_name, tensor.to(dtype).contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _gguf_name(name: str) -> str:
    fixed = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}
    if name in fixed:
        return fixed[name]
    _, _, layer_idx, rest = name.split(".", 3)
    return f"blk.{layer_idx}.{_TENSOR_NAMES[rest.removesuffix('.weight')]}.weight"


def _write_head(writer: Any, config: dict[str, Any], tokenizer: dict[str, Any]) -> None:
    import gguf

    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    for add in (writer.add_key_length, writer.add_value_length, writer.add_rope_dimension_count):
        add(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    special = {token["id"]: token["content"] for token in tokenizer["added_tokens"]}
    vocabulary = {token_id: text for text, token_id in tokenizer["model"]["vocab"].items()} | special
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([vocabulary[i] for i in range(config["vocab_size"])])
    kinds = gguf.TokenType
    writer.add_token_types([kinds.CONTROL if i in special else kinds.NORMAL for i in range(config["vocab_size"])])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_pad_token_id(config["pad_token_id"])


class _Engine:
    def __init__(self, path: Path, work: Workload) -> None:
        import llama_cpp

        self._lib = llama_cpp
        self._silent = llama_cpp.llama_log_callback(lambda *_: None)  # kept alive: C holds a pointer to it
        llama_cpp.llama_log_set(self._silent, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        (file,) = path.glob("*.gguf")
        model = llama_cpp.llama_model_load_from_file(str(file).encode(), llama_cpp.llama_model_default_params())
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = max(work.max_len, max(work.batches) * (work.batch_prompt + work.batch_new)) + 64
        params.n_batch, params.n_ubatch = MAX_BATCH_TOKENS, MAX_STEP_TOKENS
        params.n_seq_max = max(work.batches)
        params.n_threads = params.n_threads_batch = work.num_threads
        params.kv_unified = True
        self._context = llama_cpp.llama_init_from_model(model, params)
        self._batch = llama_cpp.llama_batch_init(MAX_BATCH_TOKENS, 0, 1)
        self._vocab_size = work.vocab_size

    def generate(self, prompts: list[list[int]], num_new: int, emit: Emit) -> None:
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), False)
        rows = [(token, i, seq, i == len(prompt) - 1) for seq, prompt in enumerate(prompts) for i, token in enumerate(prompt)]
        for step in range(num_new):
            tokens = self._decode(rows)
            for seq, token in enumerate(tokens):
                emit(seq, token)
            rows = [(token, len(prompts[seq]) + step, seq, True) for seq, token in enumerate(tokens)]

    def _decode(self, rows: list[tuple[int, int, int, bool]]) -> list[int]:
        """rows: (token, position, sequence, whether its logits are wanted) → the best token of each wanted row."""
        import numpy as np

        batch = self._batch
        batch.n_tokens = len(rows)
        for i, (token, position, seq, is_wanted) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position, 1, is_wanted
            batch.seq_id[i][0] = seq
        if self._lib.llama_decode(self._context, batch) != 0:
            raise RuntimeError("llama_decode failed")
        logits = (self._lib.llama_get_logits_ith(self._context, i) for i, row in enumerate(rows) if row[3])
        return [int(np.ctypeslib.as_array(row, (self._vocab_size,)).argmax()) for row in logits]


def load(path: Path, work: Workload) -> _Engine:
    return _Engine(path, work)
