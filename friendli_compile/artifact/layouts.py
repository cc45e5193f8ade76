"""Weight layouts: float32 arrays to the bytes that kernels read, and back (docs/artifact-format.md).

panel16 of [N, K], N padded with zero rows to a multiple of 16; `p` is a panel of 16 output rows:

    f32   [p][k][16]            16 rows side by side
    bf16  [p][k][8 lanes][2]    32-bit lane i: row i in the low half, row i + 8 in the high half
                                (lane << 16 and lane & 0xffff0000 are rows 0…7 and 8…15 as f32)

A leading expert dim stays in front. bf16 is rounded to nearest, ties to even; NaN stays NaN.
"""

from __future__ import annotations

import numpy as np

from ..plan.model import PANEL_ROWS, WeightSpec

Array = np.ndarray
_LANES = PANEL_ROWS // 2
_CHUNK_ELEMENTS = 1 << 16  # rounding goes through the tensor in pieces: temporaries stay in the cache
_INFINITY_BITS = 0x7F800000
_NAN = 0x7FC0


def pack(array: Array, spec: WeightSpec) -> Array:
    """`array` (the logical tensor) as stored: C-contiguous, `spec.packed_dims`; bf16 as uint16."""
    if array.shape != spec.dims:
        raise ValueError(f"'{spec.name}' was computed as {list(array.shape)}, the plan has {list(spec.dims)}")
    if spec.layout == "row_major":
        return np.ascontiguousarray(to_bf16(array) if spec.dtype == "bf16" else array)
    packed = np.empty(spec.packed_dims, np.uint16 if spec.dtype == "bf16" else array.dtype)
    matrices, targets = array.reshape(-1, *array.shape[-2:]), packed.reshape(-1, *packed.shape[-3:])
    for matrix, target in zip(matrices, targets, strict=True):
        _pack_matrix(matrix, target)
    return packed


def unpack(packed: Array, spec: WeightSpec) -> Array:
    """The logical tensor as float32: what a kernel sees. The inverse of `pack`, up to rounding."""
    if spec.layout == "row_major":
        return from_bf16(packed) if spec.dtype == "bf16" else packed
    *lead, num_rows, num_columns = spec.dims
    panels = packed.reshape(*lead, -1, num_columns, PANEL_ROWS)
    if spec.dtype == "bf16":
        lanes = panels.reshape(*panels.shape[:-1], _LANES, 2)
        panels = np.swapaxes(lanes, -1, -2).reshape(panels.shape)
    rows = np.swapaxes(panels, -1, -2).reshape(*lead, -1, num_columns)[..., :num_rows, :]
    return from_bf16(rows) if spec.dtype == "bf16" else np.ascontiguousarray(rows)


def to_bf16(array: Array) -> Array:
    """float32 → the upper halves of its bits (uint16), rounded to nearest, ties to even."""
    flat = np.ascontiguousarray(array, dtype=np.float32).reshape(-1).view(np.uint32)
    result = np.empty(flat.shape, np.uint16)
    for start in range(0, flat.size, _CHUNK_ELEMENTS):
        bits = flat[start : start + _CHUNK_ELEMENTS]
        rounded = bits >> 16
        rounded &= 1
        rounded += bits
        rounded += 0x7FFF
        rounded >>= 16
        rounded[(bits & 0x7FFFFFFF) > _INFINITY_BITS] = _NAN
        result[start : start + _CHUNK_ELEMENTS] = rounded
    return result.reshape(array.shape)


def from_bf16(bits: Array) -> Array:
    """The float32 values of bf16 bits (uint16)."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def round_to_bf16(array: Array) -> Array:
    """float32 → the nearest float32 that bf16 can hold; a writable contiguous array is rounded where it is."""
    if not (array.flags.writeable and array.flags.c_contiguous and array.dtype == np.float32):
        return from_bf16(to_bf16(array))
    flat = array.reshape(-1)
    for start in range(0, flat.size, _CHUNK_ELEMENTS):
        chunk = flat[start : start + _CHUNK_ELEMENTS]
        chunk[...] = from_bf16(to_bf16(chunk))
    return array


def _pack_matrix(rows: Array, panels: Array) -> None:
    """[N, K] f32 → [N/16, K, 16], some panels at a time: nothing of the size of the tensor is held beside it and the result."""
    num_columns = rows.shape[1]
    step = max(1, _CHUNK_ELEMENTS // (PANEL_ROWS * num_columns))  # panels
    for start in range(0, len(panels), step):
        part = rows[start * PANEL_ROWS : (start + step) * PANEL_ROWS]
        missing = -len(part) % PANEL_ROWS
        if missing:
            part = np.concatenate([part, np.zeros((missing, num_columns), rows.dtype)])
        if panels.dtype == np.uint16:
            targets, columns = panels[start : start + step].view(np.uint32), _lanes(part)
        else:
            targets, columns = panels[start : start + step], part.reshape(-1, PANEL_ROWS, num_columns)
        for target, column in zip(targets, columns, strict=True):
            target[...] = column.T


def _lanes(rows: Array) -> Array:
    """[16p, K] f32 → [p, 8, K] 32-bit lanes; transposing whole lanes is several times faster than transposing 16-bit halves."""
    halves = to_bf16(rows).reshape(-1, 2, _LANES, rows.shape[1])
    lanes = halves[:, 1].astype(np.uint32)
    lanes <<= 16
    lanes |= halves[:, 0]
    return lanes
