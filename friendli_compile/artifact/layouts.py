"""Weight layouts: float32 arrays to the bytes that kernels read, and back (docs/artifact-format.md).

panel16 of [N, K], N padded with zero rows to a multiple of 16; `p` is a panel of 16 output rows:

    f32   [p][k][16]            16 rows side by side
    bf16  [p][k][8 lanes][2]    32-bit lane i: row i in the low half, row i + 8 in the high half
                                (lane << 16 and lane & 0xffff0000 are rows 0…7 and 8…15 as f32)

block8 of codes [N, K] (docs/quantized-weights.md), N padded with rows of scale 0 to a multiple of 8; a 32-bit lane is one row:

    8 bits  [b][K/4][8 rows][4]     4 neighbouring columns
    4 bits  [b][K/8][8 rows][4]     low nibbles: columns 8i … 8i + 3, high nibbles: 8i + 4 … 8i + 7
    scales, zeros  [b][K/G][8]

A leading expert dim stays in front. bf16 is rounded to nearest, ties to even; NaN stays NaN.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..plan.model import BLOCK_ROWS, LANE_BYTES, PANEL_ROWS, WeightSpec
from ..quantize.codes import scale_from_storage, scale_to_storage
from ..quantize.rounding import Rounded, dequantize

Array = np.ndarray
_LANES = PANEL_ROWS // 2
_CHUNK_ELEMENTS = 1 << 16  # rounding goes through the tensor in pieces: temporaries stay in the cache
_INFINITY_BITS = 0x7F800000
_NAN = 0x7FC0
_NUMPY_DTYPES = {"f32": np.float32, "f16": np.float16, "u8": np.uint8, "bf16": np.uint16}


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


def pack_quantized(rounded: Rounded, spec: WeightSpec) -> tuple[Array, ...]:
    """A rounded matrix, its rows those of all experts one behind the other, as the tensors of `spec.tensors`."""
    assert spec.format is not None
    parts = [_pack_codes(rounded.codes, spec)]
    parts.append(_pack_groups(scale_to_storage(rounded.scales, spec.format.scale_dtype), spec))
    if rounded.zeros is not None:
        parts.append(_pack_groups(rounded.zeros, spec))
    return tuple(part.reshape(tensor.dims) for part, tensor in zip(parts, spec.tensors, strict=True))


def unpack_quantized(tensors: Mapping[str, Array], spec: WeightSpec) -> Array:
    """The values that the kernels see [*spec.dims] f32, from the flat tensors (by name) of a weight in layout block8."""
    assert spec.format is not None
    stored = [tensors[tensor.name].reshape(tensor.dims) for tensor in spec.tensors]
    scales = scale_from_storage(_unpack_groups(stored[1], spec), spec.format.scale_dtype)
    zeros = _unpack_groups(stored[2], spec) if spec.format.has_zeros else None
    return dequantize(Rounded(_unpack_codes(stored[0], spec), scales, zeros), spec.format).reshape(spec.dims)


def from_bytes(data: Array, dtype: str) -> Array:
    """Bytes (u8) of a weight file as an array of a stored dtype; bf16 as its bits."""
    return data.view(_NUMPY_DTYPES[dtype])


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


def _padded(rows: Array, spec: WeightSpec) -> Array:
    """[E·N, C] → [E, blocks, 8, C], rows of each expert padded with zeros (a scale of 0 makes any code 0)."""
    num_rows = spec.dims[-2]
    experts = rows.reshape(-1, num_rows, rows.shape[-1])
    missing = -num_rows % BLOCK_ROWS
    if missing:
        experts = np.pad(experts, ((0, 0), (0, missing), (0, 0)))
    return experts.reshape(len(experts), -1, BLOCK_ROWS, rows.shape[-1])


def _unpadded(blocks: Array, spec: WeightSpec) -> Array:
    """The inverse of `_padded`."""
    experts = blocks.reshape(len(blocks), -1, blocks.shape[-1])
    return experts[:, : spec.dims[-2]].reshape(-1, blocks.shape[-1])


def _pack_codes(codes: Array, spec: WeightSpec) -> Array:
    assert spec.format is not None
    if spec.format.bits == 4:
        halves = codes.reshape(len(codes), -1, 2, LANE_BYTES)
        codes = (halves[:, :, 0] | halves[:, :, 1] << 4).reshape(len(codes), -1)
    lanes = _padded(np.ascontiguousarray(codes).view(np.uint32), spec)
    return np.ascontiguousarray(lanes.swapaxes(-1, -2)).view(np.uint8)


def _unpack_codes(packed: Array, spec: WeightSpec) -> Array:
    assert spec.format is not None
    *_, num_blocks, num_lanes, _, _ = packed.shape
    lanes = np.ascontiguousarray(packed).view(np.uint32).reshape(-1, num_blocks, num_lanes, BLOCK_ROWS).swapaxes(-1, -2)
    codes = np.ascontiguousarray(_unpadded(lanes, spec)).view(np.uint8)
    if spec.format.bits == 8:
        return codes
    nibbles = codes.reshape(len(codes), -1, 1, LANE_BYTES)
    return np.concatenate([nibbles & 15, nibbles >> 4], axis=2).reshape(len(codes), -1)


def _pack_groups(groups: Array, spec: WeightSpec) -> Array:
    return np.ascontiguousarray(_padded(groups, spec).swapaxes(-1, -2))


def _unpack_groups(packed: Array, spec: WeightSpec) -> Array:
    *_, num_blocks, num_groups, _ = packed.shape
    return _unpadded(packed.reshape(-1, num_blocks, num_groups, BLOCK_ROWS).swapaxes(-1, -2), spec)
