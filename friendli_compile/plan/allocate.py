"""Liveness-based allocation: buffers whose lives do not overlap share memory.

Each arena is allocated on its own. Buffers are placed in the order in which they are born, each into the smallest gap between the buffers
that live at that time. All sizes are multiples of 64 bytes, so all offsets are.

    bytes ▲  ┌────c────┐
          │┌─b──┐ ┌──d───
          │└────┘ └──────      d reuses b's place
          └──────────────▶ calls
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .model import FIXED_ARENA, ROW_DIMS, Buffer


@dataclass(slots=True)
class Life:
    """A buffer to be placed: alive from call `born` to call `dies`, both included."""

    arena: str
    row_bytes: int
    born: int
    dies: int


def allocate(lives: Sequence[Life]) -> tuple[tuple[Buffer, ...], Mapping[str, int]]:
    """The buffers, in the order of `lives`, and the bytes per row of each arena."""
    sizes = dict.fromkeys((*ROW_DIMS, FIXED_ARENA), 0)
    offsets: dict[int, int] = {}
    for arena in sizes:
        members = [i for i, life in enumerate(lives) if life.arena == arena]
        members.sort(key=lambda i: (lives[i].born, i))
        placed: list[int] = []
        for i in members:
            placed = [j for j in placed if lives[j].dies >= lives[i].born]
            offsets[i] = _smallest_gap(lives[i].row_bytes, sorted((offsets[j], lives[j].row_bytes) for j in placed))
            placed.append(i)
            sizes[arena] = max(sizes[arena], offsets[i] + lives[i].row_bytes)
    return tuple(Buffer(life.arena, offsets[i], life.row_bytes) for i, life in enumerate(lives)), sizes


def _smallest_gap(num_bytes: int, occupied: list[tuple[int, int]]) -> int:
    """Offset of the tightest gap that holds `num_bytes`; behind everything when there is none."""
    best_offset, best_slack = -1, -1
    end = 0
    for offset, size in occupied:
        slack = offset - end - num_bytes
        if slack >= 0 and (best_slack < 0 or slack < best_slack):
            best_offset, best_slack = end, slack
        end = max(end, offset + size)
    return best_offset if best_slack >= 0 else end
