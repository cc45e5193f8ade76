"""The verifier: every rule that a graph must keep, checked after every pass.

Names are unique; every value is defined before it is read; every node's attributes and output types are what the op table says; constants
have the dtype and dims of their values. In token-major form a named dim is the first one, and the only one.
"""

from __future__ import annotations

from .graph import NAMED_DIMS, Graph, GraphError, Node, Value
from .ops import lookup, normalise_attrs
from .reference import NUMPY_DTYPES


def verify(graph: Graph, token_major: bool = False) -> None:
    """Raises GraphError on the first rule that does not hold."""
    defined: set[Value] = set()
    names: set[str] = set()
    for value in (*graph.inputs, *graph.params, *graph.constants):
        _define(value, defined, names, token_major, where="the sources of the graph")
    for value, data in graph.constants.items():
        if data.shape != value.dims or data.dtype != NUMPY_DTYPES[value.dtype]:
            raise GraphError(f"the data of constant {value} are {data.dtype}{list(data.shape)}")
    for node in graph.nodes:
        _verify_node(node, defined)
        for value in node.outputs:
            _define(value, defined, names, token_major, where=f"{node.op}, {node.source}")
    for value in graph.outputs:
        if value not in defined:
            raise GraphError(f"the graph returns {value}, which nothing computes")


def _define(value: Value, defined: set[Value], names: set[str], token_major: bool, where: str) -> None:
    if value.name in names:
        raise GraphError(f"two values are named '{value.name}'", where)
    if any(isinstance(dim, str) and dim not in NAMED_DIMS for dim in value.dims):
        raise GraphError(f"{value} has an unknown named dim", where, f"known are {NAMED_DIMS}")
    if token_major and any(isinstance(dim, str) for dim in value.dims[1:]):
        raise GraphError(f"{value} has a named dim that is not the first", where)
    names.add(value.name)
    defined.add(value)


def _verify_node(node: Node, defined: set[Value]) -> None:
    where = f"{node.op} → {', '.join(str(v) for v in node.outputs)}, {node.source}"
    for value in node.operands:
        if value not in defined:
            raise GraphError(f"{value} is read before it is defined", where)
    try:
        op = lookup(node.op)
        if normalise_attrs(op, node.attrs) != dict(node.attrs):
            raise GraphError(f"the attributes {dict(node.attrs)} are not in normal form")
        if not op.is_variadic and len(node.inputs) != len(op.operands):
            raise GraphError(f"{len(node.inputs)} operands instead of {len(op.operands)}")
        types = op.shape_rule(node.inputs, node.attrs)
    except GraphError as error:
        raise GraphError(error.what, where, error.try_) from None
    found = [(value.dims, value.dtype) for value in node.outputs]
    if found != types:
        raise GraphError(f"the outputs are {found}, the op gives {types}", where)
