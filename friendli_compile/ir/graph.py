"""The graph: immutable values, nodes and their source in the model.

    Graph ── inputs     values that a step brings (input_ids, position_ids, logit_rows)
          ├─ params     values read from the checkpoint, named by their path in the module
          ├─ constants  values with data (buffers; scalars are 0-d arrays)
          ├─ nodes      in an order in which every node comes after what it reads
          └─ outputs

Values and nodes compare by identity; names are unique in a graph. Nothing here knows what an op means: see `ops.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

Dim = int | str  # an int or one of NAMED_DIMS
Dims = tuple[Dim, ...]
Scalar = int | float | bool | str
Attr = Scalar | tuple  # tuples nest (`ew.program` code)

NAMED_DIMS = ("num_tokens", "num_logits")  # rows of a step, and those of them whose logits are wanted
DTYPES = ("f32", "i32", "bool")


class GraphError(ValueError):
    """A graph or an op is malformed. `what` happened, `where` in the model, and what to `try_`."""

    def __init__(self, what: str, where: str = "", try_: str = "") -> None:
        self.what, self.where, self.try_ = what, where, try_
        lines = [what] + ([f"where: {where}"] if where else []) + ([f"try: {try_}"] if try_ else [])
        super().__init__("\n".join(lines))


@dataclass(frozen=True, slots=True)
class Source:
    """Where a node comes from in the model's own code; empty strings where unknown."""

    module: str = ""  # path of the module, e.g. model.layers.0.self_attn
    aten_op: str = ""  # the torch op that was traced
    location: str = ""  # file:line of the model's code

    def __str__(self) -> str:
        return ", ".join(part for part in (self.module, self.aten_op, self.location) if part) or "unknown source"


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """One tensor: its dims, dtype and unique name."""

    name: str
    dims: Dims
    dtype: str

    def __str__(self) -> str:
        return f"%{self.name}: {self.dtype}[{', '.join(map(str, self.dims))}]"


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One op. `inputs` always has the op's full operand list; an absent optional operand is None."""

    op: str
    inputs: tuple[Value | None, ...]
    outputs: tuple[Value, ...]
    attrs: Mapping[str, Attr]
    source: Source = Source()

    @property
    def output(self) -> Value:
        """The only output."""
        (value,) = self.outputs
        return value

    @property
    def operands(self) -> Iterator[Value]:
        """The inputs that are present."""
        return (value for value in self.inputs if value is not None)


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """A whole graph. `constants` maps each constant value to its array."""

    inputs: tuple[Value, ...]
    params: tuple[Value, ...]
    constants: Mapping[Value, np.ndarray]
    nodes: tuple[Node, ...]
    outputs: tuple[Value, ...]

    def producers(self) -> dict[Value, Node]:
        """The node that computes each value (inputs, params and constants have none)."""
        return {output: node for node in self.nodes for output in node.outputs}

    def values(self) -> Iterator[Value]:
        """Every value, sources first."""
        yield from self.inputs
        yield from self.params
        yield from self.constants
        for node in self.nodes:
            yield from node.outputs

    def input(self, name: str) -> Value:
        """The graph input of that name."""
        for value in self.inputs:
            if value.name == name:
                return value
        raise GraphError(f"the graph has no input '{name}'; it has {[v.name for v in self.inputs]}")


def num_elements(dims: Dims) -> tuple[int, tuple[str, ...]]:
    """Product of the integer dims, and the sorted names."""
    product, names = 1, []
    for dim in dims:
        if isinstance(dim, int):
            product *= dim
        else:
            names.append(dim)
    return product, tuple(sorted(names))
