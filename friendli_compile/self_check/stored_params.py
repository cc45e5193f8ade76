"""The parameters that an artifact's quantized weights stand for: what transformers must compute with to be compared with it.

    tensors of a packed weight ─▶ dequantized [N, K] f32 ─▶ its expression backwards ─▶ {parameter: values}

They are read from the artifact, not rounded again, so packing and layout are checked as well: values that are not those of the checkpoint,
up to the rounding of their format, are refused before anything is run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np

from ..artifact.layouts import from_bytes, unpack_quantized
from ..errors import SelfCheckFailed
from ..plan.model import WeightSpec
from ..plan.movement import params_of
from ..quantize.schemes import Format

Array = np.ndarray
WeightFiles = Mapping[str, tuple[str, int, int]]  # name → (path, offset, bytes)
MAX_RELATIVE_ERROR = {4: 0.35, 8: 0.08}  # by bits; rounding that is right gives 0.1 and 0.01, misplaced elements more than 0.5


class StoredParams:
    """Reads quantized parameters, one packed weight at a time."""

    def __init__(self, specs: Iterable[WeightSpec], weights: WeightFiles) -> None:
        self._spec_of = {param.name: spec for spec in specs if spec.format is not None for param in spec.expression.params}
        self._weights = weights
        self._last: tuple[str, dict[str, Array]] = ("", {})

    @property
    def names(self) -> tuple[str, ...]:
        """Parameters that are stored quantized; those of one weight are neighbours."""
        return tuple(self._spec_of)

    def dequantized(self, name: str, original: Array) -> Array:
        """The values of a parameter in the artifact; `original` where no weight stores them.

        Raises SelfCheckFailed where they are others."""
        spec = self._spec_of[name]
        if self._last[0] != spec.name:
            self._last = (spec.name, params_of(spec.expression, self._read(spec)))
        stored = self._last[1][name]
        values = np.where(np.isnan(stored), original, stored).astype(np.float32)
        assert spec.format is not None
        _require_near(name, values, original, spec.format)
        return values

    def _read(self, spec: WeightSpec) -> Array:
        tensors = {}
        for tensor in spec.tensors:
            path, offset, num_bytes = self._weights[tensor.name]
            tensors[tensor.name] = from_bytes(np.fromfile(path, np.uint8, num_bytes, offset=offset), tensor.dtype)
        return unpack_quantized(tensors, spec)


def _require_near(name: str, values: Array, original: Array, fmt: Format) -> None:
    size = float(np.square(original, dtype=np.float64).sum())
    error = float(np.square(values - original, dtype=np.float64).sum())
    limit = MAX_RELATIVE_ERROR[fmt.bits] * max(1.0, math.sqrt(fmt.group * fmt.rows_per_scale) / 64)
    if error > limit**2 * size:
        what = (
            f"'{name}' is stored with a relative error of {math.sqrt(error / size) if size else math.inf:.2g}, expected at most {limit:.2g}"
        )
        raise SelfCheckFailed(
            what, where=f"{fmt.dtype} in groups of {fmt.group}", hint="keep it: --quantize-layer 'NAME=none'; please report"
        )
