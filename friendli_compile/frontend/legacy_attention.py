"""The few model classes of transformers whose attention (or experts) code bypasses its registries.

Each gets a replacement for the one method that computes attention, with the projections around it unchanged; ALiBi slopes are read
off the model's own bias function (bias at distance 1 minus bias at distance 0). A class that bypasses the registries and is not listed
here is refused while tracing, because its mask is a MaskSpec and not a tensor.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from ..errors import UnsupportedModel
from .expert_acts import classify_unary
from .interfaces import MaskSpec, attend


def replace_legacy_attention(model: PreTrainedModel) -> None:
    """Replaces the attention of the classes in REPLACEMENTS, module by module; other modules stay as they are."""
    for path, module in model.named_modules():
        entry = REPLACEMENTS.get(type(module).__name__)
        if entry is not None:
            prepare, method, function = entry
            prepare(path, module)
            setattr(module, method, types.MethodType(function, module))


def _code_of(module: torch.nn.Module) -> Any:
    """The transformers file that defines the module's class."""
    return sys.modules[type(module).__module__]


def _keep_slopes(module: torch.nn.Module, slopes: torch.Tensor) -> None:
    """ALiBi slopes `[num_heads]`, as a buffer so that the trace sees a constant."""
    module.register_buffer("fmo_slopes", slopes.to(torch.float32).contiguous(), persistent=False)


def _require_causal(mask: Any) -> None:
    if not (isinstance(mask, MaskSpec) and mask.kind == "causal"):
        raise UnsupportedModel(f"attention is not plainly causal: it gets {mask!r}", op="attention")


# --- ALiBi models


def _prepare_bloom(path: str, module: Any) -> None:
    if module.pretraining_tp > 1 and module.slow_but_exact:
        raise UnsupportedModel(
            "slow_but_exact with pretraining_tp > 1 drops a bias", module=path, hint="set slow_but_exact to false in config.json"
        )
    bias = _code_of(module).build_alibi_tensor(torch.ones(1, 2, dtype=torch.int64), module.num_heads, torch.float32)
    _keep_slopes(module, bias[:, 0, 1] - bias[:, 0, 0])


def _bloom_forward(self: Any, hidden_states: torch.Tensor, residual: torch.Tensor, *, attention_mask: Any, **rest: Any) -> Any:
    _require_causal(attention_mask)
    q, k, v = self._reshape(self.query_key_value(hidden_states))
    context = attend(q, k, v, scale=self.inv_norm_factor, slopes=self.fmo_slopes)
    return residual + self.dense(context.reshape(hidden_states.shape)), None


def _prepare_mpt(path: str, module: Any) -> None:
    bias = _code_of(module).build_mpt_alibi_tensor(module.n_heads, 2)  # [num_heads, 1, 2] for distances -1 and 0
    _keep_slopes(module, bias[:, 0, 1] - bias[:, 0, 0])


def _mpt_forward(self: Any, hidden_states: torch.Tensor, *, attention_mask: Any, **rest: Any) -> Any:
    _require_causal(attention_mask)
    qkv = self.Wqkv(hidden_states)
    if self.clip_qkv:
        qkv = qkv.clamp(min=-self.clip_qkv, max=self.clip_qkv)
    heads = (*hidden_states.shape[:2], self.n_heads, self.head_dim)
    q, k, v = (part.reshape(heads).transpose(1, 2) for part in qkv.chunk(3, dim=2))
    context = attend(q, k, v, scale=self.softmax_scale, slopes=self.fmo_slopes)
    return self.out_proj(context.reshape(hidden_states.shape)), None


def _prepare_falcon(path: str, module: Any) -> None:
    if module.config.alibi:
        bias = _code_of(module).build_alibi_tensor(torch.ones(1, 2, dtype=torch.int64), module.num_heads, torch.float32)
        _keep_slopes(module, (bias[:, 0, 1] - bias[:, 0, 0]) * module.inv_norm_factor)


def _falcon_forward(self: Any, hidden_states: torch.Tensor, *, attention_mask: Any, position_embeddings: Any = None, **rest: Any) -> Any:
    _require_causal(attention_mask)
    q, k, v = (heads.transpose(1, 2) for heads in self._split_heads(self.query_key_value(hidden_states)))
    slopes = None
    if self.config.alibi:
        slopes = self.fmo_slopes
    else:
        q, k = _code_of(self).apply_rotary_pos_emb(q, k, *position_embeddings)
    context = attend(q, k, v, scale=self.inv_norm_factor, slopes=slopes)
    return self.dense(context.reshape(hidden_states.shape)), None


# --- models whose `_attn(query, key, value, mask)` computes softmax attention itself


def _prepare_nothing(path: str, module: Any) -> None:
    pass


def _plain_attn(self: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any = None) -> Any:
    _require_causal(attention_mask)
    return attend(query, key, value, scale=1.0 / self.fmo_divisor).transpose(1, 2), None


def _prepare_scaled(path: str, module: Any) -> None:
    module.fmo_divisor = float(module.scale_attn)


def _neo_attn(self: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any = None) -> Any:
    _require_causal(attention_mask)
    window = self.config.window_size if self.attention_type == "local" else 0
    return attend(query, key, value, scale=1.0, window=window).transpose(1, 2), None


# --- experts that run densely over every expert


def _prepare_llama4(path: str, module: Any) -> None:
    module.fmo_act_name = classify_unary(f"{path}.experts", module.experts.act_fn)


def _llama4_moe(self: Any, hidden_states: torch.Tensor) -> Any:
    """Each chosen expert gets the input scaled by the sigmoid of its router score; the outputs are added unweighted."""
    x = hidden_states.reshape(-1, self.hidden_dim)
    router_logits = F.linear(x, self.router.weight)
    scores, expert_ids = torch.topk(router_logits, self.top_k, dim=1)
    result = self.shared_expert(x)
    for rank in range(self.top_k):
        scaled = x * torch.sigmoid(scores[:, rank : rank + 1])
        ids = expert_ids[:, rank : rank + 1]
        result = result + torch.ops.fmo.experts(
            scaled, ids, torch.ones_like(scores[:, :1]), self.experts.gate_up_proj, self.experts.down_proj, None, None,
            self.fmo_act_name, True, False, True, 0.0, 0.0,
        )  # fmt: skip
    return result, router_logits


# class name → (prepare the module, method to replace, replacement)
REPLACEMENTS: dict[str, tuple[Callable[[str, Any], None], str, Callable[..., Any]]] = {
    "BloomAttention": (_prepare_bloom, "forward", _bloom_forward),
    "MptAttention": (_prepare_mpt, "forward", _mpt_forward),
    "FalconAttention": (_prepare_falcon, "forward", _falcon_forward),
    "GPTJAttention": (_prepare_scaled, "_attn", _plain_attn),
    "CodeGenAttention": (_prepare_scaled, "_attn", _plain_attn),
    "GPTNeoSelfAttention": (_prepare_nothing, "_attn", _neo_attn),
    "Llama4TextMoe": (_prepare_llama4, "forward", _llama4_moe),
}
