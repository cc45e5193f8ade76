"""What the tracer puts in place of attention, masks and experts: opaque ops behind transformers' own registries.

    attention interface ─▶ torch.ops.fmo.attention   (q, k, v, sinks, slopes; scale, window, chunk, softcap)
    mask interface      ─▶ MaskSpec                  a marker that rides where the mask tensor would be
    experts interface   ─▶ torch.ops.fmo.experts     (x, expert ids, weights, stacked expert parameters; act, layout)

The ops have shapes only, no kernels: the graph is exported, never run by torch. Whatever a model hands to its attention that is
not understood here (an extra argument, a mask tensor, a mask overlay) is refused, never dropped.
"""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from transformers import PreTrainedModel
from transformers.integrations import moe
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

from ..errors import UnsupportedModel
from .expert_acts import ExpertAct, classify_experts

IMPLEMENTATION = "fmo"  # the name under which transformers finds these functions

ATTENTION_SCHEMA = (
    "attention(Tensor q, Tensor k, Tensor v, Tensor? sinks, Tensor? slopes, float scale, int window, int chunk, float softcap) -> Tensor"
)
EXPERTS_SCHEMA = (
    "experts(Tensor x, Tensor expert_ids, Tensor expert_weights, Tensor gate_up, Tensor down, Tensor? gate_up_bias, Tensor? down_bias, "
    "str act, bool has_gate, bool interleaved, bool transposed, float alpha, float limit) -> Tensor"
)
# Arguments of the attention interface that carry nothing beyond the mask and the other operands.
IGNORED_ATTENTION_ARGUMENTS = frozenset({
    "sliding_window", "position_ids", "output_attentions", "output_hidden_states", "output_router_logits", "use_cache", "cache_position",
    "return_dict", "position_embeddings",
})  # fmt: skip
MASK_KINDS = {
    "create_causal_mask": "causal",
    "create_sliding_window_causal_mask": "sliding",
    "create_chunked_causal_mask": "chunked",
}
MASK_OVERLAYS = ("or_mask_function", "and_mask_function", "block_sequence_ids")


@dataclass(frozen=True)
class MaskSpec:
    """Which keys a query sees: all before it, those of a window, or those of its chunk (`size` tokens)."""

    kind: str  # causal, sliding, chunked
    size: int = 0
    ndim: ClassVar[int] = 0  # code that would edit a 4-d mask tensor leaves it alone

    def to(self, *args: Any) -> MaskSpec:
        """Some models convert the mask tensor before use."""
        return self


def capture(model: PreTrainedModel) -> None:
    """Makes every attention, mask and expert of `model` go through the ops above."""
    _define_ops()
    AttentionInterface.register(IMPLEMENTATION, _attention)
    AttentionMaskInterface.register(IMPLEMENTATION, _mask)
    moe.ExpertsInterface.register(IMPLEMENTATION, _experts)
    classify_experts(model)
    for config in _configs(model):
        config._attn_implementation_internal = IMPLEMENTATION
        config._experts_implementation_internal = IMPLEMENTATION


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, scale: float, window: int = 0, slopes: torch.Tensor | None = None
) -> torch.Tensor:
    """Causal attention of code that bypasses the interface.

    q, k, v `[1, heads, num_tokens, head_dim]` → `[1, num_tokens, heads, head_dim]`."""
    return torch.ops.fmo.attention(q, k, v, None, slopes, float(scale), int(window), 0, 0.0)


@functools.cache
def _define_ops() -> torch.library.Library:
    library = torch.library.Library("fmo", "FRAGMENT")
    library.define(ATTENTION_SCHEMA)
    library.define(EXPERTS_SCHEMA)
    torch.library.register_fake("fmo::attention", _attention_shape, lib=library)
    torch.library.register_fake("fmo::experts", lambda x, *rest: torch.empty_like(x), lib=library)
    return library


def _attention_shape(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *rest: Any) -> torch.Tensor:
    return q.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[-1])


def _configs(model: PreTrainedModel) -> list[Any]:
    """Every config object that some module consults."""
    found: dict[int, Any] = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        subs = [getattr(config, name, None) for name in getattr(config, "sub_configs", None) or ()]
        found.update({id(c): c for c in [config, *subs] if c is not None})
    return list(found.values())


def _mask(*args: Any, local_size: int | None = None, **kwargs: Any) -> MaskSpec:
    """Called by transformers' create_*_mask; which of them it was, and with which overlays, is read from its frame."""
    frame = sys._getframe(1)
    while frame is not None and not frame.f_code.co_name.startswith("create_"):
        frame = frame.f_back  # type: ignore[assignment]
    name = frame.f_code.co_name if frame is not None else "an unknown function"
    overlays = [key for key in MASK_OVERLAYS if frame is not None and frame.f_locals.get(key) is not None]
    if overlays or name not in MASK_KINDS:
        what = f"{name} with {', '.join(overlays)}" if overlays else name
        raise UnsupportedModel(
            f"the attention mask is made by {what}; known are causal, sliding-window and chunked masks", op="attention mask"
        )
    kind = MASK_KINDS[name]
    return MaskSpec(kind, 0 if kind == "causal" else int(local_size or 0))


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # [1, num_q_heads, num_tokens, head_dim]
    key: torch.Tensor,  # [1, num_kv_heads, num_tokens, head_dim]
    value: torch.Tensor,  # [1, num_kv_heads, num_tokens, v_head_dim]
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    s_aux: torch.Tensor | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The attention interface: returns `[1, num_tokens, num_q_heads, v_head_dim]`. Dropout is off: the model is in eval mode."""
    unknown = sorted(name for name, value in kwargs.items() if value is not None and name not in IGNORED_ATTENTION_ARGUMENTS)
    if unknown:
        raise UnsupportedModel(f"attention is called with {', '.join(unknown)}, which is not supported", op="attention")
    if is_causal is False or not isinstance(attention_mask, MaskSpec):
        found = "is_causal=False" if is_causal is False else f"a mask of type {type(attention_mask).__name__}"
        raise UnsupportedModel(f"attention is not plainly causal: it gets {found}", op="attention")
    window = attention_mask.size if attention_mask.kind == "sliding" else 0
    chunk = attention_mask.size if attention_mask.kind == "chunked" else 0
    scale = float(query.shape[-1] ** -0.5 if scaling is None else scaling)
    return torch.ops.fmo.attention(query, key, value, s_aux, None, scale, window, chunk, float(softcap or 0.0)), None


def _experts(self: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor) -> torch.Tensor:
    """The experts interface: `[num_tokens, hidden_size]` → the same. `self` is an experts module of transformers."""
    act: ExpertAct = self.fmo_act
    gate_up = self.gate_up_proj if self.has_gate else self.up_proj
    gate_up_bias = (self.gate_up_proj_bias if self.has_gate else self.up_proj_bias) if self.has_bias else None
    down_bias = self.down_proj_bias if self.has_bias else None
    return torch.ops.fmo.experts(
        hidden_states, top_k_index, top_k_weights, gate_up, self.down_proj, gate_up_bias, down_bias,
        act.name, self.has_gate, act.interleaved, self.is_transposed, act.alpha, act.limit,
    )  # fmt: skip
