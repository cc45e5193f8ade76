"""Mixed precision: which units get more bits until the model fits its budget.

Every unit has levels: as it is, 8 bits, unquantized; each takes more bytes than the one before and costs less KL divergence. What a unit
costs at its first level was measured (layer_figures.py); at a later one it is that times the ratio of the squared output errors. The steps
between levels are ordered by what they gain per byte, over all units:

    steps     lm_head 4→8 bits   layer 3 down 4→8   lm_head 8→16   layer 0 qkv 4→16 …        the first k of them are taken
    models    [ as it is ]──1──[ ]──2──[ ]──3──[ ]──4──[ ] … [ unquantized ]                 the smallest k that fits is searched

A step that gains less per byte than the one after it is joined with that one. k is found by doubling and then halving, each time on a
model put together from packings that exist (variants.py): nothing is packed during the search, and a few runs settle hundreds of layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .packed_run import Runnable
from .variants import Unit, unit_bytes, variant


@dataclass(frozen=True)
class Level:
    """One packing of all units that have it: `model` holds their weights."""

    name: str  # for the user: "8bit", "none"
    model: Runnable


@dataclass(frozen=True)
class Option:
    """A level that a unit may have, and what it costs there."""

    level: int  # index into the levels; 0: as it is
    damage: float
    num_bytes: int


@dataclass(frozen=True)
class Step:
    """Raise `unit` to `level`."""

    unit: int  # index
    level: int
    gain: float  # of damage, more than 0
    num_bytes: int  # more than before; may be negative

    @property
    def density(self) -> float:
        """Gain per byte."""
        return self.gain / max(self.num_bytes, 1)


def options_of(units: Sequence[Unit], levels: Sequence[Level], damages: Sequence[Sequence[float | None]]) -> list[list[Option]]:
    """Per unit its levels. `damages[level][unit]` is None where the unit does not have the level."""
    return [
        [
            Option(level, damage, unit_bytes(levels[level].model, unit))
            for level, row in enumerate(damages)
            if (damage := row[number]) is not None
        ]
        for number, unit in enumerate(units)
    ]


def order_steps(options: Sequence[Sequence[Option]]) -> list[Step]:
    """All steps, the best first. Those of one unit are in the order of its levels."""
    steps = [step for number, own in enumerate(options) for step in _steps_of(number, own)]
    return sorted(steps, key=lambda step: (-step.density, step.level, step.unit))


def levels_after(steps: Sequence[Step]) -> dict[int, int]:
    """Unit → level, for the units that these steps raise."""
    return {step.unit: step.level for step in steps}


def raised_model(levels: Sequence[Level], units: Sequence[Unit], steps: Sequence[Step]) -> Runnable:
    """The model as it is (level 0), with these steps taken."""
    chosen = levels_after(steps)
    by_level = [(level.model, [units[u] for u, number in chosen.items() if number == index]) for index, level in enumerate(levels)]
    return variant(levels[0].model, [(model, members) for model, members in by_level if members])


def fewest(count: int, fits: Callable[[int], bool]) -> int | None:
    """The smallest k in 1 … count with fits(k), where fits(k) makes fits(k + 1) true; None where not even `count` fits."""
    low, high = 0, 1  # `low` does not fit
    while high < count and not fits(high):
        low, high = high, min(2 * high, count)
    if high >= count:
        high = count
        if count == 0 or not fits(count):
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def _steps_of(unit: int, options: Sequence[Option]) -> list[Step]:
    """The lower hull of damage over bytes: each step gains more per byte than the next."""
    steps: list[Step] = []
    current = options[0]
    rest = list(options[1:])
    while True:
        better = [option for option in rest if option.level > current.level and option.damage < current.damage]
        if not better:
            return steps
        candidates = [Step(unit, o.level, current.damage - o.damage, o.num_bytes - current.num_bytes) for o in better]
        best = max(candidates, key=lambda step: (step.density, -step.level))
        steps.append(best)
        current = next(option for option in rest if option.level == best.level)
