"""A small twin: the same config made narrow and short, with random weights, for models that do not fit in memory.

Kept: the dims of a head (so rotary tables and their scaling factors are the real ones), the number of query heads per KV head, expert
groups and top-k, every flag. Shrunk: hidden and intermediate sizes, ranks, heads, experts, vocabulary, attention windows (so that probes
outgrow them), and the number of layers, to the shortest prefix in which every kind of layer of the real model occurs.

Whether the twin shows every kind of layer is not assumed but compared, on the traced graphs; a config that cannot be shrunk in one way is
shrunk less. Nothing here knows an architecture: only the names that configs use for the same thing.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from ..artifact import writer
from ..errors import FmoError, SelfCheckFailed
from ..frontend.checkpoint import Checkpoint
from ..frontend.source import ModelSource, load_source
from ..frontend.trace import TracedModel, auto_class, trace_model
from ..ir.graph import Graph, Node
from ..passes import run_pipeline
from ..plan.model import Plan
from ..plan.planner import make_plan
from ..quantization import quantize_plan
from ..quantize.assign import Policy
from .reference import NO_CHECK_HINT, quiet

STORAGE_DTYPE = {"fp32": "f32", "bf16": "bf16"}
TWIN_VOCAB_SIZE = 512
TWIN_HIDDEN_SIZE = 256
TWIN_KV_HEADS = 2
TWIN_HEADS_PER_KV_HEAD = 8
TWIN_RANK = 32
TWIN_WINDOW = 24  # tokens: more than a KV block, less than the probes
MAX_TWIN_INTERMEDIATE_SIZE = 768
MIN_TWIN_INTERMEDIATE_SIZE = 32
MIN_LAYERS = 2

# What configs call the same thing.
INTERMEDIATE = re.compile(r"(intermediate_size.*|.*_intermediate_size|ffn_dim|ffn_hidden_size|n_inner|d_ff)$")
KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num")
WINDOWS = ("sliding_window", "window_size", "attention_chunk_size", "attention_window_size")
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
RANKS = ("q_lora_rank", "kv_lora_rank")
SPECIAL_TOKEN = re.compile(r"\w+_token_id$")

SHAPE_OPS = frozenset(f"tensor.{name}" for name in ("reshape", "permute", "expand", "slice", "concat", "cast"))
OPTIONAL_ATTRS = ("window", "chunk", "softcap", "has_sinks", "has_slopes", "has_gate", "has_bias", "act")
Kind = tuple[tuple[Any, ...], ...]


class Twin:
    """A twin on disk: its checkpoint in `source`, its artifact (plan and weights, not a manifest) in `artifact_dir`."""

    def __init__(self, source: ModelSource, traced: TracedModel, plan: Plan, artifact_dir: Path) -> None:
        self.source = source
        self.traced = traced
        self.plan = plan
        self.artifact_dir = artifact_dir


def make_twin(traced: TracedModel, dtype: str, folder: Path, policy: Policy | None = None, seed: int = 0) -> Twin:
    """Builds, saves and compiles a twin of the traced model below `folder`, through the same pipeline, quantized by the same policy as far
    as its sizes allow."""
    checkpoint_dir, artifact_dir = folder / "checkpoint", folder / "artifact"
    with quiet():
        twin = trace_twin(traced)
        model = (
            auto_class(traced.is_embedder).from_config(copy.deepcopy(twin.config), dtype=torch.float32, attn_implementation="eager").eval()
        )
        randomise(model, seed)
        model.save_pretrained(checkpoint_dir)
        del model
        source = load_source(str(checkpoint_dir))
    checkpoint = Checkpoint(source, twin)
    checkpoint.verify()
    artifact_dir.mkdir()
    graph = run_pipeline(twin.graph)
    storage_dtype = STORAGE_DTYPE[dtype]
    plan = make_plan(graph, storage_dtype=storage_dtype, max_context_len=twin.max_context_len, vocab_size=twin.vocab_size)
    plan = quantize_plan(graph, plan, (policy or Policy()).lenient(), storage_dtype, checkpoint.read).plan
    writer.write_plan(artifact_dir, plan)
    writer.write_weights(artifact_dir, plan, checkpoint.read)
    return Twin(source, twin, plan, artifact_dir)


def layer_kinds(graph: Graph) -> list[Kind]:
    """For each decoder layer what it does: its ops without shape ops, and which optional features are on."""
    layers: dict[int, list[tuple[Any, ...]]] = {}
    for node in graph.nodes:
        layer = next((int(part) for part in node.source.module.split(".") if part.isdigit()), None)
        if layer is not None and node.op not in SHAPE_OPS:
            layers.setdefault(layer, []).append(_features(node))
    return [tuple(layers[layer]) for layer in sorted(layers)]


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Seeded weights of the size that training gives them. Norms and biases too: at their initial 1 and 0 a missing one would not show."""
    generator = torch.Generator().manual_seed(seed)
    stored = set(model.state_dict())
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name not in stored or not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            if tensor.ndim >= 2:
                tensor.copy_(noise * 0.9 / math.sqrt(tensor.shape[-1]))
            else:
                tensor.add_(noise * 0.1)


