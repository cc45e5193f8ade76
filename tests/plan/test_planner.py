"""The planner: a plan run on shared memory computes what the graph means, and no live buffer is overwritten."""

from __future__ import annotations

import json

import numpy as np
import pytest

from friendli_compile.artifact.layouts import round_to_bf16
from friendli_compile.errors import UnsupportedModel
from friendli_compile.ir.attention import BatchDescription
from friendli_compile.ir.builder import GraphBuilder
from friendli_compile.ir.interpreter import interpret
from friendli_compile.plan.planner import make_plan

from .graphs import HIDDEN, VOCAB, decoder, random_params, random_shape_graph
from .numpy_executor import NumpyExecutor

LENGTHS = [5, 9, 3]


def step_inputs(with_logit_rows: bool) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    inputs = {
        "input_ids": rng.integers(0, VOCAB, sum(LENGTHS)).astype(np.int32),
        "position_ids": np.concatenate([np.arange(n) for n in LENGTHS]).astype(np.int32),
    }
    if with_logit_rows:
        inputs["logit_rows"] = np.array([4, 13, 16, 0], np.int32)
    return inputs


@pytest.mark.parametrize("tied", [True, False])
def test_a_decoders_plan_computes_what_its_graph_means(tied: bool) -> None:
    graph = decoder(tied=tied)
    params, inputs = random_params(graph), step_inputs(True)
    plan = make_plan(graph, storage_dtype="f32", max_context_len=64)
    (expected,) = interpret(graph, inputs, params, BatchDescription.of_lengths(LENGTHS))
    actual = NumpyExecutor(plan, params).forward(inputs, BatchDescription.of_lengths(LENGTHS))
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_bf16_storage_equals_float32_storage_of_rounded_parameters() -> None:
    graph = decoder()
    params, inputs = random_params(graph), step_inputs(True)
    plan = make_plan(graph, storage_dtype="bf16", max_context_len=64)
    rounded = {name: round_to_bf16(array.copy()) if name in plan.rounded_params else array for name, array in params.items()}
    (expected,) = interpret(graph, inputs, rounded, BatchDescription.of_lengths(LENGTHS))
    actual = NumpyExecutor(plan, params).forward(inputs, BatchDescription.of_lengths(LENGTHS))
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
    assert "layers.0.attn.q_proj.weight" in plan.rounded_params and "layers.0.norm1.weight" not in plan.rounded_params


@pytest.mark.parametrize("seed", range(40))
def test_random_chains_of_shape_ops_become_views_and_copies_that_mean_the_same(seed: int) -> None:
    graph = random_shape_graph(seed)
    params, inputs = random_params(graph, seed), {"input_ids": step_inputs(False)["input_ids"]}
    (expected,) = interpret(graph, inputs, params)
    actual = NumpyExecutor(make_plan(graph, storage_dtype="f32", max_context_len=8), params).forward(
        inputs, BatchDescription.of_lengths(LENGTHS)
    )
    np.testing.assert_array_equal(actual, expected, err_msg=f"seed {seed}")


def test_splitting_merged_projections_into_heads_copies_nothing() -> None:
    plan = make_plan(decoder(), storage_dtype="bf16", max_context_len=64)
    copies = [call for call in plan.calls if call.op == "tensor.copy"]
    assert [(copy.inputs[0].dtype, copy.outputs[0].dtype) for copy in copies if copy.inputs[0]] == [("i32", "f32")]


def test_parameter_only_subgraphs_are_weights_with_readable_names_and_expressions() -> None:
    plan = make_plan(decoder(), storage_dtype="bf16", max_context_len=64)
    weights = {spec.name: spec for spec in plan.weights}
    qkv = weights["layers.0.attn.q_proj+k_proj+v_proj.weight"]
    assert (qkv.layout, qkv.dtype, qkv.dims) == ("panel16", "bf16", (64, HIDDEN))
    assert str(qkv.expression).startswith(
        "concat(layers.0.attn.q_proj.weight, layers.0.attn.k_proj.weight, layers.0.attn.v_proj.weight; dim=0"
    )
    assert str(weights["layers.0.norm1.weight"].expression) == "add(layers.0.norm1.weight, 1.0)"
    assert weights["layers.0.norm1.weight"].dtype == weights["layers.0.attn.bias"].dtype == "f32"


