"""Which weight gets which scheme.

    candidates (plan/quantizable.py)  ×  policy (a preset or one scheme, and overrides PATTERN=SCHEME)  ─▶  Assignment, notes

By default the matrices of linear layers, experts and token embeddings are quantized. What never is: routers of experts, norms, biases,
position tables, matrices that are computed from parameters or share a parameter with another weight, and tiny ones (they are read in no
time). A preset that does not fit a matrix gives way to the nearest scheme that does, with a note; so does the group of a scheme that names
none. An explicit scheme that does not fit is an error.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from ..errors import FmoError
from .schemes import FORMS, Scheme, nearest_fitting, parse_scheme

Assignment = Mapping[str, Scheme | None]  # weight name (as in plan.json) → scheme; None: stays as --dtype says

MIN_ROWS, MIN_COLUMNS = 8, 32  # smaller matrices stay: one block of the layout, one group
MAX_NAMES_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Candidate:
    """A weight that could be quantized. Those of one `call_group` are multiplied by one kernel call and share its activation dtype."""

    name: str  # as in plan.json
    role: str  # linear, experts, head (gives the logits), tied (head and token embedding), embedding
    dims: tuple[int, ...]  # [N, K] or [E, N, K]
    params: tuple[str, ...]
    module: str  # where it is used, e.g. model.layers.0.self_attn.q_proj
    call_group: str
    layer: int | None = None

    @property
    def num_rows(self) -> int:
        return self.dims[-2]

    @property
    def num_columns(self) -> int:
        return self.dims[-1]

    @property
    def is_tiny(self) -> bool:
        return self.num_rows < MIN_ROWS or self.num_columns < MIN_COLUMNS

    def matches(self, pattern: str) -> bool:
        """Whether a shell pattern names the weight, one of its parameters, or the module that uses it."""
        return any(fnmatchcase(text, pattern) for text in (self.name, self.module, *self.params))


@dataclass(frozen=True, slots=True)
class Preset:
    """Schemes by role. A tied table is read by the output projection: it has that one's scheme."""

    linear: str
    head: str
    embedding: str

    def scheme(self, role: str) -> Scheme | None:
        return parse_scheme({"head": self.head, "tied": self.head, "embedding": self.embedding}.get(role, self.linear))


PRESETS: dict[str, Preset] = {
    "8bit": Preset("w7a7:g128", "w7a7:g128", "w8a16:g128"),
    "4bit": Preset("w4a8:g32", "w7a7:g128", "w8a16:g128"),
    "int8": Preset("w8a8:channel", "w8a8:channel", "w8a16:channel"),
    "fp8": Preset("fp8:channel", "fp8:channel", "fp8a16:channel"),
    "none": Preset("none", "none", "none"),
}


@dataclass(frozen=True, slots=True)
class Policy:
    """What `--quantize` and `--quantize-layer` say. `is_lenient`: explicit schemes give way like presets (a model's small twin)."""

    text: str = "none"  # a preset or a scheme
    overrides: tuple[tuple[str, str], ...] = ()  # (pattern, scheme), later ones win
    is_lenient: bool = False

    @property
    def quantizes(self) -> bool:
        return self.text != "none" or any(scheme != "none" for _, scheme in self.overrides)

    def lenient(self) -> Policy:
        return replace(self, is_lenient=True)


@dataclass(slots=True)
class Assigned:
    """The result: a scheme per candidate, and what the user should know."""

    schemes: dict[str, Scheme | None] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def parse_policy(text: str, overrides: Iterable[str] = ()) -> Policy:
    """Checks every part now, before anything is read. Raises FmoError naming the part that is wrong."""
    require_scheme_or_preset(text)
    pairs = []
    for override in overrides:
        pattern, equals, scheme = override.rpartition("=")
        if not equals or not pattern:
            raise FmoError(f"'{override}' is not PATTERN=SCHEME", hint="e.g. 'lm_head*=w8a8' or '*.layers.0.*=none'")
        require_scheme_or_preset(scheme)
        pairs.append((pattern, scheme))
    return Policy(text, tuple(pairs))


def require_scheme_or_preset(text: str) -> None:
    """Raises FmoError, with the nearest preset, unless `text` can be assigned."""
    if text in PRESETS:
        return
    try:
        parse_scheme(text)
    except FmoError as error:
        near = difflib.get_close_matches(text, PRESETS, 1)
        if near and "is no quantization scheme" in error.what:
            raise FmoError(error.what, hint=f"did you mean '{near[0]}'? Presets: {', '.join(PRESETS)}; schemes: e.g. {FORMS}") from None
        raise


