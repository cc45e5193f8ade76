"""Reads the parameters of a traced model from its safetensors files, one at a time, as float32.

    parameter of the graph ◀─ transformers' own conversion mapping ◀─ tensors of the checkpoint (renamed, stacked, split, transposed …)

Which tensors make a parameter is decided once, by name; `read` then loads just those. Converting is transformers' code run on the real
tensors, so a checkpoint means the same here and there. `verify` checks every name and shape without reading data. Tied parameters are
one: a checkpoint that stores two different tensors for them is refused.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

from ..errors import CheckpointError, InternalError
from .safetensors_file import TensorEntry, read_header, require_finite
from .source import INDEX_FILE, ModelSource
from .trace import TracedModel

MAX_NAMES_SHOWN = 3
MOVING_OPERATIONS = frozenset({"MergeModulelist", "SplitModulelist", "Concatenate", "Chunk", "Split", "Transpose", "Interleave"})
Edit = Callable[[np.ndarray], np.ndarray]
CONFIG_HINT = "config.json and the weights belong to different models, or the download is incomplete"


@dataclass
class _Recipe:
    """How one parameter (or several that a converter makes together) is made from tensors of the checkpoint."""

    first_target: str  # the name that transformers' conversion starts from
    converter: WeightConverter | None
    sources: list[tuple[str, TensorEntry]] = field(default_factory=list)  # (source pattern, tensor)


class Checkpoint:
    """The weights of `traced`, which was traced from `source`. `edits`: what is done to parameters when they are read (merged adapters)."""

    def __init__(self, source: ModelSource, traced: TracedModel, edits: Mapping[str, Edit] | None = None) -> None:
        self._traced = traced
        self.edits = dict(edits or {})
        self._folder = source.folder
        self.entries = _all_entries(source)
        self._recipes, self._unread = _plan_recipes(self.entries, traced)
        self._aliases: dict[str, list[str]] = {}
        for alias, name in traced.tied.items():
            self._aliases.setdefault(name, []).append(alias)

    def read(self, param_name: str) -> np.ndarray:
        """The parameter as float32, of the shape that the graph has, edited."""
        array = self.read_unedited(param_name)
        edit = self.edits.get(param_name)
        if edit is None:
            return array
        edited = edit(array)
        require_finite(edited, param_name, "after it was edited (merged adapters)")
        return edited

    def read_unedited(self, param_name: str) -> np.ndarray:
        """The parameter as the checkpoint has it. Holds the tensors that make it, nothing else."""
        stored = self._stored_names(param_name)
        array = self._make(stored[0])
        self._require_shape(param_name, stored[0], tuple(array.shape))
        for other in stored[1:]:
            if not np.array_equal(array, self._make(other)):
                what = f"'{stored[0]}' and '{other}' are tied by the config, and the checkpoint stores different values for them"
                raise CheckpointError(what, where=self._where(other), hint="set tie_word_embeddings to false in config.json")
        return array

    def source_dtype(self, param_name: str) -> str:
        """How the checkpoint stores it: bf16, f16, or f32 (also where its tensors differ)."""
        recipe = self._recipes[self._stored_names(param_name)[0]]
        dtypes = {entry.storage_dtype for _, entry in recipe.sources}
        return dtypes.pop() if len(dtypes) == 1 else "f32"

    def verify(self) -> None:
        """Checks that every parameter is there with its shape and a dtype that is read; reads headers only."""
        missing = [name for name in self._traced.param_shapes if not self._find(name)]
        if missing:
            raise self._missing(missing)
        for name in self._traced.param_shapes:
            self.source_dtype(name)
            for stored in self._stored_names(name):
                self._require_shape(name, stored, self._shape_of(stored))

    @property
    def unused_tensors(self) -> list[str]:
        """Tensors of the checkpoint that no parameter of the model is made from."""
        return list(self._unread)

    # --- finding

    def _find(self, param_name: str) -> list[str]:
        """The names under which the checkpoint stores the parameter: its own, then those tied to it."""
        return [name for name in (param_name, *self._aliases.get(param_name, [])) if name in self._recipes]

    def _stored_names(self, param_name: str) -> list[str]:
        if param_name not in self._traced.param_shapes:
            raise InternalError(f"the graph reads no parameter '{param_name}'")
        names = self._find(param_name)
        if not names:
            raise self._missing([param_name])
        return names

    def _missing(self, names: list[str]) -> CheckpointError:
        shown = ", ".join(f"'{name}'" for name in names[:MAX_NAMES_SHOWN]) + (" …" if len(names) > MAX_NAMES_SHOWN else "")
        expected = list(self._traced.param_shapes[names[0]])
        what = f"{shown} is missing (shape {expected})" if len(names) == 1 else f"{len(names)} tensors are missing: {shown}"
        return CheckpointError(what, where=str(self._folder), hint=CONFIG_HINT)

    def _where(self, stored: str) -> str:
        """The files that a parameter comes from, and the tensors' own names where they differ."""
        sources = [entry for _, entry in self._recipes[stored].sources]
        files = sorted({entry.file.name for entry in sources})
        names = [entry.name for entry in sources if entry.name != stored]
        made_of = f" (made of {', '.join(names[:MAX_NAMES_SHOWN])}{' …' if len(names) > MAX_NAMES_SHOWN else ''})" if names else ""
        return f"{self._folder}: {', '.join(files)}{made_of}"

    def _require_shape(self, param_name: str, stored: str, found: tuple[int, ...]) -> None:
        expected = self._traced.param_shapes[param_name]
        if found != expected:
            what = f"'{stored}' has shape {list(found)}, expected {list(expected)}"
            raise CheckpointError(what, where=self._where(stored), hint="check the sizes in config.json; " + CONFIG_HINT)

    # --- making

    def _make(self, stored: str) -> np.ndarray:
        recipe = self._recipes[stored]
        if recipe.converter is None:
            return recipe.sources[0][1].read()
        as_stored = _only_moves(recipe)
        made = self._convert(stored, recipe, _load_as_stored if as_stored else lambda entry: torch.from_numpy(entry.read()))
        array = np.ascontiguousarray(made.to(torch.float32).numpy())
        require_finite(array, stored, self._where(stored))
        return array

    def _shape_of(self, stored: str) -> tuple[int, ...]:
        """The shape that `_make` gives, found by converting tensors without data."""
        recipe = self._recipes[stored]
        if recipe.converter is None:
            return recipe.sources[0][1].shape
        return tuple(self._convert(stored, recipe, lambda entry: torch.empty(entry.shape, device="meta")).shape)

    def _convert(self, stored: str, recipe: _Recipe, load: Callable[[TensorEntry], torch.Tensor]) -> torch.Tensor:
        """Runs transformers' conversion operations on the tensors of a recipe."""
        converter = copy.deepcopy(recipe.converter)
        assert converter is not None
        for pattern, entry in recipe.sources:
            converter.add_tensor(recipe.first_target, entry.name, pattern, lambda entry=entry: load(entry))  # type: ignore[misc,arg-type]
        try:
            made = converter.convert(recipe.first_target, model=self._traced.skeleton, config=self._traced.config)
        except CheckpointError:
            raise
        except Exception as error:  # transformers' operations raise whatever torch raises on shapes that do not fit
            shapes = [f"'{entry.name}' {list(entry.shape)}" for _, entry in recipe.sources[:MAX_NAMES_SHOWN]]
            what = f"'{stored}' cannot be made from {', '.join(shapes)}: {str(error).splitlines()[0]}"
            raise CheckpointError(what, where=self._where(stored), hint=CONFIG_HINT) from error
        result = made[stored]
        return result[0] if isinstance(result, list) else result