def test_a_tied_embedding_is_stored_once_in_the_layout_of_the_output_projection() -> None:
    plan = make_plan(decoder(tied=True), storage_dtype="bf16", max_context_len=64)
    assert [(spec.name, spec.layout) for spec in plan.weights if "embed" in spec.name] == [("embed.weight", "panel16")]
    untied = make_plan(decoder(tied=False), storage_dtype="bf16", max_context_len=64)
    assert {spec.name: spec.layout for spec in untied.weights if spec.name in ("embed.weight", "lm_head.weight")} == {
        "embed.weight": "row_major",
        "lm_head.weight": "panel16",
    }


def test_a_matrix_computed_with_arithmetic_is_kept_in_float32() -> None:
    b = GraphBuilder()
    ids = b.input("input_ids", ("num_tokens",), "i32")
    x = b.add("nn.embedding", [b.param("table", (VOCAB, 8)), ids])
    weight = b.add("ew.mul", [b.param("w", (16, 8)), 0.3])
    plan = make_plan(b.finish([b.add("nn.linear", [x, weight])]), storage_dtype="bf16", max_context_len=8)
    assert {spec.name: spec.dtype for spec in plan.weights} == {"table": "bf16", "w": "f32"}
    assert plan.rounded_params == {"table"}


def test_kv_layers_are_numbered_without_gaps_and_carry_their_dims() -> None:
    plan = make_plan(decoder(num_layers=3), storage_dtype="f32", max_context_len=64)
    assert [call.attrs["kv_layer"] for call in plan.calls if call.op == "attn.paged"] == [0, 1, 2]
    assert {(k.num_kv_heads, k.k_head_dim, k.v_head_dim) for k in plan.kv_layers} == {(2, 8, 8)}


def test_the_arena_of_a_deep_model_is_no_larger_than_that_of_a_shallow_one() -> None:
    shallow, deep = (make_plan(decoder(num_layers=n), storage_dtype="f32", max_context_len=64).arenas for n in (3, 30))
    assert deep == shallow


def test_offsets_and_row_sizes_are_multiples_of_a_cache_line() -> None:
    plan = make_plan(random_shape_graph(3), storage_dtype="f32", max_context_len=64)
    assert all(buffer.offset % 64 == 0 and buffer.row_bytes % 64 == 0 for buffer in plan.buffers)


def test_the_same_graph_gives_the_same_plan_text() -> None:
    texts = {json.dumps(make_plan(decoder(), storage_dtype="bf16", max_context_len=64).to_json()) for _ in range(2)}
    assert len(texts) == 1


def test_calls_carry_their_layer_and_their_module() -> None:
    plan = make_plan(decoder(), storage_dtype="f32", max_context_len=64)
    assert [(call.layer, call.source) for call in plan.calls if call.op == "attn.paged"] == [(0, "layers.0.attn"), (1, "layers.1.attn")]
    assert plan.calls[-1].layer is None and plan.calls[-1].source == "lm_head"


def test_a_linear_layer_whose_weight_is_computed_from_the_input_is_refused() -> None:
    b = GraphBuilder()
    ids = b.input("input_ids", ("num_tokens",), "i32")
    x = b.add("nn.embedding", [b.param("table", (VOCAB, 8)), ids])
    weight = b.add("tensor.full", [], {"dims": (8, 8), "value": 1.0, "dtype": "f32"})
    computed = b.add("reduce.sum", [b.add("ew.mul", [b.add("tensor.reshape", [x], {"dims": ("num_tokens", 1, 8)}), weight])], {"dim": 0})
    with pytest.raises(UnsupportedModel, match="computed from the input"):
        make_plan(b.finish([b.add("nn.linear", [x, computed])]), storage_dtype="f32", max_context_len=8)


def test_two_attention_ops_on_one_cache_are_refused() -> None:
    b = GraphBuilder()
    ids = b.input("input_ids", ("num_tokens",), "i32")
    x = b.add("tensor.reshape", [b.add("nn.embedding", [b.param("table", (VOCAB, 8)), ids])], {"dims": ("num_tokens", 1, 8)})
    for _ in range(2):
        x = b.add("attn.paged", [x, x, x], {"scale": 1.0, "kv_layer": 0})
    flat = b.add("tensor.reshape", [x], {"dims": ("num_tokens", 8)})
    with pytest.raises(UnsupportedModel, match="KV cache of layer 0"):
        make_plan(b.finish([flat]), storage_dtype="f32", max_context_len=8)
