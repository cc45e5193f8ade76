"""Builds a graph node by node, with shape inference: the importer and the passes write graphs only through this.

    b = GraphBuilder()
    x = b.input("input_ids", (1, "num_tokens"), "i32")
    h = b.add("nn.embedding", [b.param("embed.weight", (1000, 64)), x])
    g = b.finish([h])

Types are not converted behind the caller's back, with one exception that torch code relies on: pointwise operands of mixed
dtypes are promoted (bool → i32 → f32) by `tensor.cast`, and Python numbers become 0-d constants of the dtype that fits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from .graph import Dims, Graph, GraphError, Node, Source, Value
from .ops import DTYPES, POINTWISE, PROMOTES_TO_FLOAT, Op, lookup, normalise_attrs
from .reference import NUMPY_DTYPES

Operand = Value | float | int | bool | np.ndarray | None
_NO_SOURCE = Source()
_RANK = {"bool": 0, "i32": 1, "f32": 2}


class GraphBuilder:
    """Collects the parts of a graph; `finish` makes the immutable one."""

    def __init__(self) -> None:
        self.inputs: list[Value] = []
        self.params: list[Value] = []
        self.constants: dict[Value, np.ndarray] = {}
        self.nodes: list[Node] = []
        self.producer: dict[Value, Node] = {}
        self._names: set[str] = set()
        self._reserved: set[str] = set()
        self._next_id = 0
        self._scalars: dict[tuple[str, bytes], Value] = {}

    # --- sources of values

    def input(self, name: str, dims: Dims, dtype: str) -> Value:
        """A value that every step brings."""
        self.inputs.append(self._named(name, dims, dtype))
        return self.inputs[-1]

    def param(self, name: str, dims: Dims, dtype: str = "f32") -> Value:
        """A value read from the checkpoint; `name` is its path in the module."""
        self.params.append(self._named(name, dims, dtype))
        return self.params[-1]

    def constant(self, data: np.ndarray | float | int | bool, name: str = "") -> Value:
        """A value with data. A number is a 0-d constant, whose name is its literal: equal numbers share one."""
        array = _as_array(data)
        dtype = next(d for d, numpy_dtype in NUMPY_DTYPES.items() if array.dtype == numpy_dtype)
        key = (dtype, array.tobytes())
        if array.ndim == 0 and key in self._scalars:
            return self._scalars[key]
        value = self._named(literal(array) if array.ndim == 0 else name or self._fresh("c"), array.shape, dtype)
        self.constants[value] = array
        if array.ndim == 0:
            self._scalars[key] = value
        return value

    def adopt_source(self, value: Value, kind: str, data: np.ndarray | None = None) -> None:
        """Takes over a source of another graph as it is; `kind` is input, param or constant."""
        self._claim(value.name)
        if kind == "constant":
            assert data is not None
            self.constants[value] = data
            if not value.dims:
                self._scalars.setdefault((value.dtype, data.tobytes()), value)
        else:
            (self.inputs if kind == "input" else self.params).append(value)

    # --- nodes

    def add(self, op: str, inputs: Sequence[Operand], attrs: dict[str, Any] | None = None, source: Source = _NO_SOURCE) -> Any:
        """Appends a node; returns its output, or a tuple where the op has several (topk, add_rms_norm …).

        Raises GraphError, with the source, when operands or attributes do not fit the op."""
        try:
            row = lookup(op)
            operands = self._operands(row, inputs)
            fixed = normalise_attrs(row, attrs or {})
            if op in POINTWISE:
                operands = self._promoted(op, operands, source)
            types = row.shape_rule(operands, fixed)
            if fixed.get("dim", 0) < 0:  # type: ignore[operator]
                fixed["dim"] = _rank(operands, fixed) + fixed["dim"]  # type: ignore[operator]
        except GraphError as error:
            what = error.what if op in error.what else f"{op}: {error.what}"
            raise GraphError(what, error.where or str(source), error.try_) from None
        outputs = tuple(Value(self._fresh("v"), dims, dtype) for dims, dtype in types)
        self.append(Node(op, operands, outputs, fixed, source))
        return outputs[0] if len(outputs) == 1 else outputs

    def append(self, node: Node) -> None:
        """Appends a ready node (of another graph); its output names must be free."""
        for value in node.outputs:
            self._claim(value.name)
            self.producer[value] = node
        self.nodes.append(node)

    def finish(self, outputs: Sequence[Value]) -> Graph:
        """The graph. Nothing is removed: dead nodes are a pass's business."""
        return Graph(tuple(self.inputs), tuple(self.params), dict(self.constants), tuple(self.nodes), tuple(outputs))

    def rename_last(self, names: Sequence[str]) -> tuple[Value, ...]:
        """The outputs of the last node, under other names; nothing may read them yet."""
        node = self.nodes.pop()
        for value in node.outputs:
            self._names.discard(value.name)
            del self.producer[value]
        outputs = tuple(Value(name, value.dims, value.dtype) for name, value in zip(names, node.outputs, strict=True))
        self.append(Node(node.op, node.inputs, outputs, node.attrs, node.source))
        return outputs

    # --- helpers

    def reserve(self, names: Iterable[str]) -> None:
        """Names that new values must not take (those of a graph that is being rewritten)."""
        self._reserved.update(names)

    def _operands(self, row: Op, inputs: Sequence[Operand]) -> tuple[Value | None, ...]:
        """Constants made, absent optional ones padded with None."""
        values = tuple(x if isinstance(x, Value) or x is None else self.constant(x) for x in inputs)
        if row.is_variadic:
            count_fits = len(values) >= len(row.operands)
        else:
            count_fits = row.num_required <= len(values) <= len(row.operands)
            values = values + (None,) * (len(row.operands) - len(values))
        missing = [name for name, value in zip(row.operands, values, strict=False) if value is None and not name.endswith("?")]
        if not count_fits or missing or (row.is_variadic and None in values):
            raise GraphError(f"{row.name} takes ({', '.join(row.operands)}), got {[str(v) for v in inputs]}")
        return values

    def _promoted(self, op: str, operands: tuple[Value | None, ...], source: Source) -> tuple[Value | None, ...]:
        """Pointwise operands in one dtype, as torch promotes them."""
        first = 1 if op == "ew.where" else 0
        values = [v for v in operands[first:] if v is not None]
        target = max((v.dtype for v in values), key=_RANK.__getitem__)
        if op in PROMOTES_TO_FLOAT:
            target = "f32"
        elif op in ("ew.and", "ew.or", "ew.not"):
            return operands
        elif target == "bool" and op not in ("ew.where", "ew.eq", "ew.ne"):
            target = "i32"
        return (*operands[:first], *(self._cast(v, target, source) for v in values))

    def _cast(self, value: Value, dtype: str, source: Source) -> Value:
        if value.dtype == dtype:
            return value
        if value in self.constants and not value.dims:
            return self.constant(self.constants[value].astype(NUMPY_DTYPES[dtype]))
        return self.add("tensor.cast", [value], {"dtype": dtype}, source)

    def _named(self, name: str, dims: Dims, dtype: str) -> Value:
        if dtype not in DTYPES:
            advice = "float parameters are f32 in the graph however they are stored"
            raise GraphError(f"'{name}' has dtype {dtype}; the graph knows {DTYPES}", try_=advice)
        self._claim(name)
        return Value(name, tuple(d if isinstance(d, str) else int(d) for d in dims), dtype)

    def _claim(self, name: str) -> None:
        if name in self._names:
            raise GraphError(f"the graph has two values named '{name}'")
        self._names.add(name)

    def _fresh(self, prefix: str) -> str:
        name = f"{prefix}{self._next_id}"
        while name in self._names or name in self._reserved:
            self._next_id += 1
            name = f"{prefix}{self._next_id}"
        self._next_id += 1
        return name


def _rank(operands: Sequence[Value | None], attrs: dict[str, Any]) -> int:
    """Of what the attribute `dim` counts: the first operand, or the dims that the op makes."""
    return len(operands[0].dims) if operands and operands[0] is not None else len(attrs["dims"])


def literal(array: np.ndarray) -> str:
    """How a 0-d constant is written: 1.5 (f32), 2 (i32), true (bool)."""
    if array.dtype == np.bool_:
        return "true" if array else "false"
    return str(array[()])


def _as_array(data: np.ndarray | float | int | bool) -> np.ndarray:
    """In one of the graph's dtypes: int64 becomes i32 (checked), any float f32."""
    array = np.asarray(data)
    if array.dtype == np.bool_:
        return array
    if np.issubdtype(array.dtype, np.integer):
        if array.size and (array.min() < -(2**31) or array.max() >= 2**31):
            raise GraphError(f"an integer constant does not fit 32 bits: {array.min()} … {array.max()}")
        return array.astype(np.int32)
    if np.issubdtype(array.dtype, np.floating):
        return array.astype(np.float32)
    raise GraphError(f"a constant of dtype {array.dtype} is not possible", try_="use float, int or bool")
