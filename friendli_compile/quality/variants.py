"""Models put together from several packings of one model: some weights quantized, the others as in the reference.

Packings of one graph have the same calls on the same buffers; only the weights of some calls differ, and how activations are rounded for
them. So a variant is the reference's plan with some calls taken from another packing, and nothing is packed again:

    reference   call 0   call 1   call 2   call 3
    4 bit       call 0'  call 1'  call 2'  call 3'
    variant     call 0   call 1'  call 2   call 3

What is exchanged together is a `Unit`: the weights of one call that are stored otherwise than in the reference (both matrices of experts),
or that several calls share (a tied embedding and output projection).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InternalError
from .packed_run import Runnable

Call = dict[str, Any]


@dataclass(frozen=True)
class Unit:
    """Weights that are exchanged together, and the calls (indices into the plan) that read them."""

    weights: tuple[str, ...]
    calls: tuple[int, ...]
    module: str  # of the first call, e.g. model.layers.0.self_attn.q_proj
    layer: int | None

    @property
    def name(self) -> str:
        return "+".join(self.weights)


def units_of(reference: Mapping[str, Any], plan: Mapping[str, Any]) -> list[Unit]:
    """The units of `plan` compared with the plan of the reference, in the order of their first calls."""
    require_same_calls(reference, plan)
    units: list[tuple[set[str], list[int]]] = []
    for index, call in enumerate(plan["calls"]):
        names = set(changed_weights(reference, plan, call))
        if not names:
            continue
        merged: tuple[set[str], list[int]] = (names, [index])
        for unit in [unit for unit in units if unit[0] & names]:
            merged = (merged[0] | unit[0], unit[1] + merged[1])
            units.remove(unit)
        units.append(merged)
    units.sort(key=lambda unit: min(unit[1]))
    return [_unit(reference, plan, names, sorted(calls)) for names, calls in units]


def changed_weights(reference: Mapping[str, Any], plan: Mapping[str, Any], call: Mapping[str, Any]) -> list[str]:
    """Names of the weights that a call of `plan` reads and that have another dtype in the reference, in order."""
    views = [view for view in call["inputs"] if view is not None and view["space"] == "weight"]
    return [view["id"] for view in views if plan["weights"][view["id"]]["dtype"] != reference["weights"][view["id"]]["dtype"]]


def unit_bytes(model: Runnable, unit: Unit) -> int:
    """What the unit takes in a packing, scales and zero points included."""
    return sum(model.weights[part][2] for name in unit.weights for part in _parts(name) if part in model.weights)


def variant(base: Runnable, replaced: Iterable[tuple[Runnable, Sequence[Unit]]]) -> Runnable:
    """`base` with the calls of some units from other packings."""
    calls, tables, places = list(base.plan["calls"]), dict(base.plan["weights"]), dict(base.weights)
    for number, (source, units) in enumerate(replaced):
        require_same_calls(base.plan, source.plan)
        for index in {index for unit in units for index in unit.calls}:
            calls[index] = renamed(source, source.plan["calls"][index], f"{number}:", tables, places)
    return Runnable({**base.plan, "calls": calls, "weights": tables}, places)


def renamed(source: Runnable, call: Call, prefix: str, tables: dict[str, Any], places: dict[str, tuple[str, int, int]]) -> Call:
    """The call with its weights under prefixed names, which are added to `tables` (of the plan) and `places` (in files)."""
    inputs = []
    for view in call["inputs"]:
        if view is not None and view["space"] == "weight":
            name = view["id"]
            tables[prefix + name] = source.plan["weights"][name]
            for part in _parts(name):
                if part in source.weights:
                    places[prefix + part] = source.weights[part]
            view = {**view, "id": prefix + name}
        inputs.append(view)
    return {**call, "inputs": inputs}


def require_same_calls(plan: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """Raises InternalError unless calls can be exchanged between the plans."""
    same_places = all(plan[key] == other[key] for key in ("buffers", "arenas", "kv_layers"))
    if not same_places or [_shape(call) for call in plan["calls"]] != [_shape(call) for call in other["calls"]]:
        what = f"two packings of one model have different plans ({len(plan['calls'])} and {len(other['calls'])} calls)"
        raise InternalError(
            what, where="quality gate", hint="--no-quality compiles without the comparison; please report the model's config"
        )


def _parts(name: str) -> tuple[str, str, str]:
    """The tensors that a weight may have in the files."""
    return name, f"{name}.scales", f"{name}.zeros"


def _shape(call: Mapping[str, Any]) -> tuple[Any, ...]:
    """What must be equal: the op, and what it reads and writes besides weights."""
    inputs = [None if view is None or view["space"] == "weight" else view for view in call["inputs"]]
    return call["op"], inputs, call["outputs"]


def _unit(reference: Mapping[str, Any], plan: Mapping[str, Any], names: set[str], calls: list[int]) -> Unit:
    ordered = dict.fromkeys(name for index in calls for name in changed_weights(reference, plan, plan["calls"][index]))
    first = plan["calls"][calls[0]]
    layers = {plan["calls"][index]["layer"] for index in calls}
    return Unit(tuple(ordered), tuple(calls), str(first["source"]), layers.pop() if len(layers) == 1 else None)
