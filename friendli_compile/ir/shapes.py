"""Shape rules: from the operands and attributes of an op to the (dims, dtype) of its outputs.

Used by the op table; a rule raises GraphError when the operands do not fit, so that building a graph and verifying it are the same check.
Attributes arrive normalised (`ops.normalise_attrs`): dim indices are within `-rank … rank-1` and are made non-negative here by `axis`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from .graph import NAMED_DIMS, Attr, Dim, Dims, GraphError, Value, num_elements

Type = tuple[Dims, str]  # (dims, dtype)
Operands = Sequence[Value | None]
Attrs = Mapping[str, Attr]
Rule = Callable[[Operands, Attrs], list[Type]]


def require(condition: bool, message: str) -> None:
    if not condition:
        raise GraphError(message)


def present(value: Value | None) -> Value:
    """The operand, which the op's arity guarantees to be there."""
    assert value is not None
    return value


def axis(attrs: Attrs, rank: int, name: str = "dim") -> int:
    """The dim index of attribute `name`, non-negative."""
    dim = attrs[name]
    assert isinstance(dim, int)
    require(-rank <= dim < rank, f"{name}={dim} is out of range for rank {rank}")
    return dim % rank


def broadcast(*shapes: Dims) -> Dims:
    """numpy broadcasting with named dims: a name matches itself or 1."""
    rank = max((len(dims) for dims in shapes), default=0)
    result: list[Dim] = []
    for i in range(rank):
        wanted: Dim = 1
        for dims in shapes:
            at = i - rank + len(dims)
            dim = dims[at] if at >= 0 else 1
            if dim == 1 or dim == wanted:
                continue
            require(wanted == 1, f"dims {[list(s) for s in shapes]} do not broadcast: {dim} against {wanted}")
            wanted = dim
        result.append(wanted)
    return tuple(result)


def same_as_first(operands: Operands, attrs: Attrs) -> list[Type]:
    x = present(operands[0])
    return [(x.dims, x.dtype)]


def reshape(operands: Operands, attrs: Attrs) -> list[Type]:
    x, dims = present(operands[0]), attrs["dims"]
    assert isinstance(dims, tuple)
    require(num_elements(x.dims) == num_elements(dims), f"cannot reshape {list(x.dims)} to {list(dims)}: the numbers of elements differ")
    return [(dims, x.dtype)]


def permute(operands: Operands, attrs: Attrs) -> list[Type]:
    x, perm = present(operands[0]), attrs["perm"]
    assert isinstance(perm, tuple)
    require(sorted(perm) == list(range(len(x.dims))), f"perm {list(perm)} is not a permutation of the dims of {list(x.dims)}")
    return [(tuple(x.dims[i] for i in perm), x.dtype)]


def expand(operands: Operands, attrs: Attrs) -> list[Type]:
    x, dims = present(operands[0]), attrs["dims"]
    assert isinstance(dims, tuple)
    require(broadcast(x.dims, dims) == dims, f"cannot expand {list(x.dims)} to {list(dims)}")
    return [(dims, x.dtype)]


