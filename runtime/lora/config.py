"""adapter_config.json of a PEFT LoRA adapter: which modules it changes, and by what factor.

    config = AdapterConfig.load(folder)
    config.targets("model.layers.0.self_attn.q_proj")     does it name this module?
    config.rank(module), config.scale(module)             scale = lora_alpha / r, or / sqrt(r) with use_rslora

Nothing is guessed: a key that changes what is computed, and that is not done here, is refused by its name. Patterns are matched as PEFT
0.21 matches them. Format: PEFT's LoraConfig.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import FmoError

CONFIG_FILE = "adapter_config.json"

_READ = {
    "peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules", "exclude_modules",
    "layers_to_transform", "layers_pattern", "init_lora_weights", "bias", "base_model_name_or_path",
}  # fmt: skip
_WITHOUT_EFFECT = {
    "task_type", "inference_mode", "lora_dropout", "revision", "auto_mapping", "peft_version", "fan_in_fan_out", "megatron_core",
    "ensure_weight_tying", "qalora_group_size", "runtime_config", "loftq_config", "eva_config", "corda_config", "lora_ga_config",
}  # fmt: skip
_REFUSED = {
    "use_dora": "DoRA scales every column of the weight",
    "modules_to_save": "it replaces whole modules",
    "target_parameters": "it changes parameters that are no linear layer, such as stacked experts",
    "trainable_token_indices": "it replaces rows of the embedding",
    "layer_replication": "it builds other layers than the base model has",
    "alora_invocation_tokens": "it is active in a part of the sequence only",
    "lora_bias": "it adds a bias",
    "use_qalora": "it pools the input",
    "use_bdlora": "its matrices are block-diagonal",
}
_CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


class AdapterError(FmoError):
    """The adapter cannot be read, or it cannot be applied to this model."""


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """What adapter_config.json says, checked."""

    folder: Path
    r: int
    lora_alpha: float
    use_rslora: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    target_modules: str | tuple[str, ...]
    exclude_modules: str | tuple[str, ...]
    layers_to_transform: tuple[int, ...]
    layers_pattern: tuple[str, ...]
    base_model: str | None

    @staticmethod
    def load(folder: Path) -> AdapterConfig:
        """Raises AdapterError: no such file, not JSON, another method than LoRA, a key that cannot be honoured."""
        path = folder / CONFIG_FILE
        raw = _read_object(path)
        _refuse_others(raw, path)
        return _parse(raw, path)

    def targets(self, module: str) -> bool:
        if self.exclude_modules and _names(self.exclude_modules, module):
            return False
        if self.target_modules != "all-linear" and not _names(self.target_modules, module):
            return False
        return isinstance(self.target_modules, str) or not self.layers_to_transform or self._layer(module) in self.layers_to_transform

    def rank(self, module: str) -> int:
        return int(_by_pattern(self.rank_pattern, module, self.r))

    def scale(self, module: str) -> float:
        rank = self.rank(module)
        return float(_by_pattern(self.alpha_pattern, module, self.lora_alpha)) / (math.sqrt(rank) if self.use_rslora else rank)

    def _layer(self, module: str) -> int | None:
        """The layer number in a module path: behind one of `layers_pattern`, else the first number in it."""
        for head in [f"(?:^|.*?\\.){pattern}" for pattern in self.layers_pattern] or [r".*?\.[^.]*"]:
            if match := re.match(rf"{head}\.(\d+)\.", module):
                return int(match.group(1))
        return None


def _names(pattern: str | Sequence[str], module: str) -> bool:
    """A string is a regular expression for the whole path; a list holds ends of paths."""
    if isinstance(pattern, str):
        return re.fullmatch(pattern, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in pattern)


def _by_pattern(table: Mapping[str, float], module: str, default: float) -> float:
    return next((value for key, value in table.items() if re.match(rf"(.*\.)?({key})$", module)), default)


def _read_object(path: Path) -> dict[str, Any]:
    hint = f"a PEFT adapter is a folder with {CONFIG_FILE} and adapter_model.safetensors"
    try:
        raw = json.loads(path.read_bytes())
    except OSError as error:
        raise AdapterError(f"'{path.name}' cannot be read: {error.strerror}", where=str(path.parent), hint=hint) from None
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"'{path.name}' is not JSON: {error}", where=str(path), hint="download the file again") from None
    if not isinstance(raw, dict):
        raise AdapterError(f"'{path.name}' holds a JSON {type(raw).__name__}, expected an object", where=str(path), hint=hint)
    return raw


def _refuse_others(raw: dict[str, Any], path: Path) -> None:
    """Refuses what would compute something else than `W x + scale B A x`."""

    def refuse(what: str, hint: str = "train or convert the adapter without it") -> AdapterError:
        return AdapterError(what, where=str(path), hint=hint)

    if raw.get("peft_type") != "LORA":
        raise refuse(f"peft_type is {raw.get('peft_type')!r}, only 'LORA' is read", "convert it to LoRA, or merge it into the checkpoint")
    if raw.get("bias", "none") != "none":
        raise refuse(f"bias is {raw['bias']!r}: biases of the base model are replaced, which is not supported")
    for key, why in _REFUSED.items():
        if raw.get(key):
            raise refuse(f"'{key}' is {raw[key]!r}: {why}, which is not supported")
    init = raw.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower().startswith(_CHANGED_BASE):
        raise refuse(f"init_lora_weights is '{init}': the adapter belongs to a changed base model", "convert it with PEFT to a plain LoRA")
    for key in sorted(set(raw) - _READ - _WITHOUT_EFFECT - set(_REFUSED)):
        if raw[key] not in (None, False, [], {}, ""):
            raise refuse(f"'{key}' is {raw[key]!r}, and what it means is not known here", "save the adapter again without it")


def _parse(raw: dict[str, Any], path: Path) -> AdapterConfig:
    def fail(key: str, expected: str) -> AdapterError:
        return AdapterError(f"'{key}' is {raw.get(key)!r}, expected {expected}", where=str(path), hint="save the adapter again with PEFT")

    def number(key: str, default: float) -> float:
        value = raw.get(key, default)
        if not _is_positive(value):
            raise fail(key, "a number above 0")
        return value

    def table(key: str) -> dict[str, float]:
        value = raw.get(key) or {}
        if not isinstance(value, dict) or not all(map(_is_positive, value.values())):
            raise fail(key, "an object of numbers above 0")
        return value

    def strings(key: str) -> str | tuple[str, ...]:
        value = raw.get(key) or ()
        if not isinstance(value, str) and not (isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)):
            raise fail(key, "a list of module names or a regular expression")
        return value if isinstance(value, str) else tuple(value)

    layers = raw.get("layers_to_transform")
    layers = [] if layers is None else layers if isinstance(layers, list) else [layers]
    if not all(type(layer) is int for layer in layers):
        raise fail("layers_to_transform", "a list of layer numbers")
    if not raw.get("target_modules"):
        raise fail("target_modules", "a list of module names or a regular expression")
    pattern = strings("layers_pattern")
    ranks = table("rank_pattern")
    if not all(isinstance(rank, int) for rank in (number("r", 8), *ranks.values())):
        raise fail("r", "whole numbers, in rank_pattern too")
    _require_patterns(
        [
            *ranks,
            *table("alpha_pattern"),
            *(text for key in ("target_modules", "exclude_modules") if isinstance(text := strings(key), str)),
        ],
        path,
    )
    return AdapterConfig(
        folder=path.parent,
        r=int(number("r", 8)),
        lora_alpha=number("lora_alpha", 8),
        use_rslora=bool(raw.get("use_rslora")),
        rank_pattern={key: int(rank) for key, rank in ranks.items()},
        alpha_pattern=table("alpha_pattern"),
        target_modules=strings("target_modules"),
        exclude_modules=strings("exclude_modules"),
        layers_to_transform=tuple(layers),
        layers_pattern=(pattern,) if isinstance(pattern, str) else pattern,
        base_model=raw.get("base_model_name_or_path"),
    )


def _require_patterns(patterns: Sequence[str], path: Path) -> None:
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise AdapterError(f"'{pattern}' is no regular expression: {error}", where=str(path), hint="correct the pattern") from None


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < math.inf
