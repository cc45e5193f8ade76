"""The verifier and the builder refuse what breaks a rule of the graph, naming the rule."""

from dataclasses import replace

import numpy as np
import pytest

from friendli_compile.ir.builder import GraphBuilder
from friendli_compile.ir.graph import Graph, GraphError, Node, Source, Value
from friendli_compile.ir.text import parse_graph
from friendli_compile.ir.verify import verify

GRAPH = parse_graph("""
    input %x: f32[num_tokens, 4]
    param %w: f32[3, 4]
    const %c: f32[3] = [1.0, 2.0, 3.0]
    %y = nn.linear(%x, %w, _)
    %z = ew.add(%y, %c)
    return %z
""")


def with_node(position: int, **changes: object) -> Graph:
    nodes = list(GRAPH.nodes)
    nodes[position] = replace(nodes[position], **changes)  # type: ignore[arg-type]
    return replace(GRAPH, nodes=tuple(nodes))


STRANGER = Value("stranger", ("num_tokens", 3), "f32")
BROKEN = {
    "read before it is defined": lambda: replace(GRAPH, nodes=GRAPH.nodes[::-1]),
    "are not in normal form": lambda: with_node(1, op="reduce.sum", inputs=GRAPH.nodes[1].inputs[:1], attrs={"dim": 1}),
    "instead of 3": lambda: with_node(0, inputs=GRAPH.nodes[0].inputs[:2]),
    "which nothing computes": lambda: replace(GRAPH, outputs=(STRANGER,)),
    "two values are named 'w'": lambda: replace(GRAPH, inputs=(*GRAPH.inputs, Value("w", (), "f32"))),
    "an unknown named dim": lambda: replace(GRAPH, inputs=(*GRAPH.inputs, Value("q", ("num_seqs",), "f32"))),
    "not the first": lambda: replace(GRAPH, inputs=(*GRAPH.inputs, Value("q", (2, "num_tokens"), "f32"))),
    "the data of constant": lambda: replace(GRAPH, constants={value: np.zeros(4, np.float32) for value in GRAPH.constants}),
}


def test_a_good_graph_passes() -> None:
    verify(GRAPH, token_major=True)


@pytest.mark.parametrize("rule", BROKEN)
def test_a_broken_rule_is_named(rule: str) -> None:
    with pytest.raises(GraphError) as error:
        verify(BROKEN[rule](), token_major=True)
    assert rule in str(error.value)


def test_output_types_that_the_op_does_not_give_are_refused() -> None:
    g = GRAPH
    add = g.nodes[1]
    wrong = Node(add.op, add.inputs, (Value("z2", ("num_tokens", 4), "f32"),), add.attrs, Source("model.head", "aten.add", "m.py:3"))
    with pytest.raises(GraphError, match=r"(?s)the op gives.*model\.head, aten\.add, m\.py:3"):
        verify(replace(g, nodes=(g.nodes[0], wrong), outputs=wrong.outputs))


def test_pointwise_operands_are_promoted_as_torch_does() -> None:
    b = GraphBuilder()
    i, f = b.input("i", ("num_tokens",), "i32"), b.input("f", ("num_tokens",), "f32")
    flag = b.add("ew.gt", [i, 3])
    dtypes = [
        b.add(op, operands).dtype for op, operands in (("ew.add", [i, f]), ("ew.add", [i, 2]), ("ew.mul", [i, 0.5]), ("ew.div", [i, 2]))
    ]
    assert dtypes == ["f32", "i32", "f32", "f32"]
    assert b.add("ew.add", [flag, flag]).dtype == "i32"
    assert b.add("ew.where", [flag, i, 1.0]).dtype == "f32"


def test_equal_numbers_are_one_constant_and_dims_are_counted_from_the_front() -> None:
    b = GraphBuilder()
    assert b.constant(1.5) is b.constant(np.float32(1.5))
    assert b.constant(1) is not b.constant(1.0)
    x = b.input("x", ("num_tokens", 4), "f32")
    assert b.finish([b.add("nn.softmax", [x], {"dim": -1})]).nodes[0].attrs["dim"] == 1


@pytest.mark.parametrize(
    ("op", "operands", "attrs", "message"),
    [
        ("nn.linear", ["x", "x"], {}, "the weight"),
        ("nn.linear", ["x"], {}, "takes (x, w, b?)"),
        ("tensor.reshape", ["x"], {"dims": ("num_tokens", 5)}, "numbers of elements differ"),
        ("tensor.slice", ["x"], {"dim": 0, "start": 0, "stop": 1}, "known only when the model runs"),
        ("tensor.slice", ["x"], {"dim": 1, "start": 0, "stop": 9}, "outside dim 1"),
        ("tensor.reshape", ["x"], {"dims": ("tokens",)}, "known are"),
        ("ew.add", ["x", "w"], {}, "do not broadcast"),
        ("tensor.gather", ["x", "x"], {"dim": 1}, "must be i32"),
        ("nn.act_mul", ["x", "x"], {"act": "mish"}, "known are"),
        ("ew.program", ["x"], {"code": [("add", ("in", 0), ("reg", 0))]}, "operand ('reg', 0) of step 0"),
        ("ew.program", ["x"], {"code": [("neg", ("in", 1))]}, "reads input 1 of 1"),
    ],
)
def test_operands_that_do_not_fit_are_refused_with_their_source(op: str, operands: list[str], attrs: dict, message: str) -> None:
    b = GraphBuilder()
    values = {"x": b.input("x", ("num_tokens", 4), "f32"), "w": b.param("w", (3, 4))}
    with pytest.raises(GraphError) as error:
        b.add(op, [values[name] for name in operands], attrs, Source("model.layers.3", "aten.op", "m.py:9"))
    assert message in str(error.value)
    assert "model.layers.3" in str(error.value)
