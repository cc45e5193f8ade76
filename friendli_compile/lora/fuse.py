"""Merges PEFT LoRA adapters into parameters while they are read: W + scale · B A, in float32, before quantization.

    fused = fuse_adapters(["adapters/law", "org/chat:0.5"], traced)
    checkpoint = Checkpoint(source, traced, fused.edits)
    fused.verify(checkpoint.read_unedited)          every merged layer against PEFT's formula, by the model's own module

The orientation of a weight is that of its module: nn.Linear holds [out, in], Conv1D (gpt2) [in, out]. What is no linear layer of its own,
such as stacked experts, and weights that are tied to others are refused: merging would change more than the adapter does.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from friendli_runtime.lora.adapter import Adapter, LowRank
from friendli_runtime.lora.config import AdapterError
from friendli_runtime.lora.source import find_adapter
from transformers.pytorch_utils import Conv1D

from ..errors import InternalError
from ..frontend.trace import TracedModel

Edit = Callable[[np.ndarray], np.ndarray]
NUM_CHECKED_ROWS = 4  # random inputs per merged layer
RELATIVE_TOLERANCE = 2e-5  # of the largest output: float32 merging of a few thousand columns stays below 1e-6


@dataclass(frozen=True, slots=True)
class FusedAdapter:
    """One `--fuse-lora`: `strength` multiplies the adapter's own scale."""

    name: str  # as the user gave it, without the strength
    strength: float
    adapter: Adapter


@dataclass(slots=True)
class Merge:
    """What is added to one parameter: low-rank products, in the order of the adapters."""

    param: str
    module: str
    is_transposed: bool  # Conv1D
    parts: list[tuple[float, LowRank]] = field(default_factory=list)

    def __call__(self, weight: np.ndarray) -> np.ndarray:
        """The merged parameter. weight: as the checkpoint has it."""
        for strength, part in self.parts:
            delta = (part.up @ part.down) * np.float32(strength * part.scale)
            weight = weight + (delta.T if self.is_transposed else delta)
        return np.ascontiguousarray(weight, np.float32)


@dataclass(frozen=True, slots=True)
class FusedAdapters:
    """All merges of one compilation; `edits` by parameter of the traced graph."""

    adapters: tuple[FusedAdapter, ...]
    merges: Mapping[str, Merge]
    skeleton: torch.nn.Module

    @property
    def edits(self) -> Mapping[str, Edit]:
        return self.merges

    def verify(self, read: Callable[[str], np.ndarray], progress: Callable[[float], None] = lambda done: None) -> float:
        """Compares each merged layer with W x + scale · B (A x). `read`: parameters before merging. The largest relative error.

        Raises InternalError where they disagree: then the merged model is not what PEFT computes."""
        worst = 0.0
        for done, merge in enumerate(self.merges.values()):
            error = _relative_error(self.skeleton.get_submodule(merge.module), merge, read(merge.param))
            if not error <= RELATIVE_TOLERANCE:
                what = f"the merged '{merge.param}' differs from PEFT's formula by {error:.2g} of its largest output"
                raise InternalError(what, where=merge.module, hint="report it, and compile without --fuse-lora")
            worst = max(worst, error)
            progress((done + 1) / len(self.merges))
        return worst

    def provenance(self) -> list[dict[str, Any]]:
        """For the manifest."""
        return [
            {"name": fused.name, "strength": fused.strength, "sha256": fused.adapter.sha256, "num_modules": len(fused.adapter.modules)}
            for fused in self.adapters
        ]


def fuse_adapters(wanted: Iterable[str], traced: TracedModel) -> FusedAdapters:
    """Reads the adapters (PATH or PATH:STRENGTH) and finds the parameters that they change. Raises AdapterError."""
    adapters: list[FusedAdapter] = []
    merges: dict[str, Merge] = {}
    for text in wanted:
        path, strength = parse_strength(text)
        adapter = Adapter.load(find_adapter(path))
        adapter.require_complete(_linear_modules(traced))
        adapters.append(FusedAdapter(adapter.folder.name if adapter.folder.name == path.rsplit("/", 1)[-1] else path, strength, adapter))
        for module, part in adapter.modules.items():
            merge = _merge_of(module, part, traced, adapter)
            merges.setdefault(merge.param, merge).parts.append((strength, part))
    return FusedAdapters(tuple(adapters), merges, traced.skeleton)


