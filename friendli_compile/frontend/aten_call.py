"""One call of a torch op in the exported program, as its translation sees it: arguments by name, operands as graph values.

Also the two kinds of operand that the graph itself does not have: complex tensors (a pair of real ones) and tensors that torch made
uninitialised and fills piece by piece.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..errors import UnsupportedModel
from ..ir.builder import GraphBuilder
from ..ir.graph import Dim, Dims, GraphError, Source, Value
from ..ir.reference import NUMPY_DTYPES

IR_DTYPES = {
    torch.float32: "f32", torch.bool: "bool",
    torch.int64: "i32", torch.int32: "i32", torch.int16: "i32", torch.int8: "i32", torch.uint8: "i32",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class ComplexValue:
    """A complex tensor as its real and imaginary parts, of equal dims."""

    real: Value
    imag: Value


@dataclass(eq=False)
class EmptyValue:
    """A tensor that torch made uninitialised; slices written to it along one dim are kept until it is read."""

    dims: Dims
    dim: int | None = None  # the dim along which it is filled
    pieces: dict[tuple[int, int], Value] = field(default_factory=dict)  # [start, stop) → what was written


Operand = Value | ComplexValue | EmptyValue


@dataclass
class Call:
    """A torch op call. `args` has every argument of the op's schema by name; tensors in it are graph operands."""

    name: str  # without namespace, overload and in-place underscore: "add"
    args: dict[str, Any]
    source: Source
    builder: GraphBuilder
    num_tokens: Any  # the symbol of the packed dim
    fake: Any  # what torch says the result is: a fake tensor, or a list of them
    next_kv_layer: int = 0

    def add(self, op: str, *inputs: Any, **attrs: Any) -> Any:
        """Appends a node; a GraphError becomes an UnsupportedModel with the place in the model."""
        try:
            return self.builder.add(op, inputs, attrs, self.source)
        except GraphError as error:
            raise self.unsupported(error.what) from error

    def unsupported(self, why: str) -> UnsupportedModel:
        return UnsupportedModel(why, module=self.source.module, op=self.source.aten_op, source_line=self.source.location)

    def value(self, name: str) -> Value:
        """The argument `name`, which must be a real tensor (a number becomes a constant)."""
        return self.real(self.args[name], name)

    def real(self, operand: Any, name: str = "operand") -> Value:
        """`operand` as a graph value: numbers become constants, filled empty tensors are put together."""
        if isinstance(operand, Value):
            return operand
        if isinstance(operand, bool | int | float):
            return self.builder.constant(operand)
        if isinstance(operand, EmptyValue):
            return self._assemble(operand)
        kind = "a complex tensor" if isinstance(operand, ComplexValue) else f"{operand!r}"
        raise self.unsupported(f"{name} of {self.name} is {kind}, which has no translation")

    def values(self, name: str) -> list[Value]:
        return [self.real(operand, name) for operand in self.args[name]]

    def dim(self, value: Value, name: str = "dim") -> int:
        """The argument `name` as a non-negative dim index of `value`."""
        return int(self.args[name]) % max(1, len(value.dims))

    # --- the result as torch describes it

    @property
    def dims(self) -> Dims:
        return self.dims_of(self.fake)

    @property
    def dtype(self) -> str:
        return self.dtype_of(self.fake)

    def dims_of(self, fake: torch.Tensor) -> Dims:
        """Dims of a fake tensor. An expression of num_tokens is refused: rows of a step are tokens, nothing else."""
        return tuple(self._dim(size, fake) for size in fake.shape)

    def _dim(self, size: Any, fake: torch.Tensor) -> Dim:
        if isinstance(size, int):
            return size
        if size.node.expr == self.num_tokens.node.expr:
            return "num_tokens"
        raise self.unsupported(
            f"a result has dims [{', '.join(map(str, fake.shape))}] with {self.num_tokens} tokens: its rows are not the tokens"
        )

    def dtype_of(self, fake: torch.Tensor) -> str:
        if fake.dtype not in IR_DTYPES:
            raise self.unsupported(f"a result has dtype {fake.dtype}; the graph computes in float32, int32 and bool")
        return IR_DTYPES[fake.dtype]

    # --- small steps that several translations share

    def reshape(self, x: Value, dims: Dims) -> Value:
        return x if x.dims == dims else self.add("tensor.reshape", x, dims=dims)

    def permute(self, x: Value, perm: Sequence[int]) -> Value:
        return x if list(perm) == list(range(len(x.dims))) else self.add("tensor.permute", x, perm=tuple(perm))

    def expand(self, x: Value, dims: Dims) -> Value:
        return x if x.dims == dims else self.add("tensor.expand", x, dims=dims)

    def cast(self, x: Value, dtype: str) -> Value:
        return x if x.dtype == dtype else self.add("tensor.cast", x, dtype=dtype)

    def concat(self, values: Sequence[Value], dim: int) -> Value:
        return values[0] if len(values) == 1 else self.add("tensor.concat", *values, dim=dim)

    def slice(self, x: Value, dim: int, start: int, stop: int, step: int = 1) -> Value:
        size = x.dims[dim]
        if (start, stop, step) == (0, size, 1):
            return x
        return self.add("tensor.slice", x, dim=dim, start=start, stop=stop, step=step)

    def filled(self, dims: Dims, value: float, dtype: str) -> Value:
        """A tensor of one number; without dims a constant."""
        if not dims:
            return self.builder.constant(np.asarray(value).astype(NUMPY_DTYPES[dtype]))
        return self.add("tensor.full", dims=dims, value=float(value), dtype=dtype)

    def static(self, x: Value, dim: int) -> int:
        """The size of a dim that must not be num_tokens."""
        size = x.dims[dim]
        if not isinstance(size, int):
            raise self.unsupported(f"{self.name} works along the tokens of the packed batch, which would mix sequences")
        return size

    def constant_of(self, value: Value) -> np.ndarray | None:
        """The data of a constant, None for what is computed."""
        return self.builder.constants.get(value)

    def _assemble(self, empty: EmptyValue) -> Value:
        """The pieces of an empty tensor, which must cover it."""
        position = 0
        values = []
        for (start, stop), value in sorted(empty.pieces.items()):
            if start != position:
                break
            values.append(value)
            position = stop
        if empty.dim is None or position != empty.dims[empty.dim]:
            raise self.unsupported("an uninitialised tensor is read before all of it is written")
        return self.concat(values, empty.dim)
