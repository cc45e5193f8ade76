"""Rounds the weights of a model: with error feedback where inputs of the layer are known and it is worth it, by weight error elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from .feedback import round_with_feedback, takes_feedback
from .rounding import Rounded, round_matrix
from .schemes import Format

Array = np.ndarray


@dataclass(frozen=True, slots=True)
class Rounding:
    """How the weights of a model are rounded. `inputs(weight name)`: some inputs [T, K] f32 of the layer, None where unknown."""

    search: bool = True  # of scales; False: plain rounding to nearest
    inputs: Callable[[str], Array | None] | None = None

    def round(self, name: str, array: Array, fmt: Format) -> Rounded:
        """`array` [N, K], or [E, N, K], finite: then the rows of all experts come back one behind the other."""
        with threadpool_limits(
            1, "blas"
        ):  # our threads share the rows; BLAS's own would wait for each other, several times as long as they work
            return self._round(name, array, fmt)

    def _round(self, name: str, array: Array, fmt: Format) -> Rounded:
        matrix = np.ascontiguousarray(array).reshape(-1, array.shape[-1])
        known = self.inputs(name) if self.search and self.inputs is not None and takes_feedback(fmt) else None
        if known is not None:
            return round_with_feedback(matrix, fmt, known)
        if fmt.rows_per_scale == 1 or array.ndim == 2:
            return round_matrix(matrix, fmt, search=self.search)
        parts = [round_matrix(expert, fmt, search=self.search) for expert in array]  # blocks of rows do not reach over experts
        return Rounded(np.concatenate([part.codes for part in parts]), np.concatenate([part.scales for part in parts]))
