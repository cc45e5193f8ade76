"""What a compiled model exercises, read from its plan: the middle column of docs/architectures.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NORMS = {"rms_norm": "RMS norm", "layer_norm": "layer norm"}


def features_of(plan: Mapping[str, Any]) -> list[str]:
    """Short phrases, in a fixed order."""
    calls: list[Mapping[str, Any]] = plan["calls"]
    attention = [call for call in calls if call["op"] == "attn.paged"]
    return [*_norms(calls), *_positions(calls, attention), *_attention(attention), *_feed_forward(calls), *_weights(plan, calls)]


def _norms(calls: list[Mapping[str, Any]]) -> list[str]:
    ops = {call["op"].split(".")[1].removeprefix("add_") for call in calls if call["op"].endswith("_norm")}
    return [text for name, text in NORMS.items() if name in ops]


def _positions(calls: list[Mapping[str, Any]], attention: list[Mapping[str, Any]]) -> list[str]:
    found = []
    for call in calls:
        if call["op"] == "nn.rope":
            rotary_dim, head_dim = call["attrs"]["rotary_dim"], call["inputs"][0]["dims"][-1]
            found.append(f"RoPE {call['attrs']['style']}" + (f" on {rotary_dim} of {head_dim} dims" if rotary_dim < head_dim else ""))
    if found and len(found) < 2 * len(attention) and sum(1 for call in calls if call["op"] == "nn.rope") < 2 * len(attention):
        found.append("layers without RoPE")
    if any(call["inputs"][4] for call in attention):
        found.append("ALiBi")
    tables = [call for call in calls if call["op"] == "nn.embedding"]
    if len(tables) > 1:
        found.append("learned positions")
    return list(dict.fromkeys(found))


def _attention(attention: list[Mapping[str, Any]]) -> list[str]:
    found = []
    heads = {(call["inputs"][0]["dims"][1], call["inputs"][1]["dims"][1]) for call in attention}
    found += [f"GQA {q}:{kv}" for q, kv in sorted(heads) if q != kv]
    k_dim, v_dim = attention[0]["inputs"][1]["dims"][2], attention[0]["inputs"][2]["dims"][2]
    if k_dim != v_dim:
        found.append(f"head dims {k_dim}/{v_dim}")
    windows = sorted({call["attrs"]["window"] for call in attention})
    if windows != [0]:
        found.append("sliding window " + ("and full" if 0 in windows else "everywhere"))
    for attr, text in (("chunk", "chunked attention"), ("softcap", "soft-capped scores")):
        if any(call["attrs"][attr] for call in attention):
            found.append(text)
    if any(call["inputs"][3] for call in attention):
        found.append("sinks")
    return found


def _feed_forward(calls: list[Mapping[str, Any]]) -> list[str]:
    found = [f"gated {call['attrs']['act']}" for call in calls if call["op"] == "nn.act_mul"]
    for call in calls:
        if call["op"] == "moe.experts":
            num_experts, top_k = call["inputs"][3]["dims"][0], call["inputs"][1]["dims"][1]
            found.append(f"{num_experts} experts, top {top_k}, {call['attrs']['act']}")
    steps = {step[0] for call in calls if call["op"] == "ew.program" for step in call["attrs"]["code"]}
    found += [name for name in ("gelu", "gelu_tanh", "relu", "silu") if name in steps]
    return list(dict.fromkeys(found))


def _weights(plan: Mapping[str, Any], calls: list[Mapping[str, Any]]) -> list[str]:
    found = []
    if any(call["op"] == "nn.linear" and call["inputs"][2] for call in calls):
        found.append("biases")
    embedding = next(call for call in calls if call["op"] == "nn.embedding")
    if plan["weights"][embedding["inputs"][0]["id"]]["layout"] == "panel16":
        found.append("tied embeddings")
    return found