def assign(candidates: Sequence[Candidate], policy: Policy) -> Assigned:
    """A scheme for each candidate, None where it stays. Raises FmoError for an explicit scheme that does not fit, for a preset that fits
    no weight at all, and for a pattern that names nothing."""
    _require_patterns_match(candidates, policy)
    result = Assigned()
    changed: dict[str, list[str]] = {}
    misfits: list[tuple[Candidate, Scheme]] = []
    left_out: list[tuple[Candidate, Scheme]] = []
    for candidate in candidates:
        text, wanted = _wanted(candidate, policy)
        if wanted is not None and wanted.misfit(candidate.num_columns) and not _gives_way(candidate, text, wanted, policy):
            misfits.append((candidate, wanted))
            continue
        fitted = nearest_fitting(wanted, candidate.num_columns) if wanted is not None else None
        if wanted is not None and fitted is None:
            left_out.append((candidate, wanted))
        result.schemes[candidate.name] = fitted
        if wanted is not None and fitted != wanted:
            changed.setdefault(f"{wanted} does not fit their columns; they are stored as {fitted or 'before'}", []).append(candidate.name)
    if misfits:
        raise _misfit_error(misfits)
    if left_out and not any(result.schemes.values()) and not policy.is_lenient:  # every weight gave way: not what was asked for
        raise _misfit_error(left_out)
    _agree_in_calls(candidates, result)
    for what, names in changed.items():
        shown = ", ".join(names[:MAX_NAMES_SHOWN]) + (" …" if len(names) > MAX_NAMES_SHOWN else "")
        result.notes.append(f"{len(names)} weights ({shown}): {what}")
    return result


def _wanted(candidate: Candidate, policy: Policy) -> tuple[str, Scheme | None]:
    """(what was asked for, the scheme of it): the last override that matches, else the policy; tiny matrices only by override."""
    text = next((scheme for pattern, scheme in reversed(policy.overrides) if candidate.matches(pattern)), None)
    if text is None and candidate.is_tiny:
        return "none", None
    text = text or policy.text
    if text in PRESETS:
        return text, PRESETS[text].scheme(candidate.role)
    scheme = parse_scheme(text)
    if scheme is not None and candidate.role == "embedding":  # rows are looked up, nothing is multiplied
        scheme = scheme.without_acts()
    return text, scheme


def _gives_way(candidate: Candidate, text: str, wanted: Scheme, policy: Policy) -> bool:
    """Whether a scheme that does not fit may become the nearest that does: of a preset, or where only the group changes, not asked for."""
    if text in PRESETS or policy.is_lenient:
        return True
    nearest = nearest_fitting(wanted, candidate.num_columns)
    return ":" not in text and nearest is not None and (nearest.weights, nearest.acts) == (wanted.weights, wanted.acts)


def _misfit_error(misfits: Sequence[tuple[Candidate, Scheme]]) -> FmoError:
    """Names the first matrix, how many others there are, and what would work for it, or for all that are to have this scheme."""
    first, wanted = misfits[0]
    same = [candidate for candidate, scheme in misfits if scheme == wanted]
    what = (
        f"'{first.name}' {list(first.dims)} cannot be stored as {wanted}: {wanted.misfit(first.num_columns)} ({first.num_columns} columns)"
    )
    where = first.module + (f" and {len(same) - 1} more" if len(same) > 1 else "")
    hint = f"nearest that works: --quantize-layer '{first.name}={nearest_fitting(wanted, first.num_columns) or 'none'}'"
    if len(same) > 1:
        for_all = nearest_fitting(wanted, math.gcd(*(candidate.num_columns for candidate in same)))
        hint += f"; for all {len(same)}: {for_all or 'none'}"
    return FmoError(what, where=where, hint=hint)


def _agree_in_calls(candidates: Sequence[Candidate], result: Assigned) -> None:
    """Matrices of one call round activations in one way, or not at all; and all of them are quantized, or none."""
    calls: dict[str, list[str]] = {}
    for candidate in candidates:
        calls.setdefault(candidate.call_group, []).append(candidate.name)
    for names in calls.values():
        schemes = [scheme for name in names if (scheme := result.schemes[name]) is not None]
        if 0 < len(schemes) < len(names):
            result.notes.append(f"{', '.join(names)} are multiplied together and not all of them can be quantized: they stay as they are")
            result.schemes |= dict.fromkeys(names)
        elif len({tuple(act for _, act in scheme.pairs) for scheme in schemes}) > 1:
            result.schemes |= {name: scheme.without_acts() for name, scheme in zip(names, schemes, strict=True)}


def _require_patterns_match(candidates: Sequence[Candidate], policy: Policy) -> None:
    names = [text for candidate in candidates for text in (candidate.name, *candidate.params)]
    for pattern, _ in policy.overrides:
        if not policy.is_lenient and not any(candidate.matches(pattern) for candidate in candidates):
            near = difflib.get_close_matches(pattern, names, 1, cutoff=0.3) or names[:1]
            hint = f"e.g. '{near[0]}'; quotes keep the shell from expanding *" if near else "the model has nothing to quantize"
            raise FmoError(f"--quantize-layer '{pattern}' names no weight that can be quantized", hint=hint)