def _features(node: Node) -> tuple[Any, ...]:
    attrs = [node.attrs.get(name) for name in OPTIONAL_ATTRS]
    return (node.op, *(value if isinstance(value, str) else bool(value) for value in attrs))


def trace_twin(traced: TracedModel) -> TracedModel:
    """The smallest shrunk model whose traced layers are of the same kinds as the real ones, with the same choice of rotary tables.

    Raises SelfCheckFailed where there is none."""
    kinds = layer_kinds(traced.graph)
    reasons = []
    for config_dict in _candidates(traced.config, _prefix_with_all(kinds)):
        try:
            config = type(traced.config).from_dict(config_dict)
            twin = trace_model(config, max_context_len=traced.max_context_len, is_embedder=traced.is_embedder)
        except (FmoError, ValueError, TypeError, RuntimeError, KeyError, IndexError) as error:
            reasons.append((str(error).splitlines() or [type(error).__name__])[0])
            continue
        missing = set(kinds) - set(layer_kinds(twin.graph))
        if not missing:
            return twin
        reasons.append(f"{len(missing)} of {len(set(kinds))} kinds of layers would not occur in it")
    what = f"no small twin of this {traced.architecture} can be made: {'; '.join(dict.fromkeys(reasons))}"
    hint = f"compile where the whole model fits in memory in float32; {NO_CHECK_HINT}"
    raise SelfCheckFailed(what, where="config.json", hint=hint)


def _prefix_with_all(kinds: list[Kind]) -> int:
    """How many layers from the first show every kind."""
    last_new = max(kinds.index(kind) for kind in set(kinds)) + 1
    return min(max(last_new, MIN_LAYERS), len(kinds))


def _candidates(config: PreTrainedConfig, num_layers: int) -> Iterator[dict[str, Any]]:
    """Shrunk configs, the smallest first, each once."""
    seen: list[dict[str, Any]] = []
    for shrunk in _shrunk_more_or_less(config, num_layers):
        if shrunk not in seen:
            seen.append(shrunk)
            yield copy.deepcopy(shrunk)


def _shrunk_more_or_less(config: PreTrainedConfig, num_layers: int) -> Iterator[dict[str, Any]]:
    own_name: Mapping[str, str] = type(config).attribute_map or {}
    for is_narrow in (True, False):
        for layers in (num_layers, int(config.num_hidden_layers)):
            shrunk = config.to_dict()
            _shrink_layers(shrunk, own_name, layers)
            _shrink_heads(shrunk, own_name, is_narrow)
            _shrink_experts(shrunk)
            _shrink_rest(shrunk)
            yield shrunk
    shrunk = config.to_dict()
    _shrink_layers(shrunk, own_name, num_layers)
    yield shrunk


def _shrink_layers(config: dict[str, Any], own_name: Mapping[str, str], num_layers: int) -> None:
    """The first `num_layers` layers; every list with an entry per layer is cut with them."""
    key = own_name.get("num_hidden_layers", "num_hidden_layers")
    old = config[key]
    config[key] = num_layers
    for name, value in config.items():
        if isinstance(value, list) and len(value) == old:
            config[name] = value[:num_layers]
    if "attention_types" in config and "attention_layers" in config:  # a run-length form of the same list
        config["attention_types"] = [[[kind], 1] for kind in config["attention_layers"]]


