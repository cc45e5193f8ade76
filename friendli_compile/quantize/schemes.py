"""Schemes: what a weight's values and its activations are rounded to, and how many weights share a scale.

    scheme  = weights acts? [":" grain]        w4a8:g32   w4a16:g128z   w8a8:channel   w8a16   fp8:block128   mxfp4   none
    weights = w4 | w8 | w7 | fp8 | mxfp4       i4 (u4 with z), 8 bits, 7 bits (i7), e4m3, e2m1 in groups of 32
    acts    = a16 | a8 | a7                    as they are, 8 bits, 7 bits; fp8 and mxfp4 round them unless a16 says not to
    grain   = gN | gNz | channel | tensor | block128      N neighbouring columns; z: a zero point per scale; the last two only fp8

A `Scheme` is what was asked for, a `Format` is what one matrix is stored as. `w8a8` leaves open which side has 7 bits (an 8-bit sum of two
products may not leave 16 bits): such a scheme has two formats, and the one with the smaller error is chosen per matrix (choose.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..errors import FmoError

CODE_BITS = {"i4": 4, "u4": 4, "e2m1": 4, "i7": 8, "i8": 8, "e4m3": 8}  # bits as stored
NIBBLE_COLUMNS, BYTE_COLUMNS = 8, 4  # the layout block8 needs multiples of these columns
ACT_STEP = 32  # integer activations come in groups of a multiple of this
ACT_GROUPS = (128, 64, 32)  # for weights with one scale per row: the largest that divides
BLOCK = 128  # rows and columns of a block of fp8
MX_GROUP = 32
DEFAULT_GROUP = {"w4": 32, "w7": 128, "w8": 128}
SMALLEST_GROUP = 8
FORMS = "w4a8:g32, w4a16:g128z, w8a8:channel, w8a16:g128, w7a8, fp8, fp8:block128, mxfp4"

# weights acts → (dtype of the codes, dtype of the activations); more than one: chosen per matrix
PAIRS: dict[tuple[str, str], tuple[tuple[str, str], ...]] = {
    ("w4", "a8"): (("i4", "i8"),),
    ("w4", "a16"): (("i4", "f32"),),
    ("w7", "a8"): (("i7", "i8"),),
    ("w7", "a7"): (("i7", "i7"),),
    ("w8", "a7"): (("i8", "i7"),),
    ("w8", "a8"): (("i7", "i8"), ("i8", "i7")),
    ("w8", "a16"): (("i8", "f32"),),
    ("fp8", ""): (("e4m3", "e4m3"),),
    ("fp8", "a16"): (("e4m3", "f32"),),
    ("mxfp4", ""): (("e2m1", "i8"),),
    ("mxfp4", "a16"): (("e2m1", "f32"),),
}
MAX_LANE_SUM = 32767 // 63
DEFAULT_ACTS = {"w4": "a16", "w7": "a8", "w8": "a16", "fp8": "", "mxfp4": ""}
_SCHEME = re.compile(r"(w4|w7|w8|fp8|mxfp4)(a\w+)?(?::(\w+))?$")
_GRAIN = re.compile(r"(?:g(\d+)(z?)|channel|tensor|block128)$")


@dataclass(frozen=True, slots=True)
class Format:
    """How one matrix [N, K] is stored and multiplied: docs/quantized-weights.md."""

    dtype: str  # of the codes
    group: int  # columns per scale; K: one scale per row
    scale_dtype: str  # f16, f32 or e8m0
    act_dtype: str  # f32, i8, i7 or e4m3
    act_group: int  # columns of a row of x that are rounded together
    rows_per_scale: int = 1  # > 1: fp8 per block or per tensor; stored repeated

    @property
    def has_zeros(self) -> bool:
        return self.dtype == "u4"

    @property
    def bits(self) -> int:
        return CODE_BITS[self.dtype]

    @property
    def lane_sum(self) -> int | None:
        """What Σ |code − zero| over the 16 codes of a lane (every other pair of 32 neighbouring columns of a row) may be at most, so that
        their products with activations of 7 bits fit into 16 bits. None: the kernel adds up fewer products, which always fit."""
        return MAX_LANE_SUM if (self.dtype, self.act_dtype) == ("i7", "i7") else None


@dataclass(frozen=True, slots=True)
class Scheme:
    """What was asked for. `str(scheme)` is its canonical spelling; `parse_scheme` reads it back."""

    weights: str  # w4, w7, w8, fp8, mxfp4
    acts: str  # a16, a8, a7, or "" where fp8 and mxfp4 round activations their own way
    grain: str  # group, channel, tensor, block
    group: int = 0  # columns per scale of the grain `group`
    has_zeros: bool = False

    def __str__(self) -> str:
        grain = {"group": f":g{self.group}{'z' * self.has_zeros}", "block": f":block{BLOCK}"}.get(self.grain, f":{self.grain}")
        return f"{self.weights}{self.acts}" + ("" if self.weights == "mxfp4" else grain)

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """(dtype of the codes, dtype of the activations); the formats to choose from."""
        pairs = PAIRS[self.weights, self.acts]
        return tuple(("u4", act) for _, act in pairs) if self.has_zeros else pairs

    @property
    def bits(self) -> int:
        """Bits per stored code, without scales."""
        return CODE_BITS[self.pairs[0][0]]

    def without_acts(self) -> Scheme:
        """The same weights with activations as they are."""
        weights = "w8" if self.weights == "w7" else self.weights
        return replace(self, weights=weights, acts="a16")

    def misfit(self, num_columns: int) -> str:
        """Why a matrix of `num_columns` cannot be stored so; empty where it can."""
        columns = NIBBLE_COLUMNS if self.bits == 4 else BYTE_COLUMNS
        if num_columns % columns:
            return f"{self.bits}-bit codes need a multiple of {columns} columns"
        group = {"group": self.group, "block": BLOCK}.get(self.grain, num_columns)
        if num_columns % group:
            return f"groups of {group} columns do not divide it"
        is_integer = any(act in ("i8", "i7") for _, act in self.pairs)
        if is_integer and num_columns % ACT_STEP:
            return f"{self.acts or 'a8'} needs a multiple of {ACT_STEP} columns"
        if is_integer and self.grain == "group" and group % ACT_STEP:
            return f"{self.acts or 'a8'} needs groups of a multiple of {ACT_STEP} columns"
        return ""

    def formats(self, num_rows: int, num_columns: int) -> tuple[Format, ...]:
        """The formats of a matrix [num_rows, num_columns] that this scheme leaves open; raises ValueError where it does not fit."""
        if why := self.misfit(num_columns):
            raise ValueError(f"{self} does not fit {num_columns} columns: {why}")
        group = {"group": self.group, "block": BLOCK}.get(self.grain, num_columns)
        rows = {"block": BLOCK, "tensor": num_rows}.get(self.grain, 1)
        scale_dtype = "e8m0" if self.weights == "mxfp4" else "f16" if self.grain == "group" else "f32"
        return tuple(
            Format(dtype, group, scale_dtype, act, _act_group(act, self.grain, group, num_columns), rows) for dtype, act in self.pairs
        )


def _act_group(act: str, grain: str, group: int, num_columns: int) -> int:
    if act not in ("i8", "i7"):
        return num_columns
    return group if grain == "group" else next(size for size in ACT_GROUPS if num_columns % size == 0)


def parse_scheme(text: str) -> Scheme | None:
    """A scheme of the grammar above; None for `none`. Raises FmoError naming the part that is wrong."""
    if text == "none":
        return None
    found = _SCHEME.fullmatch(text)
    if found is None:
        raise FmoError(f"'{text}' is no quantization scheme", hint=f"e.g. {FORMS}, none")
    weights, acts, grain = found[1], found[2] or DEFAULT_ACTS[found[1]], found[3]
    if (weights, acts) not in PAIRS:
        what = f"'{text}': the weights '{weights}' do not go with '{acts}'"
        legal = ", ".join(f"{weights}{have}" for w, have in PAIRS if w == weights)
        raise FmoError(what, hint=f"one of {legal} (sums of 8-bit products must fit 16 bits)")
    return _with_grain(text, Scheme(weights, acts, "channel"), grain)


def _with_grain(text: str, scheme: Scheme, grain: str | None) -> Scheme:
    weights = scheme.weights
    if weights == "mxfp4":
        if grain not in (None, f"g{MX_GROUP}"):
            raise FmoError(
                f"'{text}': '{grain}' does not go with mxfp4", hint=f"mxfp4 always has one scale for {MX_GROUP} columns: drop ':{grain}'"
            )
        return replace(scheme, grain="group", group=MX_GROUP)
    if grain is None:
        return scheme if weights == "fp8" else replace(scheme, grain="group", group=DEFAULT_GROUP[weights])
    found = _GRAIN.fullmatch(grain)
    if found is None:
        raise FmoError(
            f"'{text}': '{grain}' does not say what shares a scale",
            hint="one of gN (N columns), gNz, channel; of fp8 also tensor, block128",
        )
    if found[1] is None:
        if grain != "channel" and weights != "fp8":
            raise FmoError(f"'{text}': '{grain}' goes only with fp8", hint=f"{weights}{scheme.acts}:g{DEFAULT_GROUP[weights]} or :channel")
        return replace(scheme, grain="block" if grain == "block128" else grain)
    group, has_zeros = int(found[1]), bool(found[2])
    if has_zeros and weights != "w4":
        raise FmoError(f"'{text}': zero points (z) go only with w4", hint=f"drop the z: {weights}{scheme.acts}:g{group}")
    step = ACT_STEP if any(act in ("i8", "i7") for _, act in scheme.pairs) else SMALLEST_GROUP
    if group < step or group % step:
        raise FmoError(
            f"'{text}': a group of {group} columns is no multiple of {step}",
            hint=f"{weights}{scheme.acts}:g{max(step, group // step * step)}",
        )
    return replace(scheme, grain="group", group=group, has_zeros=has_zeros)


def alternatives(scheme: Scheme) -> Iterator[Scheme]:
    """`scheme`, then ever less like it: smaller groups, activations as they are, one scale per row, 8 bits."""
    yield from _smaller_groups(scheme, ACT_STEP)
    plain = scheme.without_acts()
    if plain.weights == "mxfp4":
        plain = Scheme("w4", "a16", "group", MX_GROUP)
    if plain.grain in ("block", "tensor"):
        yield replace(scheme, grain="channel")
        plain = replace(plain, grain="channel")
    yield from _smaller_groups(plain, SMALLEST_GROUP)
    if plain.bits == 4:
        yield from _smaller_groups(Scheme("w8", "a16", "group", DEFAULT_GROUP["w8"]), SMALLEST_GROUP)
    yield Scheme("w8", "a16", "channel")


def _smaller_groups(scheme: Scheme, smallest: int) -> Iterator[Scheme]:
    yield scheme
    group = 1 << (scheme.group - 1).bit_length() >> 1  # the next power of two below
    while scheme.grain == "group" and scheme.weights != "mxfp4" and group >= smallest:
        yield replace(scheme, group=group)
        group //= 2


def nearest_fitting(scheme: Scheme, num_columns: int) -> Scheme | None:
    """The first of `alternatives` that a matrix of `num_columns` can be stored in; None where none does (columns no multiple of 4)."""
    return next((other for other in alternatives(scheme) if not other.misfit(num_columns)), None)
