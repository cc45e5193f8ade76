"""What report.json and the manifest say about quality. Figures have few digits: the order of sums differs between machines, the bytes of an
artifact should not.

    {"status": "measured", "probe": {…}, "budget": {…}, "overall": {…}, "parts": {"text": {…}, "samples": {…}}, "raised": […],
     "warnings": […], "units": […]}                                       units, the worst first: in report.json only
    {"status": "skipped"}                                                 --no-quality
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from .gate import Quality, QualityOptions, worst_first
from .probes import ProbeSet

FIGURE_DIGITS = 4
SKIPPED: Mapping[str, Any] = {"status": "skipped"}


def quality_record(quality: Quality, options: QualityOptions, probes: ProbeSet, plan: Mapping[str, Any]) -> dict[str, Any]:
    """`plan`: of the artifact that was measured."""
    tokens = Counter[str]()
    for part, sequence in zip(probes.parts, probes.sequences, strict=True):
        tokens[part] += len(sequence) - 1
    record = {
        "status": "measured",
        "probe": {"source": "shipped" if options.probe is None else "file", "tokens": dict(tokens)},
        "budget": options.budget.to_json() | {"auto_mixed": options.auto_mixed},
        **quality.figures.to_json(),
        "raised": [change.to_json() for change in quality.raised],
        "warnings": list(quality.warnings),
        "units": [figures.to_json(plan) for figures in worst_first(quality.units)],
    }
    return {key: rounded(value) for key, value in record.items()}


def for_manifest(record: Mapping[str, Any]) -> dict[str, Any]:
    """Without the long list of units."""
    return {key: value for key, value in record.items() if key != "units"}


def rounded(value: Any) -> Any:
    """Every float of a JSON value with FIGURE_DIGITS significant digits."""
    if isinstance(value, float):
        if not math.isfinite(value) or value == 0:
            return value
        return round(value, FIGURE_DIGITS - 1 - math.floor(math.log10(abs(value))))
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return value
