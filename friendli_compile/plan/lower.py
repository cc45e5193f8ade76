"""Nodes to calls: gives every value a place, turns shape ops into views where the consumers can take them, and copies where they cannot.

A value's `Place` is a strided view of a buffer or an input; static values live in the weight table. Copies are made when a kernel needs
them, once per value. `Lowering.finish` has the calls over numbered buffers and the life of each buffer; `allocate.py` places them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InternalError, UnsupportedModel
from ..ir.graph import Graph, Node, Value
from . import views
from .allocate import Life
from .model import ALIGNMENT, FIXED_ARENA, ITEM_BYTES, ROW_DIMS, Call, Dims, KvLayer, View
from .operands import ANY, DENSE, IMPLIED_ATTRS, MATRIX, OPERANDS, ROWS, TABLE, requirement
from .sites import Site
from .views import Strided
from .weights import WeightTable

NEVER = 1 << 60  # dies after the last call


@dataclass(frozen=True, slots=True)
class Place:
    """Where the elements of a value are."""

    space: str
    id: int | str
    dtype: str
    strided: Strided

    def view(self) -> View:
        return View(self.space, self.id, self.dtype, self.strided.dims, self.strided.strides, self.strided.offset)

    def at(self, strided: Strided) -> Place:
        return Place(self.space, self.id, self.dtype, strided)


class Lowering:
    """State of one lowering: places, calls and buffer lives so far."""

    def __init__(self, graph: Graph, weights: WeightTable) -> None:
        self.graph = graph
        self.weights = weights
        self.calls: list[Call] = []
        self.lives: list[Life] = []
        self.kv_layers: dict[int, KvLayer] = {}
        self._places: dict[Value, Place] = {}
        self._dense: dict[Value, Place] = {}
        for value in graph.inputs:
            if len(value.dims) != 1:
                raise InternalError(f"graph input {value} is not one-dimensional: the pass token_major has not run")
            self._places[value] = Place("input", value.name, value.dtype, Strided(value.dims, (1,)))

    def run(self) -> View:
        """Lowers all nodes; returns the view of the logits."""
        for node in self.graph.nodes:
            if all(output in self.weights for output in node.outputs):
                continue
            is_lone_pointwise = node.op.startswith("ew.") and node.op != "ew.program"
            handler = Lowering._pointwise if is_lone_pointwise else _HANDLERS.get(node.op, Lowering._call)
            handler(self, node)
        return self._finish_logits()

    # --- shape ops: views

    def _view_op(self, node: Node) -> None:
        (x,) = node.inputs
        assert x is not None
        attrs = node.attrs
        place = self._place(x, node)
        strided: Strided | None
        if node.op == "tensor.permute":
            strided = views.permute(place.strided, attrs["perm"])  # type: ignore[arg-type]
        elif node.op == "tensor.slice":
            strided = views.slice_(place.strided, attrs["dim"], attrs["start"], attrs["stop"], attrs["step"])  # type: ignore[arg-type]
        elif node.op == "tensor.expand":
            strided = views.expand(place.strided, node.output.dims)
        else:
            self._require_row_dim_kept(x, node)
            strided = views.reshape(place.strided, node.output.dims)
            if strided is None:
                place = self._dense_copy(x, node)
                strided = views.reshape(place.strided, node.output.dims)
                assert strided is not None
        self._places[node.output] = place.at(strided)

    def _cast(self, node: Node) -> None:
        (x,) = node.inputs
        assert x is not None
        if x.dtype == node.output.dtype:
            self._places[node.output] = self._place(x, node)
        else:
            self._emit_copy(self._place(x, node).view(), self._new_buffer(node.output, node).view(), node)

    def _concat(self, node: Node) -> None:
        target = self._new_buffer(node.output, node)
        dim = int(node.attrs["dim"]) % len(node.output.dims)  # type: ignore[arg-type]
        start = 0
        for x in node.operands:
            size = x.dims[dim]
            assert isinstance(size, int)
            part = target.at(views.slice_(target.strided, dim, start, start + size, 1))
            self._emit_copy(self._place(x, node).view(), part.view(), node)
            start += size

    # --- kernels

    def _pointwise(self, node: Node) -> None:
        """A lone `ew.*` is a program of one step; 0-d constants are written into it."""
        operands: list[Value] = []
        step: list[Any] = [node.op.removeprefix("ew.")]
        for x in node.operands:
            scalar = self.weights.scalar(x)
            if scalar is None:
                if x not in operands:
                    operands.append(x)
                step.append(("in", operands.index(x)))
            else:
                step.append(("const", scalar))
        self._program(node, operands, (tuple(step),))

    def _fused_program(self, node: Node) -> None:
        """An `ew.program`; inputs that are 0-d constants are written into its code."""
        kept = [x for x in node.operands if self.weights.scalar(x) is None]
        replacement: dict[int, tuple[str, Any]] = {}
        for position, x in enumerate(node.operands):
            scalar = self.weights.scalar(x)
            replacement[position] = ("in", kept.index(x)) if scalar is None else ("const", scalar)
        old_code: Any = node.attrs["code"]
        code = tuple((fn, *(replacement[what] if kind == "in" else (kind, what) for kind, what in operands)) for fn, *operands in old_code)
        self._program(node, kept, code)

    def _program(self, node: Node, operands: Sequence[Value], code: tuple) -> None:
        inputs = []
        for x in operands:
            place = self._place(x, node)
            inputs.append(place.at(views.expand(place.strided, node.output.dims)).view())
        self._emit("ew.program", inputs, [self._new_buffer(node.output, node).view()], {"code": code}, node)

    def _linear(self, node: Node) -> None:
        """x of more than three dims is seen as [rows, product, K]: the kernel takes two or three."""
        x, w, bias = node.inputs
        assert x is not None and w is not None
        x_view = self._operand(x, ROWS, node)
        out = self._new_buffer(node.output, node)
        w_view = self.weights.view(w, MATRIX, node)
        if len(x.dims) > 3 or len(x.dims) == 1:
            x_place = self._dense_copy(x, node)
            x_view = self._reshaped(x_place, self._kernel_dims(x.dims)).view()
            out = self._reshaped(out, self._kernel_dims(node.output.dims))
        bias_view = None if bias is None else self._operand(bias, requirement("nn.linear", 2), node)
        sites = self.weights.sites(w, node) if _row_dim(x.dims) else ()
        self._emit("nn.linear", [x_view, w_view, bias_view], [out.view()], self._activation_attrs([w_view]), node, sites)

    def _experts(self, node: Node) -> None:
        self._call(node, self._activation_attrs([self.weights.view(w, MATRIX, node) for w in node.inputs[3:5] if w is not None]))

    def _activation_attrs(self, matrices: Sequence[View]) -> dict[str, Any]:
        """How the activations of a call on quantized matrices are rounded (docs/quantized-weights.md); nothing for others."""
        formats = [found for view in matrices if (found := self.weights.format_of(view)) is not None]
        if not formats:
            return {}
        if len(formats) != len(matrices) or len({found.act_dtype for found in formats}) != 1:
            raise InternalError(f"{[view.id for view in matrices]} are multiplied together and round activations differently")
        groups = tuple(found.act_group for found in formats)
        return {"act_dtype": formats[0].act_dtype, "act_group": groups[0] if len(groups) == 1 else groups}

    def _kernel_dims(self, dims: Dims) -> Dims:
        if len(dims) == 1:
            return (1, *dims)
        return (dims[0], math.prod(int(dim) for dim in dims[1:-1]), dims[-1])

    def _reshaped(self, place: Place, dims: Dims) -> Place:
        strided = views.reshape(place.strided, dims)
        assert strided is not None
        return place.at(strided)

    def _attention(self, node: Node) -> None:
        """Also numbers the KV layers from 0 in the order of the attributes, and records their dims."""
        _, k, v, *_ = node.inputs
        assert k is not None and v is not None
        kv_layer = int(node.attrs["kv_layer"])  # type: ignore[arg-type]
        if kv_layer in self.kv_layers:
            why = f"two attention ops use the KV cache of layer {kv_layer}; sharing a cache between layers is not supported"
            raise UnsupportedModel(why, module=node.source.module, op=node.source.aten_op, source_line=node.source.location)
        self.kv_layers[kv_layer] = KvLayer(int(k.dims[1]), int(k.dims[2]), int(v.dims[2]))
        self._call(node)

    def _call(self, node: Node, more_attrs: Mapping[str, Any] | None = None) -> None:
        """Any op that has a kernel of the same name; `more_attrs`: what the plan adds to the attributes of the op."""
        if node.op not in OPERANDS:
            why = f"'{node.op}' has no kernel"
            raise UnsupportedModel(why, module=node.source.module, op=node.source.aten_op or node.op, source_line=node.source.location)
        inputs = [None if x is None else self._operand(x, requirement(node.op, i), node) for i, x in enumerate(node.inputs)]
        outputs = [self._new_buffer(output, node).view() for output in node.outputs]
        implied = IMPLIED_ATTRS.get(node.op, ())
        attrs = {name: value for name, value in node.attrs.items() if name not in implied} | dict(more_attrs or {})
        if "dim" in attrs:
            rank = len(node.inputs[0].dims if node.inputs and node.inputs[0] is not None else node.outputs[0].dims)
            attrs["dim"] = int(attrs["dim"]) % rank  # type: ignore[arg-type]
        self._emit(node.op, inputs, outputs, attrs, node)

    # --- places

    def _operand(self, x: Value, need: str, node: Node) -> View:
        """A view of `x` that satisfies `need`, copying when its place does not."""
        if need in (MATRIX, TABLE):
            return self.weights.view(x, need, node)
        place = self._place(x, node)
        strided = place.strided
        fits = need == ANY or not strided.dims or strided.dims[-1] == 1 or strided.strides[-1] == 1
        if need == DENSE:
            fits = strided.is_dense_in_row
        return (place if fits else self._dense_copy(x, node)).view()

    def _place(self, x: Value, node: Node) -> Place:
        if x in self.weights:
            view = self.weights.row_major(x, node)
            assert view.strides is not None
            return Place("weight", view.id, view.dtype, Strided(view.dims, view.strides))
        return self._places[x]

    def _dense_copy(self, x: Value, node: Node) -> Place:
        """A place of `x` without gaps inside a row: its own, or a copy that is made once."""
        place = self._place(x, node)
        if place.strided.is_dense_in_row and (not _row_dim(x.dims) or place.strided.strides[0] != 0):
            return place
        if x not in self._dense:
            copy = self._buffer_like(x, node)
            self._emit_copy(place.view(), copy.view(), node)
            self._dense[x] = copy
        return self._dense[x]

    def _new_buffer(self, value: Value, node: Node) -> Place:
        place = self._places[value] = self._buffer_like(value, node)
        return place

    def _buffer_like(self, value: Value, node: Node) -> Place:
        """A fresh dense buffer: one arena row per row of `value`."""
        row_dim = _row_dim(value.dims)
        if any(isinstance(dim, str) for dim in value.dims[1 if row_dim else 0 :]):
            why = f"{value} has its row dim elsewhere than first"
            raise InternalError(why, where=f"{node.op}, {node.source}")
        tail = value.dims[1:] if row_dim else value.dims
        strides = views.contiguous_strides(tail)
        item_bytes = ITEM_BYTES[value.dtype]
        row_bytes = -(-math.prod(int(dim) for dim in tail) * item_bytes // ALIGNMENT) * ALIGNMENT
        row_bytes = max(row_bytes, ALIGNMENT)
        if row_dim:
            strides = (row_bytes // item_bytes, *strides)
        self.lives.append(Life(row_dim or FIXED_ARENA, row_bytes, len(self.calls), len(self.calls)))
        return Place("buffer", len(self.lives) - 1, value.dtype, Strided(value.dims, strides))

    # --- calls

    def _emit_copy(self, source: View, target: View, node: Node) -> None:
        self._emit("tensor.copy", [source], [target], {}, node)

    def _emit(
        self,
        op: str,
        inputs: Sequence[View | None],
        outputs: Sequence[View],
        attrs: Mapping[str, Any],
        node: Node,
        sites: tuple[Site, ...] = (),
    ) -> None:
        for view in (*inputs, *outputs):
            if view is not None and view.space == "buffer":
                assert isinstance(view.id, int)
                self.lives[view.id].dies = len(self.calls)
        module = node.source.module
        self.calls.append(Call(op, tuple(inputs), tuple(outputs), dict(attrs), layer_of(module), module, sites))

    def _require_row_dim_kept(self, x: Value, node: Node) -> None:
        if _row_dim(x.dims) != _row_dim(node.output.dims):
            raise InternalError(f"a reshape moves the row dim: {x} to {node.output}", where=str(node.source))

    def _finish_logits(self) -> View:
        """The only output, kept alive to the end: float32, dense in a row, one row per wanted logit."""
        (logits,) = self.graph.outputs
        last = self.graph.nodes[-1]
        if logits.dtype != "f32" or len(logits.dims) != 2 or not _row_dim(logits.dims):
            raise InternalError(f"the graph's output {logits} is not [num_logits, vocab_size] f32")
        place = self._place(logits, last)
        if place.space != "buffer" or not place.strided.is_dense_in_row:
            place = self._dense_copy(logits, last)
        assert isinstance(place.id, int)
        self.lives[place.id].dies = NEVER
        return place.view()


def layer_of(module: str) -> int | None:
    """The decoder layer in a module path (`model.layers.3.mlp` → 3); None outside of the layers."""
    return next((int(part) for part in module.split(".") if part.isdigit()), None)


def _row_dim(dims: Dims) -> str | None:
    return str(dims[0]) if dims and dims[0] in ROW_DIMS else None


_HANDLERS: dict[str, Callable[[Lowering, Node], None]] = {
    "tensor.reshape": Lowering._view_op,
    "tensor.permute": Lowering._view_op,
    "tensor.slice": Lowering._view_op,
    "tensor.expand": Lowering._view_op,
    "tensor.cast": Lowering._cast,
    "tensor.concat": Lowering._concat,
    "ew.program": Lowering._fused_program,
    "nn.linear": Lowering._linear,
    "attn.paged": Lowering._attention,
    "moe.experts": Lowering._experts,
}
