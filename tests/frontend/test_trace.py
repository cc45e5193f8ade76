"""Tracing: nothing is dropped silently, and nothing is loaded."""

import copy
import subprocess
import sys
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama import modeling_llama
from transformers.models.mixtral import modeling_mixtral

from friendli_compile.errors import UnsupportedModel
from friendli_compile.frontend.expert_acts import classify_experts
from friendli_compile.frontend.interfaces import MaskSpec, _attention
from friendli_compile.frontend.trace import build_skeleton, trace_model
from frontend.architectures import tiny_config, traced


def attrs_of(name: str, key: str) -> list[Any]:
    return [node.attrs[key] for node in traced(name).graph.nodes if node.op == "attn.paged"]


def test_windows_chunks_scales_and_caps_arrive_at_attention() -> None:
    assert attrs_of("gemma2", "window") == [8, 0] and attrs_of("gemma2", "softcap") == [50.0, 50.0]
    assert attrs_of("gemma2", "scale") == pytest.approx([24**-0.5] * 2)
    assert attrs_of("llama4_text", "chunk") == [8, 0]
    assert attrs_of("gpt_oss", "has_sinks") == [True, True] and attrs_of("bloom", "has_slopes") == [True, True]
    assert attrs_of("llama", "kv_layer") == [0, 1]


def test_every_node_knows_its_place_in_the_model() -> None:
    for node in traced("llama").graph.nodes:
        assert node.source.aten_op and "transformers/" in node.source.location, node
    linear = next(node for node in traced("llama").graph.nodes if node.op == "nn.linear")
    assert linear.source.module == "model.layers.0.self_attn.q_proj"


def test_stacked_experts_come_with_gate_rows_first() -> None:
    graph = traced("gpt_oss").graph
    node = next(node for node in graph.nodes if node.op == "moe.experts")
    assert node.attrs["act"] == "swiglu_clamped" and (node.attrs["alpha"], node.attrs["limit"]) == (1.702, 7.0)
    assert node.inputs[3].dims == (8, 192, 64) and node.inputs[4].dims == (8, 64, 96)


@pytest.mark.parametrize("arguments", [{"position_bias": torch.zeros(1)}, {"indices": torch.zeros(1)}, {"is_causal": False}])
def test_an_attention_argument_that_is_not_understood_is_refused_not_dropped(arguments: dict[str, Any]) -> None:
    q = torch.zeros(1, 2, 4, 8)
    with pytest.raises(UnsupportedModel, match=next(iter(arguments))):
        _attention(torch.nn.Identity(), q, q, q, MaskSpec("causal"), **arguments)


@pytest.mark.parametrize("mask", [None, torch.zeros(1, 1, 4, 4)])
def test_attention_without_a_causal_mask_is_refused(mask: Any) -> None:
    q = torch.zeros(1, 2, 4, 8)
    with pytest.raises(UnsupportedModel, match="not plainly causal"):
        _attention(torch.nn.Identity(), q, q, q, mask)


def test_a_mask_overlay_is_refused_with_module_and_line(monkeypatch: pytest.MonkeyPatch) -> None:
    original = modeling_llama.create_causal_mask
    overlaid = lambda **kwargs: original(**kwargs, or_mask_function=lambda *idx: True)  # noqa: E731
    monkeypatch.setattr(modeling_llama, "create_causal_mask", overlaid)
    with pytest.raises(UnsupportedModel, match="or_mask_function") as caught:
        trace_model(tiny_config("llama"))
    assert caught.value.module == "model" and "modeling_llama.py:" in caught.value.source_line


def test_an_expert_activation_that_is_not_known_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modeling_mixtral.MixtralExperts, "_apply_gate", lambda self, x: x[..., :96].exp() * x[..., 96:], raising=False)
    with pytest.raises(UnsupportedModel, match="activation") as caught:
        classify_experts(build_skeleton(tiny_config("mixtral")))
    assert caught.value.module == "model.layers.0.mlp.experts"


def test_a_bidirectional_model_is_refused() -> None:
    config = tiny_config("llama")
    config.is_causal = False
    with pytest.raises(UnsupportedModel, match="bidirectional"):
        trace_model(config)


def test_a_quantized_checkpoint_is_refused_by_its_method() -> None:
    config = copy.deepcopy(tiny_config("llama"))
    config.quantization_config = {"quant_method": "gptq", "bits": 4}
    with pytest.raises(UnsupportedModel, match="already quantized with gptq"):
        trace_model(config)


def test_a_context_beyond_a_learned_position_table_is_refused_and_beyond_rope_is_noted() -> None:
    with pytest.raises(UnsupportedModel, match="the table of positions ends at 512"):
        trace_model(tiny_config("gpt2"), max_context_len=513)
    assert "beyond the 512" in trace_model(tiny_config("llama"), max_context_len=513).notes[0]
    with pytest.raises(UnsupportedModel, match="another table for every length"):
        trace_model(tiny_config("llama_dynamic_rope"), max_context_len=513)


def test_a_model_larger_than_memory_is_built_without_memory() -> None:
    config = LlamaConfig(hidden_size=16384, intermediate_size=65536, num_hidden_layers=100, num_attention_heads=128, vocab_size=200_000)
    skeleton = build_skeleton(config)
    assert sum(p.numel() for p in skeleton.parameters()) > 400e9
    assert skeleton.model.rotary_emb.inv_freq[1].item() == pytest.approx(10000 ** (-2 / 128))


LLAMA_70B = """
import resource
from transformers import LlamaConfig
from friendli_compile.frontend.trace import trace_model
config = LlamaConfig(hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8,
                     vocab_size=128256, max_position_embeddings=131072)
traced = trace_model(config)
print(traced.num_params, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.slow
def test_a_70_billion_parameter_config_is_traced_in_less_than_4_gib() -> None:
    output = subprocess.run([sys.executable, "-c", LLAMA_70B], check=True, capture_output=True, text=True).stdout
    num_params, peak_bytes = map(int, output.split())
    assert num_params > 70e9 and peak_bytes < 4 << 30
