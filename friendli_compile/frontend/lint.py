"""Refuses graphs that are right for one sequence and wrong for a packed batch: every op must treat each token by itself.

Only `attn.paged` may look at other tokens, and it knows where sequences begin. Anything else that reads along `num_tokens` mixes
sequences silently: a convolution, a cumulative sum, a maximum of the positions, a range used as positions, a [tokens × tokens] product.
Input: a graph as traced or token-major. Output: nothing, or UnsupportedModel naming module, op and source line of the first offender.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import UnsupportedModel
from ..ir.graph import Dims, Graph, Node, Value

ROW_DIMS = ("num_tokens", "num_logits")
MIXES = "reads along the tokens of the packed batch, so one sequence would change another"


def check_token_local(graph: Graph) -> None:
    """Raises UnsupportedModel for the first node that the outputs depend on and that mixes tokens."""
    live = _live_nodes(graph)
    for node in graph.nodes:
        if id(node) in live:
            problem = _problem(node)
            if problem:
                place = node.source
                hint = "such a layer needs an op of its own that knows where sequences begin"
                raise UnsupportedModel(f"{node.op} {problem}", module=place.module, op=place.aten_op, source_line=place.location, hint=hint)


def _live_nodes(graph: Graph) -> set[int]:
    """Ids of the nodes that the outputs depend on."""
    producers = graph.producers()
    live: set[int] = set()
    stack = [producers[value] for value in graph.outputs if value in producers]
    while stack:
        node = stack.pop()
        if id(node) not in live:
            live.add(id(node))
            stack.extend(producers[value] for value in node.operands if value in producers)
    return live


def _problem(node: Node) -> str:
    """What is wrong with a node; empty if nothing is."""
    for value in node.outputs:
        if sum(dim in ROW_DIMS for dim in value.dims) > 1:
            return f"makes {value}: a value for every pair of tokens"
    rule = RULES.get(node.op)
    return rule(node) if rule is not None else ""


def _row_axis(dims: Dims) -> int | None:
    return next((axis for axis, dim in enumerate(dims) if dim in ROW_DIMS), None)


def _along_attr(node: Node) -> str:
    """The op works along attribute `dim` of its first operand."""
    dims = next(iter(node.operands)).dims
    axis, dim = _row_axis(dims), node.attrs["dim"]
    assert isinstance(dim, int)
    return MIXES if axis is not None and dim % len(dims) == axis else ""


def _row_by_row(node: Node) -> str:
    """gather, scatter: not along the tokens, and index rows belong to the rows they are used on."""
    x, index = list(node.operands)[:2]
    axis, index_axis, dim = _row_axis(x.dims), _row_axis(index.dims), node.attrs["dim"]
    assert isinstance(dim, int)
    dim %= len(x.dims)
    is_table_lookup = node.op == "tensor.gather" and axis is None and index_axis == dim
    return MIXES if axis == dim or (axis != index_axis and not is_table_lookup) else ""


def _attention(node: Node) -> str:
    """The rows of q, k and v are tokens."""
    expected = 0 if len(node.output.dims) == 3 else 2
    q_k_v = list(node.operands)[:3]
    return "" if all(_row_axis(value.dims) == expected for value in q_k_v) else "attends to something else than the tokens of a sequence"


def _iota(node: Node) -> str:
    dims: Any = node.attrs["dims"]
    dim = node.attrs["dim"]
    assert isinstance(dim, int)
    if _row_axis(dims) != dim % len(dims):
        return ""
    return "numbers the tokens of the packed batch, which are not the positions in their sequences"


def _contracted_is_last(node: Node) -> str:
    x = next(iter(node.operands))
    return MIXES if x.dims and x.dims[-1] in ROW_DIMS else ""


def _matmul(node: Node) -> str:
    a, b = node.operands
    contracted = (a.dims[-1], b.dims[-2] if len(b.dims) > 1 else b.dims[0])
    return MIXES if any(dim in ROW_DIMS for dim in contracted) else ""


def _conv(node: Node) -> str:
    x = next(iter(node.operands))
    return MIXES if _row_axis(x.dims) is not None else ""


def _embedding(node: Node) -> str:
    table = next(iter(node.operands))
    return "looks up rows of a table that is computed from the tokens" if _row_axis(table.dims) is not None else ""


def _reshape(node: Node) -> str:
    """The token dim keeps its place: as many elements before it as before."""
    before, after = (_leading(value) for value in (next(iter(node.operands)), node.output))
    return "moves elements between tokens" if before is not None and before != after else ""


def _leading(value: Value) -> int | None:
    """Number of elements before the row dim, None without one."""
    axis = _row_axis(value.dims)
    if axis is None:
        return None
    product = 1
    for dim in value.dims[:axis]:
        assert isinstance(dim, int)
        product *= dim
    return product


RULES: dict[str, Callable[[Node], str]] = {
    **dict.fromkeys(("reduce.sum", "reduce.mean", "reduce.max", "reduce.min", "reduce.argmax", "tensor.cumsum", "nn.softmax"), _along_attr),
    **dict.fromkeys(("tensor.topk", "tensor.slice", "tensor.concat"), _along_attr),
    **dict.fromkeys(("nn.rms_norm", "nn.layer_norm", "nn.add_rms_norm", "nn.add_layer_norm", "nn.linear"), _contracted_is_last),
    **dict.fromkeys(("tensor.gather", "tensor.scatter"), _row_by_row),
    "attn.paged": _attention,
    "tensor.iota": _iota, "tensor.matmul": _matmul, "nn.conv1d": _conv, "nn.embedding": _embedding, "tensor.reshape": _reshape,
}  # fmt: skip
