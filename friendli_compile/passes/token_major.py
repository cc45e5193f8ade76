"""Every value that depends on the tokens gets `num_tokens` as its first dim and loses its size-1 dims.

    as traced [1, num_q_heads, num_tokens, head_dim]   →   [num_tokens, num_q_heads, head_dim]

The new dims of a value follow from its old ones alone (`token_major_dims`), so transposes that only moved the token dim become
nothing, and reshapes must keep as many elements in front of the token dim as before. Values without tokens (weight expressions, tables)
keep their dims and are reshaped where they meet a token value. What mixes tokens outside attention (a reduction, a slice, a table of
num_tokens × num_tokens) is refused.

before:
    input %x: f32[1, num_tokens, 8]
    param %w: f32[4, 8]
    %q = nn.linear(%x, %w, _)
    %h = tensor.reshape(%q) {dims=[1, "num_tokens", 2, 2]}
    %t = tensor.permute(%h) {perm=[0, 2, 1, 3]}
    %m = ew.mul(%t, 2.0)
    %y = tensor.permute(%m) {perm=[0, 2, 1, 3]}
    return %y
after:
    input %x: f32[num_tokens, 8]
    param %w: f32[4, 8]
    %q = nn.linear(%x, %w, _)
    %h = tensor.reshape(%q) {dims=["num_tokens", 2, 2]}
    %y = ew.mul(%h, 2.0)
    return %y
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..errors import UnsupportedModel
from ..ir.graph import Dim, Dims, Graph, GraphError, Node, Value, num_elements
from ..ir.rewrite import Inputs, Replacement, Rewriter, rewrite_with
from ..ir.shapes import broadcast

TOKENS = "num_tokens"


def run(graph: Graph) -> Graph:
    """Raises UnsupportedModel where the token dim cannot be isolated."""
    rw = Rewriter(graph)
    rw.builder.inputs.clear()
    for value in graph.inputs:
        new = Value(value.name, token_major_dims(value.dims), value.dtype)
        rw.builder.inputs.append(new)
        rw.mapping[value] = new
    return rewrite_with(rw, _rule)


def token_major_dims(dims: Dims) -> Dims:
    """The dims after this pass."""
    if TOKENS not in dims:
        return dims
    return (TOKENS, *(dim for dim in dims if dim not in (1, TOKENS)))


def _rule(rw: Rewriter, node: Node, inputs: Inputs) -> Replacement:
    if not any(_has_tokens(value) for value in (*node.operands, *node.outputs)):
        return None  # a weight expression
    for value in node.outputs:
        if list(value.dims).count(TOKENS) != 1:
            raise _refusal(node, f"its result {value} does not have one row per token")
    handler = _pointwise if node.op.startswith("ew.") else _HANDLERS.get(node.op)
    if handler is None:
        raise _refusal(node, "it works across the tokens of a batch, which may belong to different sequences")
    try:
        replacement = handler(rw, node, inputs)
    except GraphError as error:
        raise _refusal(node, error.what) from None
    assert replacement is not None
    results = replacement if isinstance(replacement, tuple) else (replacement,)
    shaped = tuple(reshaped(rw, new, token_major_dims(old.dims)) for old, new in zip(node.outputs, results, strict=True))
    return shaped if len(shaped) > 1 else shaped[0]


def _refusal(node: Node, why: str) -> UnsupportedModel:
    operands = ", ".join(str(value) for value in node.operands)
    return UnsupportedModel(
        f"{node.op}({operands}) cannot be computed token by token: {why}",
        module=node.source.module,
        op=node.source.aten_op or node.op,
        source_line=node.source.location,
    )


# --- helpers: an operand as the new form of a result wants it


def _has_tokens(value: Value | None) -> bool:
    return value is not None and TOKENS in value.dims


def reshaped(rw: Rewriter, value: Value, dims: Dims) -> Value:
    """A reshape, where one is needed."""
    return value if value.dims == dims else rw.add("tensor.reshape", [value], {"dims": dims})


def _old_input(node: Node, position: int = 0) -> Value:
    value = node.inputs[position]
    assert value is not None
    return value


def _token_axis(value: Value) -> int:
    return value.dims.index(TOKENS)


def _aligned(rw: Rewriter, old: Value, new: Value, rank: int, token_axis: int, kept: Sequence[int]) -> Value:
    """The operand in the form [num_tokens, *kept dims]; `token_axis` and `kept` are positions in the old result, of rank `rank`.

    An operand without tokens has the kept dims only, and broadcasts."""
    padded: Dims = (1,) * (rank - len(old.dims)) + old.dims
    dims: Dims = tuple(padded[i] for i in kept)
    if padded[token_axis] == TOKENS:
        return reshaped(rw, new, (TOKENS, *dims))
    if TOKENS in padded or padded[token_axis] != 1:
        raise GraphError(f"{old} does not line up with the token dim of the result")
    while dims and dims[0] == 1:
        dims = dims[1:]
    return reshaped(rw, new, dims)


def _kept(dims: Dims, *always: int) -> list[int]:
    """Positions of the dims that stay besides the token dim."""
    return [i for i, dim in enumerate(dims) if dim != TOKENS and (dim != 1 or i in always)]


def _require_other_axis(old: Value, axis: int) -> None:
    if old.dims[axis] == TOKENS:
        raise GraphError("it works along the token dim, across sequences")


# --- one handler per kind of op


def _pointwise(rw: Rewriter, node: Node, inputs: Inputs) -> Replacement:
    out = node.output
    kept, token_axis = _kept(out.dims), _token_axis(out)
    operands = [_aligned(rw, old, new, len(out.dims), token_axis, kept) for old, new in _pairs(node, inputs)]
    return rw.add(node.op, operands, dict(node.attrs))


def _pairs(node: Node, inputs: Inputs) -> list[tuple[Value, Value]]:
    return [(old, new) for old, new in zip(node.inputs, inputs, strict=True) if old is not None and new is not None]


def _cast(rw: Rewriter, node: Node, inputs: Inputs) -> Replacement:
    return rw.add(node.op, inputs, dict(node.attrs))


def _permute(rw: Rewriter, node: Node, inputs: Inputs) -> Replacement:
    """Only the order of the other dims matters."""
    old, perm = _old_input(node), node.attrs["perm"]
    assert isinstance(perm, tuple)
    kept = _kept(old.dims)
    order = [kept.index(i) + 1 for i in perm if i in kept]
    if order == sorted(order):
        return inputs[0]
    return rw.add(node.op, inputs, {"perm": [0, *order]})


def _reshape(rw: Rewriter, node: Node, inputs: Inputs) -> Replacement:
    """Valid when as many elements stay in front of the token dim: [H, T, D] → [T, H, D] row by row."""
    old, out = _old_input(node), node.output
    before = num_elements(old.dims[: _token_axis(old)])
    if before != num_elements(out.dims[: _token_axis(out)]):
        raise GraphError(f"the reshape to {list(out.dims)} merges the token dim with another one")
    return inputs[0]


def _expand(rw: Rewriter, node: Node, inputs: Inputs) -> Replacement:
    out = node.output
    old, new = _pairs(node, inputs)[0]
    operand = _aligned(rw, old, new, len(out.dims), _token_axis(out), _kept(out.dims))
    dims = token_major_dims(out.dims)
    return operand if operand.dims == dims else rw.add(node.op, [operand], {"dims": dims})


def _along_axis(rw: Rewriter, node: Node, inputs: Inputs) -> Replacement:
    """Ops along one dim of operands that share their rank: slice, concat, gather, scatter, topk, cumsum, softmax."""
    first = _old_input(node)
    rank, axis, token_axis = len(first.dims), node.attrs["dim"], _token_axis(node.outputs[0])
    assert isinstance(axis, int)
    axis %= rank
    _require_other_axis(first, axis)
    all_dims = [value.dims for value in (*node.operands, *node.outputs) if value.dims]
    widest: Dims = tuple(max((d for d in column if isinstance(d, int)), default=1) for column in zip(*all_dims, strict=True))
    kept = [i for i in range(rank) if i != token_axis and (widest[i] != 1 or i == axis)]
    operands = [new if not old.dims else _same_rank(rw, old, new, token_axis, kept) for old, new in _pairs(node, inputs)]
    return rw.add(node.op, operands, {**node.attrs, "dim": kept.index(axis) + 1})


def _gather(rw: Rewriter, node: Node, inputs: Inputs) -> Replacement:
    """Along another dim; or rows of a table by one index per token, which the model repeated over the row."""
    (old_table, table), (old_index, index) = _pairs(node, inputs)
    axis = node.attrs["dim"]
    assert isinstance(axis, int)
    if _has_tokens(old_table) or old_index.dims[axis] != TOKENS:
        return _along_axis(rw, node, inputs)
    expand = rw.producer(index, "tensor.expand")
    row_dims = (*old_table.dims[:axis], *old_table.dims[axis + 1 :])
    is_one_per_token = num_elements(row_dims)[0] == 1 or (expand is not None and num_elements(expand.inputs[0].dims)[0] == 1)  # type: ignore[union-attr]
    if any(dim != 1 for dim in old_table.dims[:axis]) or not is_one_per_token or index.dims[1:] != tuple(d for d in row_dims if d != 1):
        raise GraphError("each token reads other rows of the table for each element")
    rows = reshaped(rw, expand.inputs[0] if expand is not None else index, (TOKENS,))  # type: ignore[arg-type]
    return rw.add("tensor.gather_rows", [reshaped(rw, table, (old_table.dims[axis], *row_dims[axis:])), rows])


def _same_rank(rw: Rewriter, old: Value, new: Value, token_axis: int, kept: Sequence[int]) -> Value:
    if old.dims[token_axis] != TOKENS:
        raise GraphError(f"{old} does not line up with the token dim of the other operands")
    return reshaped(rw, new, (TOKENS, *(old.dims[i] for i in kept)))


def _reduce(rw: Rewriter, node: Node, inputs: Inputs) -> Replacement:
    old, axis = _old_input(node), node.attrs["dim"]
    assert isinstance(axis, int) and inputs[0] is not None
    axis %= len(old.dims)
    _require_other_axis(old, axis)
    kept = _kept(old.dims, axis)
    operand = _same_rank(rw, old, inputs[0], _token_axis(old), kept)
    return rw.add(node.op, [operand], {"dim": kept.index(axis) + 1, "keepdim": False})


def _last_dim(rw: Rewriter, node: Node, inputs: Inputs) -> Replacement:
    """Ops over the last dim of their first operand, with weights beside: linear and norms."""
    old = _old_input(node)
    last = len(old.dims) - 1
    _require_other_axis(old, last)
    if any(_has_tokens(value) for value in node.inputs[1:]):
        raise GraphError("a weight depends on the tokens")
    assert inputs[0] is not None
    operand = _same_rank(rw, old, inputs[0], _token_axis(old), _kept(old.dims, last))
    return rw.add(node.op, [operand, *inputs[1:]], dict(node.attrs))


def _lookup(rw: Rewriter, node: Node, inputs: Inputs) -> Replacement:
    """Embedding and gather_rows: a table without tokens, indices with."""
    if _has_tokens(node.inputs[0]):
        raise GraphError("rows are picked by number from the tokens of a batch")
    return rw.add(node.op, inputs, dict(node.attrs))


def _matmul(rw: Rewriter, node: Node, inputs: Inputs) -> Replacement:
    """[…, T, K] @ [K, N] stays; tokens among the columns swap the operands; tokens among the batch dims come first."""
    (old_a, a), (old_b, b) = _pairs(node, inputs)
    a_dims: Dims = old_a.dims if len(old_a.dims) > 1 else (1, *old_a.dims)
    b_dims: Dims = old_b.dims if len(old_b.dims) > 1 else (*old_b.dims, 1)
    if TOKENS in (a_dims[-1], b_dims[-2]):
        raise GraphError("it sums over the tokens of all sequences")
    rank = max(len(a_dims), len(b_dims))
    a_dims, b_dims = (1,) * (rank - len(a_dims)) + a_dims, (1,) * (rank - len(b_dims)) + b_dims
    batch = broadcast(a_dims[:-2], b_dims[:-2])
    # Every form is [num_tokens or nothing, *batch dims ≠ 1, rows, columns], whichever dim the tokens came from.
    kept = [i for i, dim in enumerate(batch) if dim not in (1, TOKENS)]
    rows, columns = a_dims[-2], b_dims[-1]
    left = _matmul_form(rw, a, a_dims, kept, rows)
    if columns == TOKENS:
        right = _matmul_form(rw, b, (*b_dims[:-2], b_dims[-1], b_dims[-2]), kept, columns)
        return _matmul_of_columns(rw, left, right, a_dims, bool(kept))
    right = _batched(rw, b, b_dims, kept, (b_dims[-2], columns))
    if a_dims[-1] == 1 and not kept and rows == TOKENS:
        return rw.add("ew.mul", [left, reshaped(rw, b, (columns,))])
    return rw.add("tensor.matmul", [left, right])


def _matmul_form(rw: Rewriter, value: Value, dims: Dims, kept: Sequence[int], rows: Dim) -> Value:
    """`dims` end in (rows, K). Tokens among the rows: [T, K], or [T, *batch, 1, K] where there are batch dims."""
    if rows != TOKENS:
        return _batched(rw, value, dims, kept, (rows, dims[-1]))
    if not kept:
        return reshaped(rw, value, (TOKENS, dims[-1]))
    return reshaped(rw, value, (TOKENS, *(dims[i] for i in kept), 1, dims[-1]))


def _batched(rw: Rewriter, value: Value, dims: Dims, kept: Sequence[int], matrix: Dims) -> Value:
    """[T, *batch, *matrix] of a token value, [*batch, *matrix] of one without."""
    tokens: Dims = (TOKENS,) if TOKENS in dims else ()
    return reshaped(rw, value, (*tokens, *(dims[i] for i in kept), *matrix))


def _matmul_of_columns(rw: Rewriter, left: Value, right: Value, a_dims: Dims, is_batched: bool) -> Replacement:
    """left [(batch), M, K] @ right given as [T, (batch, 1,) K]: the transposed product, [T, (batch, 1,) M]."""
    if TOKENS in left.dims:
        raise GraphError("it makes a table of num_tokens × num_tokens")
    rows, inner = a_dims[-2:]
    if inner == 1 and not is_batched:
        return rw.add("ew.mul", [right, reshaped(rw, left, (rows,))])
    rank = len(left.dims)
    transposed = rw.add("tensor.permute", [left], {"perm": [*range(rank - 2), rank - 1, rank - 2]})
    return rw.add("tensor.matmul", [right, transposed])


def _attention(rw: Rewriter, node: Node, inputs: Inputs) -> Replacement:
    """As traced [1, heads, T, dim] → [T, heads, dim]."""
    operands: list[Value | None] = []
    for old, new in zip(node.inputs[:3], inputs[:3], strict=True):
        assert old is not None and new is not None
        heads, dim = (old.dims[1], old.dims[3]) if len(old.dims) == 4 else old.dims[1:]
        operands.append(reshaped(rw, new, (TOKENS, heads, dim)))
    return rw.add(node.op, [*operands, *inputs[3:]], dict(node.attrs))


def _experts(rw: Rewriter, node: Node, inputs: Inputs) -> Replacement:
    operands = [reshaped(rw, new, old.dims) for old, new in zip(node.inputs[:3], inputs[:3], strict=True) if old and new]
    return rw.add(node.op, [*operands, *inputs[3:]], dict(node.attrs))


def _full(rw: Rewriter, node: Node, inputs: Inputs) -> Replacement:
    return rw.add(node.op, [], {**node.attrs, "dims": token_major_dims(node.output.dims)})


def _iota(rw: Rewriter, node: Node, inputs: Inputs) -> Replacement:
    out, axis = node.output, node.attrs["dim"]
    assert isinstance(axis, int)
    if out.dims[axis] == TOKENS:
        raise GraphError("it numbers the tokens of the batch, not those of a sequence: positions must come from position_ids")
    kept = _kept(out.dims, axis)
    return rw.add(node.op, [], {**node.attrs, "dims": (TOKENS, *(out.dims[i] for i in kept)), "dim": kept.index(axis) + 1})


_HANDLERS: dict[str, Callable[[Rewriter, Node, Inputs], Replacement]] = {
    "tensor.cast": _cast,
    "tensor.permute": _permute,
    "tensor.reshape": _reshape,
    "tensor.expand": _expand,
    **dict.fromkeys(("tensor.slice", "tensor.concat", "tensor.scatter", "tensor.topk"), _along_axis),
    **dict.fromkeys(("tensor.cumsum", "nn.softmax"), _along_axis),
    **dict.fromkeys(("reduce.sum", "reduce.mean", "reduce.max", "reduce.min", "reduce.argmax"), _reduce),
    **dict.fromkeys(("nn.linear", "nn.rms_norm", "nn.layer_norm"), _last_dim),
    **dict.fromkeys(("nn.embedding", "tensor.gather_rows"), _lookup),
    "tensor.gather": _gather,
    "tensor.matmul": _matmul,
    "tensor.full": _full,
    "tensor.iota": _iota,
    "attn.paged": _attention,
    "moe.experts": _experts,
}
