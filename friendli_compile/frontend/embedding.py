"""Whether a checkpoint gives embeddings, and how it makes one of the hidden states of a text.

    modules.json [Transformer, Pooling, Normalize] ─▶ Embedding(pooling, is_normalized)     no modules.json ─▶ None: a language model

The files are those that sentence-transformers writes. Modules that compute more than a pooling (a Dense layer, say) are refused:
leaving one out would give other vectors than the model's authors meant.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import SourceError

MODULES_FILE = "modules.json"
POOLING_CONFIGS = "*_Pooling/config.json"
POOLINGS = {"pooling_mode_lasttoken": "last", "pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "first"}
"""The ways of pooling that are served, by the key that switches each on."""
NAMED_POOLINGS = {"lasttoken": "last", "mean": "mean", "cls": "first"}
KNOWN_MODULES = ("Transformer", "Pooling", "Normalize")


@dataclass(frozen=True, slots=True)
class Embedding:
    """`pooling`: last, mean or first token. `is_normalized`: embeddings have the length 1."""

    pooling: str
    is_normalized: bool


def read_embedding(folder: Path) -> Embedding | None:
    """None when the folder holds a language model. Raises SourceError for modules or a pooling that are not served."""
    path = folder / MODULES_FILE
    if not path.is_file():
        return None
    modules = _read(path)
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise SourceError("it is not a list of modules", where=str(path), hint="download the file again")
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in modules]
    unknown = next((kind for kind in kinds if kind not in KNOWN_MODULES), None)
    if unknown is not None or kinds[:2] != ["Transformer", "Pooling"]:
        what = f"the embedding is made by {', '.join(kinds)}; served are Transformer, Pooling and, if there, Normalize"
        raise SourceError(what, where=str(path), hint="use a checkpoint without other modules")
    return Embedding(_pooling(folder / str(modules[1].get("path", "")) / "config.json"), "Normalize" in kinds)


def _pooling(path: Path) -> str:
    config = _read(path)
    settings = config if isinstance(config, dict) else {}
    named = settings.get("pooling_mode")
    switched = [key for key, value in settings.items() if key.startswith("pooling_mode_") and value is True]
    chosen = NAMED_POOLINGS.get(named) if isinstance(named, str) else POOLINGS.get(switched[0]) if len(switched) == 1 else None
    if chosen is None:
        what = f"the pooling is {named or ', '.join(switched) or 'not named'}, expected one of {', '.join(NAMED_POOLINGS)}"
        raise SourceError(what, where=str(path), hint="use a checkpoint with one of these")
    return chosen


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise SourceError(f"'{path.name}' is missing", where=str(path.parent), hint="download the checkpoint again") from None
    except ValueError as error:
        raise SourceError(f"'{path.name}' is not JSON: {error}", where=str(path), hint="download the file again") from None
