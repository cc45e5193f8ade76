"""Helpers for passes: a pass walks the nodes once, in order, and says what each becomes.

    def rule(rw, node, inputs):                     inputs: the node's operands in the new graph
        if node.op == "ew.mul" and rw.scalar(inputs[1]) == 1.0:
            return inputs[0]                        the value that replaces node.output (a tuple for several outputs)
        return None                                 keep the node

    graph = rewrite(graph, rule)

Rules match upwards: `rw.producer(value)` is the already rewritten node behind an operand, so one walk reaches a fixpoint for bottom-up
patterns. What a rule replaced and nobody reads any more is removed at the end. Everything is linear in the size of the graph.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .builder import GraphBuilder, Operand
from .graph import Graph, Node, Source, Value

Inputs = tuple[Value | None, ...]
Replacement = Value | tuple[Value, ...] | None


class Rewriter:
    """The new graph while it is being built, with the questions that rules ask about it."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.builder = GraphBuilder()
        self.builder.reserve(value.name for value in graph.values())
        self.mapping: dict[Value, Value] = {}
        self.source = Source()  # of the node at hand: what `add` gives to new nodes
        for kind, values in (("input", graph.inputs), ("param", graph.params), ("constant", tuple(graph.constants))):
            for value in values:
                self.builder.adopt_source(value, kind, graph.constants.get(value))
                self.mapping[value] = value
        self._fixed = set(graph.params) | set(graph.constants)

    def add(self, op: str, inputs: Sequence[Operand], attrs: dict[str, Any] | None = None) -> Any:
        """A new node; its output, or a tuple of outputs."""
        outputs = self.builder.add(op, inputs, attrs, self.source)
        self._note_fixed(self.builder.nodes[-1])
        return outputs

    def keep(self, node: Node, inputs: Inputs) -> None:
        """The node as it is, on its operands in the new graph."""
        unchanged = all(a is b for a, b in zip(inputs, node.inputs, strict=True))
        new = node if unchanged else Node(node.op, inputs, node.outputs, node.attrs, node.source)
        self.builder.append(new)
        self._note_fixed(new)
        self.mapping.update({value: value for value in node.outputs})

    def _note_fixed(self, node: Node) -> None:
        if all(value in self._fixed for value in node.operands):
            self._fixed.update(node.outputs)

    # --- questions

    def producer(self, value: Value | None, *ops: str) -> Node | None:
        """The node that computes the value, if it is one of `ops` (any op where none is given)."""
        node = self.builder.producer.get(value) if value is not None else None
        return node if node is not None and (not ops or node.op in ops) else None

    def data(self, value: Value | None) -> np.ndarray | None:
        """The array of a constant."""
        return self.builder.constants.get(value) if value is not None else None

    def scalar(self, value: Value | None) -> float | None:
        """The number (an f32 as its shortest decimal) of a constant of one element, seen through reshapes and expansions."""
        array = self.data(self.through(value, "tensor.reshape", "tensor.expand"))
        if array is None or array.size != 1:
            return None
        number = array.reshape(())[()]
        return float(str(number)) if array.dtype == np.float32 else float(number)

    def through(self, value: Value | None, *ops: str) -> Value | None:
        """The first value upwards whose producer is none of `ops` (first operands are followed)."""
        while (node := self.producer(value, *ops)) is not None:
            value = node.inputs[0]
        return value

    def is_fixed(self, value: Value | None) -> bool:
        """Whether it depends on parameters and constants only (a weight expression)."""
        return value in self._fixed


Rule = Callable[[Rewriter, Node, Inputs], Replacement]


def rewrite(graph: Graph, rule: Rule) -> Graph:
    """Walks the nodes in order and applies the rule; dead nodes are removed."""
    return rewrite_with(Rewriter(graph), rule)


def rewrite_with(rw: Rewriter, rule: Rule) -> Graph:
    """The same, for a pass that prepared its Rewriter."""
    for node in rw.graph.nodes:
        if all(value in rw.mapping for value in node.outputs):
            continue  # a rule already replaced it together with an earlier node
        inputs = tuple(None if value is None else rw.mapping[value] for value in node.inputs)
        rw.source = node.source
        result = rule(rw, node, inputs)
        if result is None:
            rw.keep(node, inputs)
            continue
        outputs = result if isinstance(result, tuple) else (result,)
        rw.mapping.update(zip(node.outputs, outputs, strict=True))
    return remove_dead(rw.builder.finish([rw.mapping[value] for value in rw.graph.outputs]))


def remove_dead(graph: Graph) -> Graph:
    """Without the nodes, parameters and constants that no output depends on. Inputs stay: they are the interface."""
    live = set(graph.outputs)
    nodes = []
    for node in reversed(graph.nodes):
        if any(value in live for value in node.outputs):
            nodes.append(node)
            live.update(node.operands)
    params = tuple(value for value in graph.params if value in live)
    constants = {value: data for value, data in graph.constants.items() if value in live}
    return Graph(graph.inputs, params, constants, tuple(reversed(nodes)), graph.outputs)


def use_lists(graph: Graph) -> dict[Value, list[Node]]:
    """The nodes that read each value; graph outputs are not among them."""
    uses: dict[Value, list[Node]] = defaultdict(list)
    for node in graph.nodes:
        for value in dict.fromkeys(node.operands):
            uses[value].append(node)
    return uses


def sorted_by_dependence(graph: Graph) -> Graph:
    """Weight expressions first, then everything else; each part in its old order."""
    fixed = set(graph.params) | set(graph.constants)
    first: list[Node] = []
    rest: list[Node] = []
    for node in graph.nodes:
        is_fixed = all(value in fixed for value in node.operands)
        (first if is_fixed else rest).append(node)
        if is_fixed:
            fixed.update(node.outputs)
    return Graph(graph.inputs, graph.params, graph.constants, (*first, *rest), graph.outputs)


def renumbered(graph: Graph) -> Graph:
    """With computed values named v0, v1 … in order: what golden texts compare."""
    names = iter(range(sum(len(node.outputs) for node in graph.nodes)))
    mapping: dict[Value, Value] = {}
    nodes = []
    for node in graph.nodes:
        outputs = tuple(Value(f"v{next(names)}", value.dims, value.dtype) for value in node.outputs)
        mapping.update(zip(node.outputs, outputs, strict=True))
        inputs = tuple(None if value is None else mapping.get(value, value) for value in node.inputs)
        nodes.append(Node(node.op, inputs, outputs, node.attrs, node.source))
    return Graph(graph.inputs, graph.params, graph.constants, tuple(nodes), tuple(mapping.get(v, v) for v in graph.outputs))
