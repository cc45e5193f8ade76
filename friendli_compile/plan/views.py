"""View algebra: what a reshape, permute, slice or expand does to (dims, strides, offset), where it needs no copy.

All functions are pure: `Strided -> Strided`, or None when the result is not a strided view. Strides and offsets are in elements.
The row dim (a name) is one dim like any other here: it is never merged or split.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from .model import Dims


@dataclass(frozen=True, slots=True)
class Strided:
    """Positions of elements relative to the start of a buffer, a weight or an input."""

    dims: Dims
    strides: tuple[int, ...]
    offset: int = 0

    @property
    def is_dense_in_row(self) -> bool:
        """Row-major without gaps, once the leading row dim is put aside."""
        dims, strides = self.dims, self.strides
        if dims and isinstance(dims[0], str):
            dims, strides = dims[1:], strides[1:]
        return all(dim == 1 or stride == want for dim, stride, want in zip(dims, strides, contiguous_strides(dims), strict=True))


def contiguous_strides(dims: Dims) -> tuple[int, ...]:
    """Row-major strides of integer dims."""
    strides: list[int] = []
    step = 1
    for dim in reversed(dims):
        strides.append(step)
        assert isinstance(dim, int)
        step *= dim
    return tuple(reversed(strides))


def permute(x: Strided, perm: tuple[int, ...]) -> Strided:
    return Strided(tuple(x.dims[i] for i in perm), tuple(x.strides[i] for i in perm), x.offset)


def slice_(x: Strided, dim: int, start: int, stop: int, step: int) -> Strided:
    dim %= len(x.dims)
    length = -(-(stop - start) // step)
    dims = (*x.dims[:dim], length, *x.dims[dim + 1 :])
    strides = (*x.strides[:dim], x.strides[dim] * step, *x.strides[dim + 1 :])
    return Strided(dims, strides, x.offset + start * x.strides[dim])


def expand(x: Strided, dims: Dims) -> Strided:
    """numpy broadcast: new dims and dims of size 1 get stride 0."""
    missing = len(dims) - len(x.dims)
    strides = [0] * missing
    for have, want, stride in zip(x.dims, dims[missing:], x.strides, strict=True):
        strides.append(stride if have == want else 0)
    return Strided(dims, tuple(strides), x.offset)


def reshape(x: Strided, dims: Dims) -> Strided | None:
    """Row-major reshape without moving elements, or None.

    Dims are walked from both shapes in runs of equal size; a run is a view when its dims in `x` follow each other without gaps.
    """
    old = [(dim, stride) for dim, stride in zip(x.dims, x.strides, strict=True) if dim != 1]
    strides: list[int] = []
    position = 0
    for dim_run in _runs([dim for dim, _ in old], [dim for dim in dims if dim != 1]):
        num_old, new_dims = dim_run
        group = old[position : position + num_old]
        position += num_old
        for (_, outer), (inner_dim, inner) in itertools.pairwise(group):
            if isinstance(inner_dim, str) or outer != inner * inner_dim:
                return None
        step = group[-1][1]
        group_strides: list[int] = []
        for dim in reversed(new_dims):
            group_strides.append(step)
            step *= dim if isinstance(dim, int) else 1
        strides.extend(reversed(group_strides))
    remaining = iter(strides)
    return Strided(dims, tuple(1 if dim == 1 else next(remaining) for dim in dims), x.offset)


def _runs(old: list[int | str], new: list[int | str]) -> list[tuple[int, list[int | str]]]:
    """Splits both shapes into the shortest runs that hold equally many elements: (number of old dims, new dims)."""
    runs: list[tuple[int, list[int | str]]] = []
    i = j = 0
    while i < len(old) and j < len(new):
        if isinstance(old[i], str) or isinstance(new[j], str):
            assert old[i] == new[j], "the row dim stays a dim of its own"
            runs.append((1, [new[j]]))
            i, j = i + 1, j + 1
            continue
        start_i, start_j = i, j
        have, want = int(old[i]), int(new[j])
        i, j = i + 1, j + 1
        while have != want:
            if have < want:
                have *= int(old[i])
                i += 1
            else:
                want *= int(new[j])
                j += 1
        runs.append((i - start_i, new[start_j:j]))
    return runs