def _only_moves(recipe: _Recipe) -> bool:
    """Whether converting only moves elements of one dtype, so that it may run on the stored values (half the memory for bf16)."""
    assert recipe.converter is not None
    dtypes = {entry.dtype for _, entry in recipe.sources}
    return len(dtypes) == 1 and all(type(operation).__name__ in MOVING_OPERATIONS for operation in recipe.converter.operations)


def _load_as_stored(entry: TensorEntry) -> torch.Tensor:
    raw = torch.from_numpy(entry.read_raw())
    return raw.view(torch.bfloat16) if entry.dtype == "BF16" else raw


def _all_entries(source: ModelSource) -> dict[str, TensorEntry]:
    """Every tensor of the checkpoint by its own name."""
    entries: dict[str, TensorEntry] = {}
    for file in source.safetensors_files:
        for name, entry in read_header(file).items():
            if name in entries:
                what = f"'{name}' is in both {entries[name].file.name} and {file.name}"
                raise CheckpointError(what, where=str(source.folder), hint="keep only the files of one checkpoint in the folder")
            entries[name] = entry
    _require_indexed(source.folder, entries)
    return entries


def _require_indexed(folder: Path, entries: dict[str, TensorEntry]) -> None:
    """What the index promises must be in the file that it names."""
    index = folder / INDEX_FILE
    if not index.is_file():
        return
    for name, file_name in json.loads(index.read_bytes())["weight_map"].items():
        if name not in entries or entries[name].file.name != file_name:
            hint = "download the folder again; the index and the files are of different versions"
            raise CheckpointError(f"the index says that '{name}' is in {file_name}, and it is not", where=str(index), hint=hint)


def _plan_recipes(entries: dict[str, TensorEntry], traced: TracedModel) -> tuple[dict[str, _Recipe], list[str]]:
    """Parameter name → recipe, by transformers' rules for names; and the tensors that make no parameter."""
    model = traced.skeleton
    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    converter_of = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    state = model.state_dict()
    recipes: dict[str, _Recipe] = {}
    unread: list[str] = []
    for name in sorted(entries, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, state)
        if target not in state and name in state:
            target, pattern = rename_source_key(name, [], [], model.base_model_prefix, state)
        if target not in state:
            unread.append(name)
            continue
        converter = converter_of[pattern] if pattern is not None else None
        for made in _targets(target, converter):
            recipe = recipes.setdefault(made, _Recipe(target, converter))
            recipe.sources.append((pattern if pattern is not None else name, entries[name]))
    return recipes, unread


def _targets(first: str, converter: WeightConverter | None) -> Iterable[str]:
    """The parameters that a conversion makes."""
    if converter is None:
        return [first]
    patterns = converter.target_patterns
    return [first.replace(patterns[0], pattern) for pattern in patterns]