def parse_strength(text: str) -> tuple[str, float]:
    """`PATH:0.5` → (PATH, 0.5); without a number behind the last colon the whole text is the path."""
    path, colon, last = text.rpartition(":")
    try:
        strength = float(last) if colon and path else None
    except ValueError:
        strength = None
    if strength is None:
        return text, 1.0
    if not 0 < abs(strength) < 1e6:
        raise AdapterError(f"the strength {last} is out of range", where=f"--fuse-lora {text}", hint="give a number such as 0.5")
    return path, strength


def _merge_of(module: str, part: LowRank, traced: TracedModel, adapter: Adapter) -> Merge:
    where = str(adapter.folder)
    try:
        found = traced.skeleton.get_submodule(module)
    except AttributeError:
        raise AdapterError(f"the model has no module '{module}'", where=where, hint=_nearest(module, traced)) from None
    if not isinstance(found, torch.nn.Linear | Conv1D):
        hint = "train the adapter for linear layers; stacked experts and embeddings cannot have one"
        raise AdapterError(f"'{module}' is a {type(found).__name__}, not a linear layer", where=where, hint=hint)
    name = f"{module}.weight"
    _require_untied(name, traced, where)
    if name not in traced.param_shapes:
        raise AdapterError(f"the model never reads '{name}'", where=where, hint="train the adapter without this module")
    is_transposed = isinstance(found, Conv1D)
    expected = traced.param_shapes[name][:: -1 if is_transposed else 1]
    if (part.up.shape[0], part.down.shape[1]) != expected:
        what = f"the adapter changes '{module}' as [{part.up.shape[0]}, {part.down.shape[1]}], the model has {list(expected)}"
        base = f" ('{adapter.config.base_model}')" if adapter.config.base_model else ""
        raise AdapterError(what, where=where, hint=f"the adapter belongs to another base model{base}")
    return Merge(name, module, is_transposed)


def _require_untied(name: str, traced: TracedModel, where: str) -> None:
    canonical = traced.tied.get(name, name)
    sharing = [other for other in (canonical, *(alias for alias, kept in traced.tied.items() if kept == canonical)) if other != name]
    if sharing:
        what = f"'{name}' is tied to '{sharing[0]}': merging would change both, and the adapter changes one"
        raise AdapterError(what, where=where, hint="serve the adapter with --adapter-model, which leaves the base weights as they are")


def _nearest(module: str, traced: TracedModel) -> str:
    near = difflib.get_close_matches(module, _linear_modules(traced), 1, cutoff=0.0)
    return f"the nearest linear layer is '{near[0]}'; the adapter may belong to another model" if near else "it has no linear layers"


def _linear_modules(traced: TracedModel) -> list[str]:
    return [name for name, found in traced.skeleton.named_modules() if isinstance(found, torch.nn.Linear | Conv1D)]


def _relative_error(module: torch.nn.Module, merge: Merge, weight: np.ndarray) -> float:
    """max |merged(x) - (W x + Σ scale B (A x))| / max |…|, in float64, both by the module's own forward."""
    in_features = merge.parts[0][1].down.shape[1]
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((NUM_CHECKED_ROWS, in_features)))
    expected = _forward(module, weight, x)
    for strength, part in merge.parts:
        down, up = (torch.from_numpy(half.astype(np.float64)) for half in (part.down, part.up))
        expected = expected + strength * part.scale * ((x @ down.T) @ up.T)
    difference = (_forward(module, merge(weight), x) - expected).abs().max()
    return float(difference / expected.abs().max().clamp_min(1e-30))


def _forward(module: torch.nn.Module, weight: np.ndarray, x: torch.Tensor) -> torch.Tensor:
    """module(x) with this weight and no bias."""
    tensors = {"weight": torch.from_numpy(weight.astype(np.float64))}
    if getattr(module, "bias", None) is not None:
        tensors["bias"] = torch.zeros(module.bias.shape, dtype=torch.float64)  # type: ignore[union-attr,arg-type]
    return torch.func.functional_call(module, tensors, (x,))
