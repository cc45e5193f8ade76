"""Reads the header of a safetensors file, and single tensors of it as float32.

    [8 bytes: header length][header: JSON {name: {dtype, shape, data_offsets}}][data]

Own code because the errors matter: a truncated, corrupt or foreign file is named with the bytes that are missing. One tensor is read
at a time; nothing is kept. Format: https://github.com/huggingface/safetensors
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
STORAGE_DTYPES = {"BF16": "bf16", "F16": "f16", "F32": "f32"}  # those that are read; others may be there as long as nobody asks
ITEM_BYTES = {"BF16": 2, "F16": 2, "F32": 4}
DOWNLOAD_AGAIN = "download the file again; it is cut off or damaged"


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor is and what it is; `offset` counts from the start of the file."""

    name: str
    file: Path
    dtype: str  # as the file spells it: BF16, F16, F32, F8_E4M3 …
    shape: tuple[int, ...]
    offset: int
    num_bytes: int

    @property
    def storage_dtype(self) -> str:
        """bf16, f16 or f32. Raises CheckpointError for any other dtype."""
        if self.dtype not in STORAGE_DTYPES:
            hint = "use an unquantized checkpoint; bf16, fp16 and fp32 are read"
            raise CheckpointError(f"'{self.name}' has dtype {self.dtype}, which is not read", where=str(self.file), hint=hint)
        return STORAGE_DTYPES[self.dtype]

    def read(self) -> np.ndarray:
        """The tensor as float32, which holds every stored value exactly. Raises CheckpointError for NaN and infinity."""
        raw = self.read_raw()
        values = (raw.astype(np.uint32) << 16).view(np.float32) if self.dtype == "BF16" else raw.astype(np.float32, copy=False)
        require_finite(values, self.name, str(self.file))
        return values

    def read_raw(self) -> np.ndarray:
        """The stored bits: float32, float16, or uint16 for bf16."""
        count = math.prod(self.shape)
        raw: np.ndarray = np.fromfile(self.file, dtype=_RAW_DTYPES[self.storage_dtype], count=count, offset=self.offset)
        if raw.size != count:
            raise CheckpointError(f"'{self.name}' ends after {raw.size} of {count} numbers", where=str(self.file), hint=DOWNLOAD_AGAIN)
        return raw.reshape(self.shape)


_RAW_DTYPES: dict[str, np.dtype[Any]] = {"bf16": np.dtype("<u2"), "f16": np.dtype("<f2"), "f32": np.dtype("<f4")}


def require_finite(values: np.ndarray, name: str, where: str) -> None:
    """Raises CheckpointError if an element is NaN or infinite: only then, or where it overflows, is a sum of squares not finite."""
    flat = values.reshape(-1)
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(np.dot(flat, flat)):
            return
    num_nan, num_infinite = int(np.isnan(flat).sum()), int(np.isinf(flat).sum())
    if num_nan or num_infinite:
        counts = " and ".join(f"{count} {what}" for count, what in ((num_nan, "NaN"), (num_infinite, "infinite")) if count)
        place = [int(i) for i in np.unravel_index(int(np.argmin(np.isfinite(flat))), values.shape)]
        hint = DOWNLOAD_AGAIN if num_nan else "its values overflowed, in training or when it was converted; use a sound checkpoint"
        raise CheckpointError(f"'{name}' holds {counts} of {flat.size} values, the first at {place}", where=where, hint=hint)


def read_header(file: Path) -> dict[str, TensorEntry]:
    """Every tensor of a file by name. Raises CheckpointError: missing, truncated, corrupt."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            start = stream.read(8)
            header_bytes = int.from_bytes(start, "little")
            if len(start) < 8 or header_bytes > min(MAX_HEADER_BYTES, size - 8):
                what = (
                    f"'{file.name}' has {size} bytes, too few for its header of {header_bytes} bytes"
                    if len(start) == 8
                    else f"'{file.name}' is empty"
                )
                raise CheckpointError(what, where=str(file), hint=DOWNLOAD_AGAIN)
            text = stream.read(header_bytes)
    except OSError as error:
        raise CheckpointError(
            f"'{file.name}' cannot be read: {error.strerror}", where=str(file), hint="check the path and its permissions"
        ) from None
    try:
        header = json.loads(text)
        items = [(name, entry) for name, entry in header.items() if name != "__metadata__"]
        return {name: _entry(name, entry, file, 8 + header_bytes, size) for name, entry in items}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"the header of '{file.name}' is damaged: {error}", where=str(file), hint=DOWNLOAD_AGAIN) from None


def _entry(name: str, entry: dict[str, Any], file: Path, data_start: int, size: int) -> TensorEntry:
    """One header entry, with its extent checked against the file."""
    begin, end = (int(offset) for offset in entry["data_offsets"])
    shape = tuple(int(dim) for dim in entry["shape"])
    dtype = str(entry["dtype"])
    if not 0 <= begin <= end:
        raise ValueError(f"'{name}' has offsets {begin}, {end}")
    if data_start + end > size:
        missing = data_start + end - size
        raise CheckpointError(
            f"'{file.name}' is truncated: '{name}' needs {missing} bytes more than the file has", where=str(file), hint=DOWNLOAD_AGAIN
        )
    if dtype in ITEM_BYTES and math.prod(shape) * ITEM_BYTES[dtype] != end - begin:
        raise ValueError(f"'{name}' of shape {list(shape)} and dtype {dtype} has {end - begin} bytes")
    return TensorEntry(name, file, dtype, shape, data_start + begin, end - begin)
