"""Weight expressions: subgraphs whose only sources are parameters and constants, evaluated once at pack time (ADR 2).

`find_static_values(graph)` marks every such value; `expression_of(...)` cuts out the subgraph below one of them.
`Expression.evaluate(read)` runs it on the numpy references: each parameter is read when it is first needed and dropped after its last use.
The text form is what plan.json records: `concat(q_proj.weight, k_proj.weight; dim=0)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..ir.graph import Graph, Node, Value
from ..ir.interpreter import interpret

# These place elements without computing on them, so that rounding a parameter before or after them is the same.
MOVEMENT_OPS = frozenset(f"tensor.{name}" for name in ("reshape", "permute", "expand", "slice", "concat", "gather_rows"))


@dataclass(frozen=True, slots=True)
class Expression:
    """A graph without inputs and with one output. `is_exact`: nothing but movement of elements."""

    graph: Graph

    @property
    def root(self) -> Value:
        return self.graph.outputs[0]

    @property
    def params(self) -> tuple[Value, ...]:
        return self.graph.params

    @property
    def is_exact(self) -> bool:
        return all(node.op in MOVEMENT_OPS for node in self.graph.nodes)

    def evaluate(self, read: Callable[[str], np.ndarray]) -> np.ndarray:
        """The value of the root, in its dtype; `read(param_name)` gives the parameter's data."""
        return interpret(self.graph, {}, read)[0]

    def __str__(self) -> str:
        texts: dict[Value, str] = {}
        for node in self.graph.nodes:
            operands = ", ".join("none" if operand is None else self._text(operand, texts) for operand in node.inputs)
            attrs = ", ".join(f"{name}={_attr_text(value)}" for name, value in node.attrs.items())
            text = f"{node.op.partition('.')[2]}({operands}{'; ' if attrs else ''}{attrs})"
            for position, output in enumerate(node.outputs):
                texts[output] = text if len(node.outputs) == 1 else f"{text}[{position}]"
        return self._text(self.root, texts)

    def _text(self, value: Value, texts: Mapping[Value, str]) -> str:
        if value in texts:
            return texts[value]
        if value in self.graph.constants and not value.dims:
            return repr(self.graph.constants[value].item())
        return value.name


def find_static_values(graph: Graph) -> set[Value]:
    """Every value that depends on parameters and constants alone and whose dims are all numbers."""
    static: set[Value] = {*graph.params, *graph.constants}
    for node in graph.nodes:
        has_row_dim = any(isinstance(dim, str) for output in node.outputs for dim in output.dims)
        if not has_row_dim and all(operand in static for operand in node.operands):
            static.update(node.outputs)
    return static


def expression_of(root: Value, producers: Mapping[Value, Node], constants: Mapping[Value, np.ndarray]) -> Expression:
    """The subgraph below `root`; its parameters are in the order in which they are first read."""
    order: dict[Node, None] = {}
    done: set[Value] = set()
    sources: list[Value] = []
    stack: list[tuple[Value, bool]] = [(root, False)]
    while stack:
        value, operands_done = stack.pop()
        node = producers.get(value)
        if operands_done:
            assert node is not None
            order[node] = None
            continue
        if value in done:
            continue
        done.add(value)
        if node is None:
            sources.append(value)
            continue
        stack.append((value, True))
        stack.extend((operand, False) for operand in reversed(list(node.operands)))
    used = {value: constants[value] for value in sources if value in constants}
    params = tuple(value for value in sources if value not in constants)
    return Expression(Graph((), params, used, tuple(order), (root,)))


def readable_name(expression: Expression) -> str:
    """A name after the parameters: what they share, with the parts in which they differ joined by `+`."""
    names = [param.name for param in expression.params]
    if not names:
        return f"const.{expression.root.name}"
    if len(names) == 1:
        return names[0]
    parts = [name.split(".") for name in names]
    head = _shared(parts)
    tail = _shared([part[len(head) :][::-1] for part in parts])
    end = len(tail)
    middle = [".".join(part[len(head) : len(part) - end]) for part in parts]
    if len(middle) > 4:
        middle = [middle[0], "…", middle[-1]]
    return ".".join((*head, "+".join(text for text in middle if text), *reversed(tail)))


def _shared(parts: list[list[str]]) -> list[str]:
    """The longest common head of lists."""
    shared = []
    for items in zip(*parts, strict=False):
        if len(set(items)) > 1:
            break
        shared.append(items[0])
    return shared


def _attr_text(value: Any) -> str:
    return "[" + ", ".join(map(_attr_text, value)) + "]" if isinstance(value, Iterable) and not isinstance(value, str) else str(value)
