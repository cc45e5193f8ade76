"""The gate: measure a quantized model, compare with the budget, raise the precision of the worst units or refuse.

measure ──within the budget──▶ Quality
   │ over
   ▼
search what would fit (raising.py) ──▶ --auto-mixed: raise it, measure what was written ──▶ Quality
                                   └─▶ else QualityGateFailed: what costs most, what would fit
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ..errors import QualityGateFailed
from .budget import Budget, excesses, is_within, require_provable, suspicions
from .compare import Figures, Reference, compare
from .figures import MIN_BLOCKS, num_blocks_of
from .layer_figures import UnitFigures, relative_errors, unit_figures
from .packed_run import Runnable
from .probes import ProbeSet
from .raising import Level, Step, fewest, levels_after, options_of, order_steps, raised_model
from .variants import Unit, units_of

Progress = Callable[[str, float], None]
MIDDLE_PRESET = "8bit"  # between as-it-is and unquantized
UNQUANTIZED = "none"
MAX_SHOWN = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityOptions:
    """What the command line says."""

    budget: Budget = field(default_factory=Budget)
    auto_mixed: bool = False
    probe: Path | None = None
    num_tokens: int | None = None  # None: by the size of the model


class Packings(Protocol):
    """Packings of one model, all with the same calls."""

    def artifact(self) -> Runnable:
        """What will be emitted, as it stands now."""

    def reference(self) -> Runnable:
        """Nothing quantized, in the precision of the checkpoint."""

    def unquantized(self) -> Runnable:
        """Nothing quantized, in the precision that unquantized weights of the artifact have."""

    def packed_as(self, preset: str, weights: Collection[str]) -> Runnable | None:
        """Those of `weights` that the preset stores otherwise than the artifact does; None where there are none."""

    def rewrite(self, presets: Mapping[str, str]) -> None:
        """Packs the artifact again with these weights (name → preset) changed."""


@dataclass(frozen=True)
class Raised:
    """A unit that --auto-mixed gave more bits."""

    weights: tuple[str, ...]
    preset: str
    added_bytes: int

    def to_json(self) -> dict[str, Any]:
        return {"weights": list(self.weights), "to": self.preset, "added_bytes": self.added_bytes}


@dataclass(frozen=True)
class Quality:
    """What was measured on the artifact as it is emitted."""

    figures: Figures
    units: tuple[UnitFigures, ...]
    raised: tuple[Raised, ...]
    warnings: tuple[str, ...]


def run_gate(packings: Packings, probes: ProbeSet, options: QualityOptions, num_params: int, progress: Progress | None = None) -> Quality:
    """Raises QualityGateFailed where the budget is not met, and FmoError where so few tokens cannot show that it is."""
    report = progress or (lambda what, fraction: None)
    require_enough(probes)
    require_provable(options.budget, probes.num_scored)
    reference = Reference(packings.reference(), probes.sequences)
    figures, units = _measure(packings, reference, probes, num_params, report)
    raised: list[Raised] = []
    if not is_within(options.budget, figures.overall):
        search = _Search(packings, reference, probes, options.budget, units)
        steps = search.run(report)
        if steps is None:
            raise _no_precision_fits(options.budget, search.best or figures)
        raised = search.raised(steps)
        if not options.auto_mixed:
            raise _refused(options.budget, figures, units, raised)
        packings.rewrite({name: change.preset for change in raised for name in change.weights})
        figures, units = _measure(packings, reference, probes, num_params, report)
        if not is_within(options.budget, figures.overall):
            raise _refused(options.budget, figures, units, [])
    warnings = () if options.budget.is_given else tuple(suspicions(figures.overall))
    return Quality(figures, tuple(units), tuple(raised), warnings)


def require_enough(probes: ProbeSet) -> None:
    """Raises QualityGateFailed where the probes have no interval."""
    num_blocks = num_blocks_of([len(tokens) - 1 for tokens in probes.sequences])
    if num_blocks < MIN_BLOCKS:
        what = f"there are {probes.num_scored} probe tokens in {num_blocks} blocks; {MIN_BLOCKS} are needed for an interval"
        raise QualityGateFailed(what, where="quality gate", hint="raise --max-context or --probe-tokens, or compile with --no-quality")


def worst_first(units: Sequence[UnitFigures]) -> list[UnitFigures]:
    return sorted(units, key=lambda figures: -figures.share)


def _measure(
    packings: Packings, reference: Reference, probes: ProbeSet, num_params: int, report: Progress
) -> tuple[Figures, list[UnitFigures]]:
    artifact = packings.artifact()
    figures = compare(reference, artifact, probes, lambda what, done: report(f"end to end: {what}", done))
    units = units_of(packings.reference().plan, artifact.plan)
    return figures, unit_figures(packings.reference(), artifact, units, probes, num_params, report)


class _Search:
    """What must be raised so that the budget is met."""

    def __init__(self, packings: Packings, reference: Reference, probes: ProbeSet, budget: Budget, figures: Sequence[UnitFigures]) -> None:
        self.best: Figures | None = None  # of the last model that was tried
        self._packings, self._reference, self._probes, self._budget = packings, reference, probes, budget
        self._figures = list(figures)
        self._units = [each.unit for each in figures]
        self._levels: list[Level] = []

    def run(self, report: Progress) -> list[Step] | None:
        """The steps to take; None where no precision fits."""
        report("what would fit", 0.0)
        self._levels, damages = self._levels_and_damages()
        self._options = options_of(self._units, self._levels, damages)
        steps = order_steps(self._options)
        tries = 0

        def fits(count: int) -> bool:
            nonlocal tries
            tries += 1
            model = raised_model(self._levels, self._units, steps[:count])
            self.best = compare(self._reference, model, self._probes, lambda what, done: report(f"what would fit, try {tries}", done))
            return is_within(self._budget, self.best.overall)

        count = fewest(len(steps), fits)
        return None if count is None else steps[:count]

    def raised(self, steps: Sequence[Step]) -> list[Raised]:
        """What the steps change, in the order of the units."""
        changes = []
        for unit, level in sorted(levels_after(steps).items()):
            num_bytes = {option.level: option.num_bytes for option in self._options[unit]}
            changes.append(Raised(self._units[unit].weights, self._levels[level].name, num_bytes[level] - num_bytes[0]))
        return changes

    def _levels_and_damages(self) -> tuple[list[Level], list[list[float | None]]]:
        """The levels, and per level the damage of every unit: what was measured, scaled by the squares of output errors."""
        artifact = self._packings.artifact()
        levels = [Level("as it is", artifact)]
        damages: list[list[float | None]] = [[each.share for each in self._figures]]
        eight = self._packings.packed_as(MIDDLE_PRESET, [name for unit in self._units for name in unit.weights])
        if eight is not None:
            has_it = [all(name in eight.weights for name in unit.weights) for unit in self._units]
            levels.append(Level(MIDDLE_PRESET, eight))
            damages.append(self._scaled(eight, has_it))
        plain = self._packings.unquantized()
        levels.append(Level(UNQUANTIZED, plain))
        is_quantized = [any(plain.plan["weights"][n] != artifact.plan["weights"][n] for n in unit.weights) for unit in self._units]
        damages.append(self._scaled(plain, is_quantized))
        return levels, damages

    def _scaled(self, model: Runnable, has_it: Sequence[bool]) -> list[float | None]:
        units = [unit for unit, has in zip(self._units, has_it, strict=True) if has]
        reference = self._packings.reference()
        errors: dict[Unit, float] = dict.fromkeys(units, 0.0)
        if model is not reference:
            found = relative_errors(reference, model, units, self._probes)
            errors = {unit: estimate.value for unit, estimate in zip(units, found, strict=True)}
        return [
            each.share * (errors[each.unit] / own) ** 2 if each.unit in errors and (own := each.relative_error.value) > 0 else None
            for each in self._figures
        ]


def _refused(budget: Budget, figures: Figures, units: Sequence[UnitFigures], raised: Sequence[Raised]) -> QualityGateFailed:
    what = f"quantization costs more than the budget allows: {'; '.join(excesses(budget, figures.overall))}"
    worst = [f"{each.unit.name} ({100 * each.share:.0f} % of the cost)" for each in worst_first(units)[:MAX_SHOWN]]
    if not raised:
        return QualityGateFailed(what, where=f"after --auto-mixed; worst: {', '.join(worst)}", hint="allow a little more, or use more bits")
    return QualityGateFailed(what, where=f"worst: {', '.join(worst)}", hint=f"--auto-mixed would fit: {summary_of(raised)}")


def summary_of(raised: Sequence[Raised]) -> str:
    """`lm_head.weight=8bit, … and 3 more (+1.2 MB)`."""
    shown = [f"{'+'.join(change.weights)}={change.preset}" for change in raised[:MAX_SHOWN]]
    more = f" and {len(raised) - MAX_SHOWN} more" if len(raised) > MAX_SHOWN else ""
    return f"{', '.join(shown)}{more} ({sum(change.added_bytes for change in raised) / 1e6:+.2f} MB)"


def _no_precision_fits(budget: Budget, figures: Figures) -> QualityGateFailed:
    what = "no precision meets the budget; with every weight unquantized: " + "; ".join(excesses(budget, figures.overall))
    hint = "allow more, or measure on more tokens (--probe-tokens): the interval gets narrower"
    return QualityGateFailed(what, where="quality gate", hint=hint)
