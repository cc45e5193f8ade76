"""The text form is exact: what is printed parses back to the same graph."""

import numpy as np
import pytest

from friendli_compile.ir.builder import GraphBuilder
from friendli_compile.ir.graph import Graph, GraphError, Source
from friendli_compile.ir.interpreter import interpret
from friendli_compile.ir.text import parse_graph, print_graph
from friendli_compile.ir.verify import verify


def small_graph() -> Graph:
    """One of everything that the text form has to say."""
    b = GraphBuilder()
    ids = b.input("input_ids", ("num_tokens",), "i32")
    table = b.param("model.embed-tokens.weight", (7, 6))
    x = b.add("nn.embedding", [table, ids], source=Source("model.embed", "aten.embedding.default", 'a file, "odd".py:3'))
    x = b.add("ew.mul", [x, b.constant(np.linspace(0, 1, 6), "scale")])
    x = b.add("ew.add", [x, 0.1])
    x = b.add("nn.layer_norm", [x, None, b.constant(np.ones(6))], {"eps": 1e-5})
    values, indices = b.add("tensor.topk", [x], {"k": 3, "dim": -1})
    y = b.add("tensor.matmul", [b.add("tensor.gather", [x, indices], {"dim": 1}), b.constant(np.arange(60).reshape(3, 20) / 7)])
    y = b.add("ew.program", [y], {"code": [("mul", ("in", 0), ("const", 0.5)), ("tanh", ("reg", 0))]})
    y = b.add("ew.where", [b.add("ew.gt", [y, -0.0]), y, float("inf")])
    return b.finish([y, values])


def test_what_is_printed_parses_back_to_the_same_text_and_the_same_numbers() -> None:
    graph = small_graph()
    text = print_graph(graph, sources=True)
    parsed = parse_graph(text)
    verify(parsed, token_major=True)
    assert print_graph(parsed, sources=True) == text
    rng = np.random.default_rng(0)
    inputs = {"input_ids": rng.integers(0, 7, 5)}
    params = {"model.embed-tokens.weight": rng.standard_normal((7, 6)).astype(np.float32)}
    for a, b in zip(interpret(graph, inputs, params), interpret(parsed, inputs, params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_output_types_may_be_left_out() -> None:
    graph = parse_graph("input %x: f32[num_tokens, 4]\n# a comment\n%y = ew.mul(%x, 2.0)\nreturn %y")
    assert graph.outputs[0].dims == ("num_tokens", 4)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("%y = ew.mull(%x, %x)", "did you mean 'ew.mul'"),
        ("%y = ew.mul(%x, %z)", "%z is not defined"),
        ("%y: f32[3] = ew.mul(%x, %x)", "is written as"),
        ("%y = reduce.sum(%x) {dims=1}", "did you mean 'dim'"),
        ("%y = reduce.sum(%x)", "needs the attribute 'dim'"),
        ("%y = reduce.sum(%x) {dim=2}", "out of range"),
        ("%y ew.mul(%x, %x)", "not a line of a graph"),
    ],
)
def test_a_wrong_line_is_refused_with_its_number(line: str, message: str) -> None:
    with pytest.raises(GraphError) as error:
        parse_graph(f"input %x: f32[num_tokens, 4]\n{line}\nreturn %x")
    assert message in str(error.value)
    assert "line 2" in str(error.value)
