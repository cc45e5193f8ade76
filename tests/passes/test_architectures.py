"""Real architectures through the pipeline: every pass keeps the logits, and nothing that has a fused op is left unfused.

Traced from tiny configs. The CHOSEN ones have between them every pattern; the others run with `pytest -m slow`, and all of them go
through the pipeline again in the end-to-end tests.
"""

import functools
from collections import Counter

import pytest
from frontend.architectures import ARCHITECTURES, VARIANTS, tiny_config

from friendli_compile.frontend.trace import trace_model
from friendli_compile.ir.graph import Graph
from friendli_compile.passes import run_pipeline

from .running import logits_of, random_params, relative_error

# fused ops per two-layer model
EXPECTED: dict[str, dict[str, int]] = {
    "llama": {"nn.rope": 4, "nn.act_mul": 2, "nn.add_rms_norm": 4, "nn.rms_norm": 1, "nn.linear": 9},
    "gemma3_text": {"nn.rope": 4, "nn.act_mul": 2, "nn.add_rms_norm": 4, "nn.rms_norm": 9, "nn.linear": 9},
    "gpt2": {"nn.rope": 0, "ew.gelu_tanh": 2, "nn.add_layer_norm": 5, "nn.linear": 9},
    "phi": {"nn.rope": 4, "ew.gelu_tanh": 2, "nn.add_layer_norm": 2, "nn.layer_norm": 1},
    "falcon": {"nn.rope": 4, "ew.gelu": 2, "nn.add_layer_norm": 2, "nn.layer_norm": 3, "tensor.expand": 0},
    "cohere": {"nn.rope": 4, "nn.act_mul": 2, "nn.add_layer_norm": 2, "nn.layer_norm": 1},
    "glm4": {"nn.rope": 4, "nn.act_mul": 2, "nn.add_rms_norm": 4, "nn.rms_norm": 5},
    "gpt_oss": {"nn.rope": 4, "moe.experts": 2, "nn.add_rms_norm": 4, "nn.rms_norm": 1},
    "deepseek_v3": {"nn.rope": 4, "moe.experts": 1, "nn.act_mul": 2, "nn.add_rms_norm": 4, "nn.rms_norm": 5},
    "deepseek_v2": {"nn.rope": 4, "moe.experts": 1, "nn.act_mul": 2, "nn.add_rms_norm": 4, "nn.rms_norm": 5},
}
CHOSEN = ("gemma3_text", "phi", "falcon", "cohere", "glm4", "gpt_oss", "deepseek_v3")
NAMES = [pytest.param(name, marks=() if name in CHOSEN else pytest.mark.slow) for name in {**ARCHITECTURES, **VARIANTS}]
PARTS_OF_FUSED_OPS = {"ew.rsqrt", "ew.sqrt", "ew.square", "ew.neg", "reduce.mean", "tensor.matmul", "ew.silu", "ew.tanh", "ew.erf"}


@functools.cache
def traced(name: str) -> Graph:
    return trace_model(tiny_config(name)).graph


def run_time_ops(graph: Graph) -> Counter[str]:
    """How often each op runs at serve time: weight expressions do not count."""
    fixed = {*graph.params, *graph.constants}
    counter: Counter[str] = Counter()
    for node in graph.nodes:
        if all(value in fixed for value in node.operands):
            fixed.update(node.outputs)
        else:
            counter[node.op] += 1
    return counter


def check_that_every_pass_keeps_the_logits(name: str) -> Graph:
    graph = traced(name)
    params = random_params(graph)
    reference = logits_of(graph, params)
    errors: dict[str, float] = {}
    compiled = run_pipeline(graph, lambda step, g: errors.update({step: relative_error(logits_of(g, params), reference)}))
    assert max(errors.values()) <= 1e-5, errors
    return compiled


@pytest.mark.parametrize("name", NAMES)
def test_every_pass_keeps_the_logits_and_every_known_pattern_is_fused(name: str) -> None:
    ops = run_time_ops(check_that_every_pass_keeps_the_logits(name))
    expected = EXPECTED.get(name, {})
    assert {op: ops[op] for op in expected} == expected
    assert not PARTS_OF_FUSED_OPS & set(ops), "a norm, a rotary embedding, an activation or a linear was left in parts"


def test_key_value_heads_that_the_model_repeats_are_cached_once() -> None:
    graph = run_pipeline(traced("falcon"))
    config = tiny_config("falcon")
    heads = {node.inputs[1].dims[1] for node in graph.nodes if node.op == "attn.paged" and node.inputs[1] is not None}
    assert heads == {config.num_kv_heads}
    assert config.num_kv_heads < config.num_attention_heads
