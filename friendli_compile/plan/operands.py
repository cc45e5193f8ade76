"""What each kernel asks of its operands: one row per call op, in the operand order of docs/ir.md.

rows     last stride 1 (or a last dim of 1), any other strides, 0 included
any      any strides
dense    row-major without gaps inside a row
matrix   a static weight, packed panel16 in the storage dtype, or block8 where it is quantized
table    a static weight in the storage dtype: row_major, or the panel16 of the linear layer that shares it; block8 where it is quantized
vector   f32; a static weight (row_major) or computed
"""

from __future__ import annotations

ROWS, ANY, DENSE, MATRIX, TABLE, VECTOR = "rows", "any", "dense", "matrix", "table", "vector"

OPERANDS: dict[str, tuple[str, ...]] = {
    "nn.linear": (ROWS, MATRIX, VECTOR),
    "nn.embedding": (TABLE, DENSE),
    "nn.rms_norm": (ROWS, VECTOR),
    "nn.layer_norm": (ROWS, VECTOR, VECTOR),
    "nn.add_rms_norm": (ROWS, ROWS, VECTOR),
    "nn.add_layer_norm": (ROWS, ROWS, VECTOR, VECTOR),
    "nn.rope": (ROWS, ROWS, ROWS),
    "nn.act_mul": (ROWS, ROWS),
    "nn.softmax": (ROWS,),
    "attn.paged": (ROWS, ROWS, ROWS, VECTOR, VECTOR),
    "moe.experts": (ROWS, ROWS, ROWS, MATRIX, MATRIX, VECTOR, VECTOR),
    "ew.program": (ANY,),
    "tensor.copy": (ANY,),
    "tensor.gather": (ROWS, ROWS),
    "tensor.scatter": (ROWS, ROWS, ROWS),
    "tensor.gather_rows": (ROWS, DENSE),
    "tensor.topk": (ROWS,),
    "tensor.matmul": (ROWS, ROWS),
    "tensor.cumsum": (ROWS,),
    "tensor.full": (),
    "tensor.iota": (),
    "reduce.sum": (ROWS,),
    "reduce.mean": (ROWS,),
    "reduce.max": (ROWS,),
    "reduce.min": (ROWS,),
    "reduce.argmax": (ROWS,),
}

# Attributes that the views of a call already say.
IMPLIED_ATTRS = {
    "tensor.full": ("dims", "dtype"),
    "tensor.iota": ("dims", "dtype"),
    "attn.paged": ("has_sinks", "has_slopes"),
    "moe.experts": ("has_bias",),
}


def requirement(op: str, position: int) -> str:
    """What operand `position` of `op` must be; the last row entry repeats for variadic ops."""
    row = OPERANDS[op]
    return row[min(position, len(row) - 1)]
