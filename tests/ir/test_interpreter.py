"""The interpreter: attention against torch, decoding with a history, weight expressions, and refusals."""

import numpy as np
import pytest
import torch

from friendli_compile.ir.attention import BatchDescription
from friendli_compile.ir.builder import GraphBuilder
from friendli_compile.ir.graph import Graph, GraphError
from friendli_compile.ir.interpreter import evaluate, interpret

HEADS, KV_HEADS, HEAD_DIM = 4, 2, 8


def attention_graph(**attrs: object) -> Graph:
    """q, k, v, and with has_sinks and has_slopes their vectors, straight into attn.paged."""
    b = GraphBuilder()
    q, k, v = (b.input(name, ("num_tokens", heads, HEAD_DIM), "f32") for name, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)))
    sinks = b.param("sinks", (HEADS,)) if attrs.get("has_sinks") else None
    slopes = b.param("slopes", (HEADS,)) if attrs.get("has_slopes") else None
    return b.finish([b.add("attn.paged", [q, k, v, sinks, slopes], {"scale": 0.3, "kv_layer": 0, **attrs})])


def random_qkv(num_tokens: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(num_tokens)
    return {
        name: rng.standard_normal((num_tokens, heads, HEAD_DIM)).astype(np.float32)
        for name, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS))
    }


PARAMS = {"sinks": np.array([0.5, -1, 2, 0], np.float32), "slopes": np.array([0.5, 0.25, 0.1, 0.0], np.float32)}


def torch_attention(qkv: dict[str, np.ndarray], attrs: dict) -> np.ndarray:
    """One sequence, written with a full mask."""
    q = torch.from_numpy(qkv["q"]).transpose(0, 1)
    k, v = (torch.from_numpy(qkv[name]).transpose(0, 1).repeat_interleave(HEADS // KV_HEADS, 0) for name in "kv")
    n = q.shape[1]
    scores = q @ k.transpose(1, 2) * 0.3
    if attrs.get("softcap"):
        scores = torch.tanh(scores / attrs["softcap"]) * attrs["softcap"]
    i, j = torch.arange(n)[:, None], torch.arange(n)[None, :]
    if attrs.get("has_slopes"):
        scores = scores + torch.from_numpy(PARAMS["slopes"])[:, None, None] * (j - i)
    hidden = j > i
    if attrs.get("window"):
        hidden = hidden | (j <= i - attrs["window"])
    if attrs.get("chunk"):
        hidden = hidden | (j // attrs["chunk"] != i // attrs["chunk"])
    scores = scores.masked_fill(hidden, float("-inf"))
    if attrs.get("has_sinks"):
        sinks = torch.from_numpy(PARAMS["sinks"])[:, None, None].expand(-1, n, 1)
        probabilities = torch.cat([scores, sinks], -1).softmax(-1)[..., :-1]
    else:
        probabilities = scores.softmax(-1)
    return (probabilities @ v).transpose(0, 1).numpy()


VARIANTS = [{}, {"window": 3}, {"chunk": 4}, {"softcap": 2.0}, {"has_sinks": True}, {"has_slopes": True}]


@pytest.mark.parametrize("attrs", VARIANTS, ids=[next(iter(v), "plain") for v in VARIANTS])
def test_attention_is_that_of_torch_for_each_sequence_of_the_batch(attrs: dict) -> None:
    qkv = random_qkv(17)
    (y,) = interpret(attention_graph(**attrs), qkv, PARAMS, BatchDescription.of_lengths([5, 1, 11]))
    for start, stop in ((0, 5), (5, 6), (6, 17)):
        expected = torch_attention({name: array[start:stop] for name, array in qkv.items()}, attrs)
        np.testing.assert_allclose(y[start:stop], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("attrs", VARIANTS, ids=[next(iter(v), "plain") for v in VARIANTS])
def test_steps_with_a_history_give_what_one_step_gives(attrs: dict) -> None:
    graph, qkv = attention_graph(**attrs), random_qkv(12)
    (whole,) = interpret(graph, qkv, PARAMS, BatchDescription.of_lengths([7, 5]))
    batch = BatchDescription.of_lengths([4, 1], keep_history=True)
    for step in ([0, 1, 2, 3, 7], [4, 8, 9, 10], [5, 11], [6]):
        batch.step([sum(row < 7 for row in step), sum(row >= 7 for row in step)])
        (part,) = interpret(graph, {name: array[step] for name, array in qkv.items()}, PARAMS, batch)
        np.testing.assert_allclose(part, whole[step], rtol=1e-5, atol=1e-6)


def test_a_weight_expression_is_evaluated_alone() -> None:
    b = GraphBuilder()
    x = b.input("x", ("num_tokens", 2), "f32")
    w = b.add("ew.add", [b.param("w", (2, 2)), 1.0])
    y = b.add("nn.linear", [x, b.add("tensor.concat", [w, w], {"dim": 0})])
    graph = b.finish([y])
    stacked = graph.nodes[-1].inputs[1]
    assert stacked is not None
    array = evaluate(graph, stacked, lambda name: np.eye(2, dtype=np.float32))
    np.testing.assert_array_equal(array, [[2, 1], [1, 2], [2, 1], [1, 2]])
    with pytest.raises(GraphError, match="depends on the input"):
        evaluate(graph, y, {"w": np.eye(2, dtype=np.float32)})


def test_wrong_inputs_and_params_are_refused_with_both_shapes() -> None:
    graph = attention_graph(has_sinks=True)
    qkv = random_qkv(3)
    with pytest.raises(GraphError, match="expected num_tokens=3"):
        interpret(graph, qkv | {"k": qkv["k"][:2]}, PARAMS, BatchDescription.of_lengths([3]))
    with pytest.raises(GraphError, match=r"'sinks' has shape \[3\], expected \[4\]"):
        interpret(graph, qkv, {"sinks": np.zeros(3, np.float32)}, BatchDescription.of_lengths([3]))
    with pytest.raises(GraphError, match="ends at row 4, the queries have 3 rows"):
        interpret(graph, qkv, PARAMS, BatchDescription.of_lengths([4]))
    with pytest.raises(GraphError, match="needs a batch description"):
        interpret(graph, qkv, PARAMS)