def slice_(operands: Operands, attrs: Attrs) -> list[Type]:
    x = present(operands[0])
    dim = axis(attrs, len(x.dims))
    size, start, stop, step = x.dims[dim], attrs["start"], attrs["stop"], attrs["step"]
    require(isinstance(size, int), f"a slice over '{size}' is not possible: its size is known only when the model runs")
    assert isinstance(size, int) and isinstance(start, int) and isinstance(stop, int) and isinstance(step, int)
    require(0 <= start <= stop <= size and step >= 1, f"slice {start}:{stop}:{step} is outside dim {dim} of {list(x.dims)}")
    length = -(-(stop - start) // step)
    return [((*x.dims[:dim], length, *x.dims[dim + 1 :]), x.dtype)]


def concat(operands: Operands, attrs: Attrs) -> list[Type]:
    values = [present(v) for v in operands]
    first = values[0]
    dim = axis(attrs, len(first.dims))
    total = 0
    for value in values:
        require(len(value.dims) == len(first.dims) and value.dtype == first.dtype, f"cannot concat {first} and {value}")
        rest = all(a == b for i, (a, b) in enumerate(zip(value.dims, first.dims, strict=True)) if i != dim)
        size = value.dims[dim]
        require(rest and isinstance(size, int), f"cannot concat {first} and {value} over dim {dim}")
        assert isinstance(size, int)
        total += size
    return [((*first.dims[:dim], total, *first.dims[dim + 1 :]), first.dtype)]


def cast(operands: Operands, attrs: Attrs) -> list[Type]:
    return [(present(operands[0]).dims, str(attrs["dtype"]))]


def _require_index(index: Value) -> None:
    require(index.dtype == "i32", f"{index} is used as an index, so it must be i32")


def gather(operands: Operands, attrs: Attrs) -> list[Type]:
    x, index = present(operands[0]), present(operands[1])
    _require_index(index)
    require(len(x.dims) == len(index.dims), f"gather: {x} and index {index} must have the same rank")
    axis(attrs, len(x.dims))
    return [(index.dims, x.dtype)]


def scatter(operands: Operands, attrs: Attrs) -> list[Type]:
    x, index, src = present(operands[0]), present(operands[1]), present(operands[2])
    _require_index(index)
    require(len(x.dims) == len(index.dims), f"scatter: {x} and index {index} must have the same rank")
    require(src.dims in ((), index.dims) and src.dtype == x.dtype, f"scatter: src {src} must be 0-d or like {index}, in the dtype of {x}")
    axis(attrs, len(x.dims))
    return [(x.dims, x.dtype)]


def gather_rows(operands: Operands, attrs: Attrs) -> list[Type]:
    x, rows = present(operands[0]), present(operands[1])
    _require_index(rows)
    require(len(rows.dims) == 1 and len(x.dims) >= 1, f"gather_rows takes rows of x by a 1-d index, not {x} by {rows}")
    return [((rows.dims[0], *x.dims[1:]), x.dtype)]


def full(operands: Operands, attrs: Attrs) -> list[Type]:
    assert isinstance(attrs["dims"], tuple)
    return [(attrs["dims"], str(attrs["dtype"]))]


def iota(operands: Operands, attrs: Attrs) -> list[Type]:
    assert isinstance(attrs["dims"], tuple)
    axis(attrs, len(attrs["dims"]))
    return [(attrs["dims"], str(attrs["dtype"]))]


def topk(operands: Operands, attrs: Attrs) -> list[Type]:
    x, k = present(operands[0]), attrs["k"]
    dim = axis(attrs, len(x.dims))
    size = x.dims[dim]
    require(isinstance(size, int) and isinstance(k, int) and 1 <= k <= size, f"topk of k={k} over dim {dim} of {list(x.dims)}")
    assert isinstance(k, int)
    dims = (*x.dims[:dim], k, *x.dims[dim + 1 :])
    return [(dims, x.dtype), (dims, "i32")]


def matmul(operands: Operands, attrs: Attrs) -> list[Type]:
    a, b = present(operands[0]), present(operands[1])
    require(len(a.dims) >= 1 and len(b.dims) >= 1, f"matmul of {a} and {b}")
    require(a.dtype == b.dtype == "f32", f"matmul takes f32, not {a} and {b}")
    left: Dims = (1, *a.dims) if len(a.dims) == 1 else a.dims
    right: Dims = (*b.dims, 1) if len(b.dims) == 1 else b.dims
    require(left[-1] == right[-2], f"matmul of {a} and {b}: {left[-1]} is not {right[-2]}")
    batch = broadcast(left[:-2], right[:-2])
    rows = () if len(a.dims) == 1 else (left[-2],)
    cols = () if len(b.dims) == 1 else (right[-1],)
    return [((*batch, *rows, *cols), "f32")]


def cumsum(operands: Operands, attrs: Attrs) -> list[Type]:
    axis(attrs, len(present(operands[0]).dims))
    return same_as_first(operands, attrs)


def _reduced(operands: Operands, attrs: Attrs) -> tuple[Dims, str]:
    x = present(operands[0])
    dim = axis(attrs, len(x.dims))
    middle: Dims = (1,) if attrs["keepdim"] else ()
    return (*x.dims[:dim], *middle, *x.dims[dim + 1 :]), x.dtype


def reduce_(operands: Operands, attrs: Attrs) -> list[Type]:
    return [_reduced(operands, attrs)]


def reduce_float(operands: Operands, attrs: Attrs) -> list[Type]:
    dims, dtype = _reduced(operands, attrs)
    require(dtype == "f32", f"a mean takes f32, not {present(operands[0])}")
    return [(dims, dtype)]


def argmax(operands: Operands, attrs: Attrs) -> list[Type]:
    return [(_reduced(operands, attrs)[0], "i32")]


def ew_same(operands: Operands, attrs: Attrs) -> list[Type]:
    """Pointwise, the operands and the result have one dtype (f32 or i32)."""
    values = [present(v) for v in operands]
    dtype = values[0].dtype
    require(dtype != "bool" and all(v.dtype == dtype for v in values), f"operands must share f32 or i32: {[str(v) for v in values]}")
    return [(broadcast(*(v.dims for v in values)), dtype)]


def ew_float(operands: Operands, attrs: Attrs) -> list[Type]:
    values = [present(v) for v in operands]
    require(all(v.dtype == "f32" for v in values), f"operands must be f32: {[str(v) for v in values]}")
    return [(broadcast(*(v.dims for v in values)), "f32")]


def ew_compare(operands: Operands, attrs: Attrs) -> list[Type]:
    a, b = present(operands[0]), present(operands[1])
    require(a.dtype == b.dtype, f"a comparison needs one dtype: {a}, {b}")
    return [(broadcast(a.dims, b.dims), "bool")]


def ew_logical(operands: Operands, attrs: Attrs) -> list[Type]:
    values = [present(v) for v in operands]
    require(all(v.dtype == "bool" for v in values), f"operands must be bool: {[str(v) for v in values]}")
    return [(broadcast(*(v.dims for v in values)), "bool")]


def ew_where(operands: Operands, attrs: Attrs) -> list[Type]:
    condition, a, b = (present(v) for v in operands)
    require(condition.dtype == "bool" and a.dtype == b.dtype, f"where takes bool and two of one dtype: {condition}, {a}, {b}")
    return [(broadcast(condition.dims, a.dims, b.dims), a.dtype)]


def ew_program(operands: Operands, attrs: Attrs) -> list[Type]:
    """One output, of the type of the last register; all inputs broadcast together. Registers are typed like the `ew.*` ops."""
    inputs = [present(v) for v in operands]
    registers: list[Value] = []
    code = attrs["code"]
    assert isinstance(code, tuple)
    for fn, *arguments in code:
        values = [_program_operand(kind, what, inputs, registers) for kind, what in arguments]
        ((dims, dtype),) = EW_RULES[fn](values, {})
        registers.append(Value("", dims, dtype))
    return [(broadcast(*(v.dims for v in inputs)), registers[-1].dtype)]


def _program_operand(kind: str, what: int | float, inputs: Sequence[Value], registers: Sequence[Value]) -> Value:
    if kind == "const":
        return Value("", (), "bool" if isinstance(what, bool) else "i32" if isinstance(what, int) else "f32")
    assert isinstance(what, int)
    require(kind == "reg" or what < len(inputs), f"the code reads input {what} of {len(inputs)}")
    return inputs[what] if kind == "in" else registers[what]


def linear(operands: Operands, attrs: Attrs) -> list[Type]:
    x, w, bias = present(operands[0]), present(operands[1]), operands[2]
    require(len(x.dims) >= 1 and len(w.dims) == 2 and x.dims[-1] == w.dims[1], f"linear: {x} and the weight {w} differ in the last dim")
    require(x.dtype == "f32", f"linear takes f32, not {x}")
    require(isinstance(w.dims[0], int), f"linear: the weight {w} depends on the tokens")
    require(bias is None or bias.dims == (w.dims[0],), f"linear: bias {bias} does not fit the weight {w}")
    return [((*x.dims[:-1], w.dims[0]), "f32")]


def embedding(operands: Operands, attrs: Attrs) -> list[Type]:
    table, ids = present(operands[0]), present(operands[1])
    _require_index(ids)
    require(len(table.dims) == 2, f"embedding: the table {table} must have 2 dims")
    return [((*ids.dims, table.dims[1]), "f32")]


def _require_norm(x: Value, params: Sequence[Value | None]) -> None:
    require(len(x.dims) >= 1 and x.dtype == "f32", f"a norm takes f32 with at least one dim, not {x}")
    for param in params:
        require(param is None or param.dims == (x.dims[-1],), f"norm: {param} must be 1-d like the last dim of {x}")


def norm(operands: Operands, attrs: Attrs) -> list[Type]:
    x = present(operands[0])
    _require_norm(x, operands[1:])
    return [(x.dims, "f32")]


def add_norm(operands: Operands, attrs: Attrs) -> list[Type]:
    x, residual = present(operands[0]), present(operands[1])
    require(x.dims == residual.dims and residual.dtype == "f32", f"add and norm: {x} and {residual} differ")
    _require_norm(x, operands[2:])
    return [(x.dims, "f32"), (x.dims, "f32")]


def rope(operands: Operands, attrs: Attrs) -> list[Type]:
    x, cos, sin = (present(v) for v in operands)
    rotary_dim, offset = attrs["rotary_dim"], attrs["offset"]
    assert isinstance(rotary_dim, int) and isinstance(offset, int)
    require(len(x.dims) == 3 and x.dtype == "f32", f"rope takes [rows, heads, head_dim] f32, not {x}")
    head_dim = x.dims[2]
    fits = isinstance(head_dim, int) and rotary_dim % 2 == 0 and rotary_dim > 0 and offset >= 0 and offset + rotary_dim <= head_dim
    require(fits, f"rope: rotary_dim={rotary_dim} offset={offset} do not fit {x}")
    table = (x.dims[0], rotary_dim // 2)
    require(cos.dims == table and sin.dims == table, f"rope: cos {cos} and sin {sin} must be {list(table)}")
    return [(x.dims, "f32")]


def act_mul(operands: Operands, attrs: Attrs) -> list[Type]:
    gate, up = present(operands[0]), present(operands[1])
    require(gate.dims == up.dims, f"act_mul: {gate} and {up} differ")
    return ew_float(operands, attrs)


def softmax(operands: Operands, attrs: Attrs) -> list[Type]:
    x = present(operands[0])
    axis(attrs, len(x.dims))
    require(x.dtype == "f32", f"softmax takes f32, not {x}")
    return [(x.dims, "f32")]


def conv1d(operands: Operands, attrs: Attrs) -> list[Type]:
    """A named length keeps its name whatever the padding: the lint refuses such a graph, this only lets it be built."""
    x, w = present(operands[0]), present(operands[1])
    require(len(x.dims) == 3 and len(w.dims) == 3, f"conv1d takes [batch, channels, length], not {x} by {w}")
    length, taps = x.dims[2], w.dims[2]
    stride, padding, dilation = attrs["stride"], attrs["padding"], attrs["dilation"]
    assert isinstance(taps, int) and isinstance(stride, int) and isinstance(padding, int) and isinstance(dilation, int)
    if isinstance(length, int):
        length = (length + 2 * padding - dilation * (taps - 1) - 1) // stride + 1
    return [((x.dims[0], w.dims[0], length), "f32")]


def attention(operands: Operands, attrs: Attrs) -> list[Type]:
    """Token-major [T, heads, dim], or as traced [1, heads, T, dim] → [1, T, heads, dim]."""
    q, k, v, sinks, slopes = present(operands[0]), present(operands[1]), present(operands[2]), operands[3], operands[4]
    rank = len(q.dims)
    require(rank in (3, 4) and len(k.dims) == len(v.dims) == rank, f"attn.paged takes q, k, v of rank 3 or 4: {q}, {k}, {v}")
    rows, heads = (0, 1) if rank == 3 else (2, 1)
    num_q_heads, num_kv_heads, head_dim = q.dims[heads], k.dims[heads], q.dims[-1]
    require(q.dims[rows] == k.dims[rows] == v.dims[rows] and v.dims[heads] == num_kv_heads, f"attn.paged: {q}, {k}, {v} do not fit")
    require(k.dims[-1] == head_dim, f"attn.paged: head dims of {q} and {k} differ")
    assert isinstance(num_q_heads, int) and isinstance(num_kv_heads, int)
    require(num_q_heads % num_kv_heads == 0, f"attn.paged: {num_q_heads} query heads over {num_kv_heads} KV heads")
    for name, vector, flag in (("sinks", sinks, "has_sinks"), ("alibi_slopes", slopes, "has_slopes")):
        require(vector is None or vector.dims == (num_q_heads,), f"attn.paged: {name} {vector} must be [{num_q_heads}]")
        require(attrs[flag] == (vector is not None), f"attn.paged: {flag}={attrs[flag]} but {name} is {vector}")
    if rank == 3:
        return [((q.dims[0], num_q_heads, v.dims[2]), "f32")]
    require(q.dims[0] == 1, f"attn.paged: {q} must have batch dim 1")
    return [((1, q.dims[2], num_q_heads, v.dims[3]), "f32")]


def experts(operands: Operands, attrs: Attrs) -> list[Type]:
    x, ids, weights, gate_up, down = (present(v) for v in operands[:5])
    gate_up_bias, down_bias = operands[5], operands[6]
    _require_index(ids)
    routed = len(x.dims) == 2 and len(ids.dims) == 2 and weights.dims == ids.dims and ids.dims[0] == x.dims[0]
    require(routed, f"moe.experts: {x}, {ids}, {weights} do not fit")
    require(len(gate_up.dims) == 3 and len(down.dims) == 3, f"moe.experts: {gate_up}, {down} must have 3 dims")
    num_experts, hidden_size, intermediate_size = down.dims
    assert isinstance(intermediate_size, int)
    rows = intermediate_size * (2 if attrs["has_gate"] else 1)
    fits = x.dims[1] == hidden_size and gate_up.dims == (num_experts, rows, hidden_size)
    require(fits, f"moe.experts: {x}, {gate_up}, {down} do not fit")
    has_bias = gate_up_bias is not None and down_bias is not None
    paired = (gate_up_bias is None) == (down_bias is None)
    require(attrs["has_bias"] == has_bias and paired, "moe.experts: has_bias and the biases disagree")
    if has_bias:
        fits = present(gate_up_bias).dims == (num_experts, rows) and present(down_bias).dims == (num_experts, hidden_size)
        require(fits, f"moe.experts: biases {gate_up_bias}, {down_bias} do not fit")
    return [(x.dims, "f32")]


def row_dim(dims: Dims) -> str | None:
    """The named dim among `dims`, if any."""
    return next((dim for dim in dims if dim in NAMED_DIMS), None)  # type: ignore[return-value]


EW_RULES: dict[str, Rule] = (
    dict.fromkeys(("neg", "abs", "square", "relu", "add", "sub", "mul", "floor_div", "remainder", "minimum", "maximum"), ew_same)
    | dict.fromkeys(("sqrt", "rsqrt", "exp", "log", "log1p", "sin", "cos", "tanh", "sigmoid", "erf", "silu", "gelu"), ew_float)
    | dict.fromkeys(("gelu_tanh", "softplus", "floor", "div", "pow"), ew_float)
    | dict.fromkeys(("eq", "ne", "lt", "le", "gt", "ge"), ew_compare)
    | dict.fromkeys(("and", "or", "not"), ew_logical)
    | {"where": ew_where}
)
