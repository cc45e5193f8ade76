"""Which rows of a linear layer's (merged) weight are which module's: where an adapter adds its part at run time.

    concat(q_proj.weight, k_proj.weight; dim=0)  ─▶  Site("…q_proj", 0, 64), Site("…k_proj", 64, 96)

Derived from the weight expression alone, so it holds for every architecture: an output row belongs to a module when it is, unchanged and in
order, a row of that module's `weight` (a column where the model stores it as [in, out], like Conv1D). Modules whose rows are rearranged,
scaled or only partly there have no site: their adapters are refused when they are loaded, not applied wrongly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..ir.graph import Node, Value
from .expression import Expression

WEIGHT_SUFFIX = ".weight"


@dataclass(frozen=True, slots=True)
class Site:
    """Rows `begin` to `end` of the product are the output of `module`."""

    module: str
    begin: int
    end: int

    def to_json(self) -> dict[str, Any]:
        return {"module": self.module, "rows": [self.begin, self.end]}


@dataclass(frozen=True, slots=True)
class _Rows:
    """Output rows `begin` to `end` of a parameter; `is_transposed`: they are its columns."""

    param: Value
    is_transposed: bool
    begin: int
    end: int

    @property
    def is_whole(self) -> bool:
        return self.begin == 0 and self.end == self.param.dims[1 if self.is_transposed else 0]

    @property
    def count(self) -> int:
        return self.end - self.begin


def sites_of(expression: Expression, module: str) -> tuple[Site, ...]:
    """The sites of a linear layer with this weight; `module`: the module that multiplies, which owns the only site of a weight that is
    not merged, even when another module gave the parameter its name (tied embeddings)."""
    rows = _rows_of(expression.root, {output: node for node in expression.graph.nodes for output in node.outputs})
    if rows is None:
        return ()
    sites, start = [], 0
    for part in rows:
        name = part.param.name
        if part.is_whole and name.endswith(WEIGHT_SUFFIX):
            owner = module if len(rows) == 1 and module else name.removesuffix(WEIGHT_SUFFIX)
            sites.append(Site(owner, start, start + part.count))
        start += part.count
    return tuple(sites)


def _rows_of(value: Value, producers: Mapping[Value, Node]) -> list[_Rows] | None:
    """What the rows of a matrix are, in order; None where they are not rows of parameters."""
    node = producers.get(value)
    if node is None:
        return [_Rows(value, False, 0, int(value.dims[0]))] if len(value.dims) == 2 else None
    if node.op == "tensor.permute" and tuple(node.attrs["perm"]) == (1, 0):  # type: ignore[arg-type]
        source = node.inputs[0]
        return [_Rows(source, True, 0, int(source.dims[1]))] if source is not None and source not in producers else None
    if node.op == "tensor.concat" and len(value.dims) == 2 and int(node.attrs["dim"]) % 2 == 0:  # type: ignore[arg-type]
        parts = [_rows_of(operand, producers) for operand in node.operands]
        return [rows for part in parts if part is not None for rows in part] if None not in parts else None
    if node.op == "tensor.slice" and len(value.dims) == 2 and node.attrs["dim"] == 0 and node.attrs["step"] == 1:
        whole = _rows_of(next(iter(node.operands)), producers)
        return None if whole is None else _cut(whole, int(node.attrs["start"]), int(node.attrs["stop"]))  # type: ignore[arg-type]
    return None


def _cut(rows: list[_Rows], start: int, stop: int) -> list[_Rows]:
    """The output rows `start` to `stop` of a list of rows."""
    kept, position = [], 0
    for part in rows:
        low, high = max(start - position, 0), min(stop - position, part.count)
        if low < high:
            kept.append(_Rows(part.param, part.is_transposed, part.begin + low, part.begin + high))
        position += part.count
    return kept
