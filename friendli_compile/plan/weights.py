"""The weight table: which static values become packed weights, in which layout and dtype, under which name.

A static value is packed once per (layout, dtype) that its consumers ask for. Matrices of linear layers and experts, and embedding tables,
are stored as the storage dtype says, or in the quantized format that they are assigned by name; everything else is float32. A matrix that
is computed from parameters, not merely moved, stays float32: rounding would not commute with the arithmetic, and the self-check compares
with exactly rounded parameters.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..errors import InternalError, UnsupportedModel
from ..ir.graph import Graph, Node, Value
from ..quantize.schemes import Format
from .expression import Expression, expression_of, find_static_values, readable_name
from .model import View, WeightSpec
from .operands import MATRIX, TABLE, VECTOR
from .sites import Site, sites_of
from .views import contiguous_strides


class WeightTable:
    """Collects the weights that calls ask for."""

    def __init__(self, graph: Graph, storage_dtype: str, formats: Mapping[str, Format] | None = None) -> None:
        self._producers = graph.producers()
        self._constants = graph.constants
        self._storage_dtype = storage_dtype
        self._formats = dict(formats or {})
        self._static = find_static_values(graph)
        self._linear_weights = {node.inputs[1] for node in graph.nodes if node.op == "nn.linear"}
        self._specs: dict[tuple[Value, str, str], WeightSpec] = {}
        self._expressions: dict[Value, Expression] = {}
        self._names: set[str] = set()

    def __contains__(self, value: Value) -> bool:
        return value in self._static

    @property
    def specs(self) -> tuple[WeightSpec, ...]:
        return tuple(self._specs.values())

    @property
    def constants(self) -> Mapping[Value, np.ndarray]:
        return self._constants

    @property
    def rounded_params(self) -> frozenset[str]:
        """Parameters that end up in a bf16 weight: they are rounded before anything reads them."""
        return frozenset(param.name for spec in self.specs if spec.dtype == "bf16" for param in spec.expression.params)

    def scalar(self, value: Value) -> float | int | bool | None:
        """The number that a 0-d constant holds; None for anything else."""
        return self._constants[value].item() if value in self._constants and not value.dims else None

    def view(self, value: Value, requirement: str, node: Node) -> View:
        """A view of the packed form of `value` that `requirement` (operands.py) asks for."""
        if value not in self._static:
            why = f"the weight of '{node.op}' is computed from the input; only parameters and constants can be packed"
            raise UnsupportedModel(why, module=node.source.module, op=node.source.aten_op, source_line=node.source.location)
        expression = self._expression(value)
        layout = "panel16" if requirement == MATRIX or (requirement == TABLE and value in self._linear_weights) else "row_major"
        dtype = value.dtype
        if requirement in (MATRIX, TABLE) and dtype == "f32" and expression.is_exact:
            dtype = self._storage_dtype
        spec = self._specs.get((value, layout, dtype)) or self._add(value, layout, dtype, expression)
        strides = contiguous_strides(value.dims) if spec.layout == "row_major" else None
        return View("weight", spec.name, spec.dtype, value.dims, strides)

    def format_of(self, view: View) -> Format | None:
        """The format of the quantized weight behind a view; None for any other view."""
        return self._formats.get(str(view.id)) if view.space == "weight" else None

    def sites(self, value: Value, node: Node) -> tuple[Site, ...]:
        """Which rows of the product of the linear layer `node` with the static matrix `value` are which module's."""
        return sites_of(self._expression(value), node.source.module)

    def require_all_formats_used(self) -> None:
        """Raises InternalError when a format was given for a weight that the plan does not have: it would stay unquantized in silence."""
        if missing := sorted(set(self._formats) - self._names):
            raise InternalError(f"formats were given for weights that the plan does not have: {missing}")

    def row_major(self, value: Value, node: Node) -> View:
        """A plain view of `value`, as any kernel can read it."""
        return self.view(value, VECTOR, node)

    def _expression(self, value: Value) -> Expression:
        if value not in self._expressions:
            self._expressions[value] = expression_of(value, self._producers, self._constants)
        return self._expressions[value]

    def _add(self, value: Value, layout: str, dtype: str, expression: Expression) -> WeightSpec:
        base = readable_name(expression)
        name, number = base, 2
        while name in self._names:
            name, number = f"{base}~{number}", number + 1
        self._names.add(name)
        dims = tuple(int(dim) for dim in value.dims)
        format_ = self._formats.get(name)
        if format_ is not None:
            spec = WeightSpec(name, format_.dtype, "block8", dims, expression, format_)
        else:
            spec = WeightSpec(name, dtype, layout, dims, expression)
        self._specs[(value, layout, dtype)] = spec
        return spec
