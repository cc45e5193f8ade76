"""Reads a PEFT LoRA adapter: adapter_config.json and adapter_model.safetensors.

    adapter = Adapter.load(folder)
    adapter.modules["model.layers.0.self_attn.q_proj"]     LowRank: y += scale · up @ (down @ x)

Module names are those of the base model in transformers. Pickled weights are never opened. Tensors that the config does not name, halves
of a pair, ranks that differ from the config and numbers that are not finite are refused.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CorruptArtifact
from ..weight_files import read_header, span_of
from .config import CONFIG_FILE, AdapterConfig, AdapterError

WEIGHTS_FILE = "adapter_model.safetensors"
PICKLED_FILE = "adapter_model.bin"
TENSOR_NAME = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<half>[AB])(\.[^.]+)?\.weight")
_RAW: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
MAX_NAMES_SHOWN = 3


@dataclass(frozen=True, slots=True)
class LowRank:
    """The change of one linear layer: y += scale · up @ (down @ x)."""

    down: np.ndarray  # [rank, in_features] f32, PEFT's lora_A
    up: np.ndarray  # [out_features, rank] f32, PEFT's lora_B
    scale: float

    @property
    def rank(self) -> int:
        return int(self.down.shape[0])


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter in memory. `sha256` is that of its weights file."""

    folder: Path
    config: AdapterConfig
    modules: Mapping[str, LowRank]
    sha256: str

    @staticmethod
    def load(folder: str | Path) -> Adapter:
        """Raises AdapterError naming the file and the tensor."""
        folder = Path(folder).expanduser()
        if not folder.is_dir():
            hint = f"give a folder with {CONFIG_FILE} and {WEIGHTS_FILE}"
            raise AdapterError(f"there is no adapter folder '{folder}'", where=str(folder), hint=hint)
        config = AdapterConfig.load(folder)
        path = folder / WEIGHTS_FILE
        _require_safetensors(path)
        modules = _modules(config, path, _read_tensors(path))
        return Adapter(folder, config, modules, hashlib.sha256(path.read_bytes()).hexdigest())

    def require_complete(self, linear_modules: Iterable[str]) -> None:
        """`linear_modules`: of the model. As in PEFT, a target may name others.

        Raises AdapterError where one is targeted and has no tensors: it would be a weaker adapter in silence."""
        if self.config.target_modules == "all-linear":  # without the head, which only the model's own class can tell
            return
        missing = [name for name in linear_modules if self.config.targets(name) and name not in self.modules]
        if missing:
            shown = ", ".join(f"'{name}'" for name in missing[:MAX_NAMES_SHOWN])
            what = f"{CONFIG_FILE} targets {shown}{' …' if len(missing) > MAX_NAMES_SHOWN else ''}, and the file has no tensors for it"
            raise _error(self.folder / WEIGHTS_FILE, what, "download the adapter again, or correct the targets")


def _require_safetensors(path: Path) -> None:
    if path.is_file():
        return
    if (path.parent / PICKLED_FILE).is_file():
        hint = "convert it once where you trust it: PeftModel.from_pretrained(base, folder).save_pretrained(folder) writes safetensors"
        raise AdapterError(f"the weights are {PICKLED_FILE}, only safetensors are read", where=str(path.parent), hint=hint)
    raise AdapterError(f"'{path.name}' is missing", where=str(path.parent), hint="download the adapter again")


def _read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Every tensor as float32."""
    try:
        data_start, file_bytes, header = read_header(path)
        spans = {name: span_of(path, name, entry, file_bytes - data_start) for name, entry in header.items() if name != "__metadata__"}
    except CorruptArtifact as error:
        raise AdapterError(error.what, where=error.where, hint="download the adapter again; the file is cut off or damaged") from None
    tensors = {}
    for name, (begin, _) in spans.items():
        dtype, shape = header[name]["dtype"], header[name]["shape"]
        if dtype not in _RAW:
            raise _error(path, f"'{name}' is {dtype}, expected F32, F16 or BF16", "save the adapter in one of these")
        raw = np.fromfile(path, _RAW[dtype], int(np.prod(shape)), offset=data_start + begin).reshape(shape)
        array = (raw.astype(np.uint32) << 16).view(np.float32) if dtype == "BF16" else raw.astype(np.float32)
        if not np.isfinite(array).all():
            raise _error(path, f"'{name}' holds numbers that are not finite", "train the adapter again; it has diverged")
        tensors[name] = array
    return tensors


def _modules(config: AdapterConfig, path: Path, tensors: dict[str, np.ndarray]) -> dict[str, LowRank]:
    halves: dict[str, dict[str, np.ndarray]] = {}
    for name, array in tensors.items():
        match = TENSOR_NAME.fullmatch(name)
        if match is None or ".base_layer" in name:
            raise _error(path, f"'{name}' {_kind(name)}, which is not supported", "train or save the adapter with linear layers only")
        if array.ndim != 2:
            raise _error(path, f"'{name}' has shape {list(array.shape)}, expected two dims", "train the adapter for linear layers only")
        halves.setdefault(match["module"], {})[match["half"]] = array
    if not halves:
        raise _error(path, "the file holds no tensors", "download the adapter again")
    modules = {module: _low_rank(config, path, module, pair) for module, pair in sorted(halves.items())}
    return modules


def _kind(name: str) -> str:
    """What a tensor is that is no half of a linear layer's pair."""
    if "lora_embedding" in name:
        return "changes an embedding"
    return "is no lora_A or lora_B of a linear layer" if "lora_" in name else "replaces a whole tensor of the model"


def _low_rank(config: AdapterConfig, path: Path, module: str, pair: dict[str, np.ndarray]) -> LowRank:
    if len(pair) != 2:
        raise _error(path, f"'{module}' has lora_{next(iter(pair))} and not the other half", "download the adapter again")
    if not config.targets(module):
        raise _error(path, f"'{module}' has tensors, and {CONFIG_FILE} does not target it", "save config and weights together")
    down, up = pair["A"], pair["B"]
    if not down.shape[0] == up.shape[1] == config.rank(module):
        shapes = f"lora_A {list(down.shape)} and lora_B {list(up.shape)}"
        raise _error(path, f"'{module}' has {shapes}, the config says rank {config.rank(module)}", "save config and weights together")
    return LowRank(down, up, config.scale(module))


def _error(path: Path, what: str, hint: str) -> AdapterError:
    return AdapterError(what, where=str(path), hint=hint)
