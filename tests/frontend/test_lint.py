"""Graphs that are right for one sequence and wrong for a packed batch are refused: rule by rule, and in real models."""

from collections.abc import Callable
from typing import Any

import pytest

from friendli_compile.errors import UnsupportedModel
from friendli_compile.frontend import trace
from friendli_compile.frontend.lint import check_token_local
from friendli_compile.ir.builder import GraphBuilder
from friendli_compile.ir.graph import Graph, Source, Value
from frontend.architectures import REFUSED, tiny_config

SOURCE = Source("model.layers.0.mixer", "aten.op.default", "modeling_x.py:12")
Build = Callable[[GraphBuilder, Value], Value]  # hidden [1, num_tokens, 8] → result


def graph_of(build: Build) -> Graph:
    builder = GraphBuilder()
    ids = builder.input("input_ids", (1, "num_tokens"), "i32")
    builder.input("position_ids", (1, "num_tokens"), "i32")
    hidden = builder.add("nn.embedding", [builder.param("table", (32, 8)), ids])
    return builder.finish([build(builder, hidden)])


def node(op: str, *operands: Any, **attrs: Any) -> Build:
    """A node on the hidden states and `operands` (dims of parameters)."""

    def build(b: GraphBuilder, x: Value) -> Value:
        params = [b.param(f"p{i}", dims) for i, dims in enumerate(operands)]
        result = b.add(op, [x, *params], attrs, SOURCE)
        return result[0] if isinstance(result, tuple) else result

    return build


def transposed_then(op: str, **attrs: Any) -> Build:
    """The op on the hidden states as [1, 8, num_tokens]."""
    return lambda b, x: b.add(op, [b.add("tensor.permute", [x], {"perm": (0, 2, 1)})], attrs, SOURCE)


def attention_over_heads(b: GraphBuilder, x: Value) -> Value:
    """Attends over the 8 channels of each token, with one head per token."""
    q = b.add("tensor.reshape", [x], {"dims": (1, "num_tokens", 8, 1)})
    q = b.add("tensor.permute", [q], {"perm": (0, 2, 1, 3)})
    wrong = b.add("tensor.full", [], {"dims": (1, 8, 4, 1), "value": 0.0, "dtype": "f32"})
    return b.add("attn.paged", [wrong, wrong, wrong], {"scale": 1.0, "kv_layer": 0}, SOURCE)


def scores(b: GraphBuilder, x: Value) -> Value:
    return b.add("tensor.matmul", [x, b.add("tensor.permute", [x], {"perm": (0, 2, 1)})], {}, SOURCE)


MIXING: dict[str, Build] = {
    "a convolution": lambda b, x: b.add(
        "nn.conv1d", [b.add("tensor.permute", [x], {"perm": (0, 2, 1)}), b.param("w", (8, 1, 3))], {"padding": 2, "groups": 8}, SOURCE
    ),
    "a sum over the tokens": node("reduce.sum", dim=1),
    "a maximum over the tokens": node("reduce.max", dim=-2, keepdim=True),
    "a cumulative sum": node("tensor.cumsum", dim=1),
    "a softmax over the tokens": transposed_then("nn.softmax", dim=-1),
    "a norm over the tokens": transposed_then("nn.rms_norm", eps=1e-6),
    "a range as long as the batch": lambda b, x: b.add("tensor.iota", [], {"dims": ("num_tokens",), "dim": 0, "dtype": "i32"}, SOURCE),
    "a score for every pair of tokens": scores,
    "a product that contracts the tokens": lambda b, x: b.add(
        "tensor.matmul", [b.add("tensor.permute", [x], {"perm": (0, 2, 1)}), x], {}, SOURCE
    ),
    "elements moved between tokens": lambda b, x: b.add("tensor.reshape", [x], {"dims": (1, 8, "num_tokens")}, SOURCE),
    "a table made of the tokens": lambda b, x: b.add(
        "nn.embedding", [b.add("tensor.reshape", [x], {"dims": ("num_tokens", 8)}), b.constant(0)], {}, SOURCE
    ),
    "attention over channels": attention_over_heads,
}
LOCAL: dict[str, Build] = {
    "a sum over the channels": node("reduce.sum", dim=-1),
    "a softmax over the channels": node("nn.softmax", dim=-1),
    "the largest channels": node("tensor.topk", k=2, dim=-1),
    "a linear layer": node("nn.linear", (4, 8)),
    "heads split off": node("tensor.reshape", dims=(1, "num_tokens", 2, 4)),
    "a range along the channels": lambda b, x: b.add("tensor.iota", [], {"dims": ("num_tokens", 8), "dim": 1, "dtype": "f32"}, SOURCE),
    "a wrong value that is not used": lambda b, x: (b.add("reduce.sum", [x], {"dim": 1}, SOURCE), x)[1],
}


@pytest.mark.parametrize("name", MIXING)
def test_an_op_that_reads_along_the_packed_tokens_is_refused_with_its_place(name: str) -> None:
    with pytest.raises(UnsupportedModel) as caught:
        check_token_local(graph_of(MIXING[name]))
    assert (caught.value.module, caught.value.op, caught.value.source_line) == (SOURCE.module, SOURCE.aten_op, SOURCE.location)


@pytest.mark.parametrize("name", LOCAL)
def test_an_op_that_treats_each_token_by_itself_passes(name: str) -> None:
    check_token_local(graph_of(LOCAL[name]))


def test_a_convolution_across_sequences_in_a_real_model_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match=r"nn\.conv1d") as caught:
        trace.trace_model(tiny_config("lfm2"))
    assert caught.value.module == "model.layers.0.conv" and "modeling_lfm2.py:" in caught.value.source_line


def test_a_range_used_as_positions_in_a_real_model_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="not the positions in their sequences") as caught:
        trace.trace_model(tiny_config("llama4_temperature"))
    assert caught.value.op == "aten.arange.default" and "modeling_llama4.py:" in caught.value.source_line


def test_the_longest_position_choosing_a_table_for_the_whole_batch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `freeze_rope_tables` prevents is caught when it is not there, too."""
    monkeypatch.setattr(trace, "freeze_rope_tables", lambda model, max_context_len: (None, []))
    monkeypatch.setattr("friendli_compile.frontend.importer._Importer._require_no_state", lambda self, target, call: None)
    with pytest.raises(UnsupportedModel, match=r"reduce\.max reads along the tokens") as caught:
        trace.trace_model(tiny_config("phi3"))
    assert "modeling_phi3.py:" in caught.value.source_line


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_models_that_would_give_wrong_numbers_are_refused_with_module_op_and_line(name: str) -> None:
    with pytest.raises(UnsupportedModel) as caught:
        trace.trace_model(tiny_config(name))
    assert caught.value.module and caught.value.op and caught.value.source_line