def _shrink_heads(config: dict[str, Any], own_name: Mapping[str, str], is_narrow: bool) -> None:
    """Fewer heads of the same dims and grouping. The hidden size follows them, or is small where the config names head dims itself."""
    heads_key, hidden_key = own_name.get("num_attention_heads", "num_attention_heads"), own_name.get("hidden_size", "hidden_size")
    kv_key = next((key for key in KV_HEADS if isinstance(config.get(key), int)), None)
    num_heads, hidden_size = int(config[heads_key]), int(config[hidden_key])
    num_kv_heads = int(config[kv_key]) if kv_key is not None else num_heads
    new_kv, new_heads = _fewer_heads(num_heads, num_kv_heads)
    new_hidden = new_heads * (hidden_size // num_heads)
    if is_narrow and isinstance(config.get("head_dim"), int):
        step = math.lcm(new_heads, 16)
        new_hidden = -(-min(TWIN_HIDDEN_SIZE, hidden_size) // step) * step
    config[heads_key] = new_heads
    if kv_key is not None:
        config[kv_key] = new_kv
    for name, value in list(config.items()):
        if isinstance(value, bool) or not isinstance(value, int):
            continue
        if name in (hidden_key, "word_embed_proj_dim", "embedding_size"):
            config[name] = max(new_hidden * value // hidden_size, 1)
        elif INTERMEDIATE.match(name):
            scaled = -(-value * new_hidden // hidden_size // 8) * 8
            config[name] = min(value, max(MIN_TWIN_INTERMEDIATE_SIZE, min(scaled, MAX_TWIN_INTERMEDIATE_SIZE)))


def _fewer_heads(num_heads: int, num_kv_heads: int) -> tuple[int, int]:
    """(KV heads, query heads). A number that is not a power of two stays one, because ALiBi slopes differ there."""
    if num_heads == num_kv_heads or num_heads % num_kv_heads:
        few = min(num_heads, 2 * TWIN_KV_HEADS if _is_power_of_two(num_heads) else 3 * TWIN_KV_HEADS)
        return (few, few) if num_heads == num_kv_heads else (num_kv_heads, num_heads)
    new_kv = min(num_kv_heads, TWIN_KV_HEADS)
    group = num_heads // num_kv_heads
    few = TWIN_HEADS_PER_KV_HEAD if _is_power_of_two(group) else TWIN_HEADS_PER_KV_HEAD - 1
    return new_kv, new_kv * min(group, few)


def _is_power_of_two(number: int) -> bool:
    return number & (number - 1) == 0


def _shrink_experts(config: dict[str, Any]) -> None:
    """Fewer experts, as many as groups and top-k allow to be chosen from."""
    top_k = next((int(config[key]) for key in ("num_experts_per_tok", "num_experts_per_token", "top_k", "moe_top_k") if config.get(key)), 1)
    num_groups = int(config.get("n_group") or 1)
    chosen_groups = int(config.get("topk_group") or num_groups)
    per_group = max(2, -(-2 * top_k // num_groups), -(-top_k // chosen_groups))
    for key in EXPERTS:
        value = config.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            config[key] = min(value, num_groups * per_group)


def _shrink_rest(config: dict[str, Any]) -> None:
    """Vocabulary (special tokens stay inside of it), ranks, windows."""
    limits = [*((key, TWIN_RANK) for key in RANKS), *((key, TWIN_WINDOW) for key in WINDOWS), ("vocab_size", TWIN_VOCAB_SIZE)]
    for key, limit in limits:
        if isinstance(config.get(key), int) and not isinstance(config[key], bool):
            config[key] = min(config[key], limit)
    last = config["vocab_size"] - 1
    for name, value in config.items():
        if SPECIAL_TOKEN.match(name):
            if isinstance(value, int):
                config[name] = min(value, last)
            elif isinstance(value, list):
                config[name] = [min(token, last) for token in value]
