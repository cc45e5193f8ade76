"""Quantization in the compiler: policy → assignment → formats → plan, between planning and packing.

    base plan ─▶ candidates ─▶ schemes (quantize/assign.py) ─▶ formats, by looking at the values ─▶ the plan once more, with formats

Both plans have the same calls on the same buffers: only what the quantized weights are stored as differs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from .errors import FmoError
from .ir.graph import Graph
from .plan.model import Plan, WeightSpec
from .plan.planner import make_plan
from .plan.quantizable import find_candidates
from .quantize.assign import Assigned, Policy, assign
from .quantize.choose import ActivationErrors, choose_format
from .quantize.schemes import Format, Scheme

ReadParam = Callable[[str], np.ndarray]
OnFraction = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class Quantized:
    """A plan with quantized weights; the schemes of all that could be, None where a weight stays; what the user should know."""

    plan: Plan
    schemes: Mapping[str, Scheme | None] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def formats(self) -> dict[str, Format]:
        return {spec.name: spec.format for spec in self.plan.weights if spec.format is not None}


def assign_schemes(graph: Graph, base: Plan, policy: Policy) -> Assigned:
    """Which weight of the plan gets which scheme. Raises FmoError where the policy cannot be met."""
    if not policy.quantizes:
        return Assigned()
    candidates = find_candidates(graph, base)
    if not candidates and not policy.is_lenient:
        what = f"--quantize {policy.text}: no weight of this model can be quantized"
        raise FmoError(what, hint="its matrices are computed from parameters, shared in parts, or tiny; compile it without --quantize")
    return assign(candidates, policy)


def needs_inputs(scheme: Scheme | None) -> bool:
    """Whether rounding gains from knowing what the layer multiplies: 4 bits, and schemes that leave a choice open."""
    return scheme is not None and (scheme.bits == 4 or len(scheme.pairs) > 1)


def quantize_plan(
    graph: Graph,
    base: Plan,
    policy: Policy,
    storage_dtype: str,
    read: ReadParam | None,
    activations: Mapping[str, ActivationErrors] | None = None,
    progress: OnFraction | None = None,
) -> Quantized:
    """`base`: the plan of `graph` without quantization. `read(parameter)` gives its values; None decides by sizes alone.

    Raises FmoError where the policy cannot be met."""
    assigned = assign_schemes(graph, base, policy)
    if not policy.quantizes:
        return Quantized(base)
    specs = {spec.name: spec for spec in base.weights}
    formats: dict[str, Format] = {}
    for number, (name, scheme) in enumerate(assigned.schemes.items()):
        if scheme is not None:
            formats[name] = _format_of(specs[name], scheme, read, (activations or {}).get(name))
        if progress is not None:
            progress((number + 1) / len(assigned.schemes))
    plan = make_plan(graph, storage_dtype=storage_dtype, max_context_len=base.max_context_len, formats=formats, vocab_size=base.vocab_size)
    return Quantized(plan, assigned.schemes, tuple(assigned.notes))


def _format_of(spec: WeightSpec, scheme: Scheme, read: ReadParam | None, activations: ActivationErrors | None) -> Format:
    if read is None:
        return scheme.formats(*spec.dims[-2:])[0]
    matrix = spec.expression.evaluate(read)
    return choose_format(matrix, scheme, activations)


def scheme_counts(schemes: Mapping[str, Scheme | None]) -> dict[str, int]:
    """Scheme → number of weights, most first; `none` counts those that stay."""
    counts = Counter("none" if scheme is None else str(scheme) for scheme in schemes.values())
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
