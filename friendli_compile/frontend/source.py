"""Where a model comes from: a local folder or a hub id, with its config, weight files and tokenizer files.

    load_source("org/name") ─▶ ModelSource(folder, config, safetensors_files, tokenizer_files)

Files of a hub id that are in the hub cache are not downloaded again; HF_HUB_OFFLINE=1 never asks the network.
Nothing here reads a weight: `checkpoint.py` does. Every failure is a SourceError that says what to do.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from ..errors import CheckpointError, SourceError
from .embedding import MODULES_FILE, POOLING_CONFIGS, Embedding, read_embedding
from .quiet import quiet

CONFIG_FILE = "config.json"
INDEX_FILE = "model.safetensors.index.json"
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "chat_template.json", "generation_config.json", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model",
)  # fmt: skip
OTHER_WEIGHT_SUFFIXES = (".bin", ".pt", ".pth", ".h5", ".msgpack", ".ckpt", ".gguf", ".onnx")
DUPLICATE_WEIGHTS = ["*/*", "consolidated*"]  # the same weights in the layout of the model's authors
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class ModelSource:
    """A model folder that has a config; it may lack weights (`fmo check`) or a tokenizer (a serve-time matter)."""

    name: str  # as the user gave it
    folder: Path
    config: PreTrainedConfig
    config_dict: dict[str, Any]  # config.json as it is
    safetensors_files: tuple[Path, ...]
    tokenizer_files: tuple[Path, ...]
    revision: str | None = None
    embedding: Embedding | None = None  # None: a language model

    @property
    def stored_dtype(self) -> str | None:
        """The dtype that config.json names for the weights ("bfloat16"), None if it names none."""
        return self.config_dict.get("dtype") or self.config_dict.get("torch_dtype")


def load_source(model: str, *, revision: str | None = None, weights: bool = True) -> ModelSource:
    """Finds `model` (a folder or a hub id). With `weights=False` no weight file is downloaded or required.

    Raises SourceError: no such folder or hub id, a config that cannot be read; CheckpointError: no safetensors among the weights."""
    folder = Path(model).expanduser()
    if not folder.is_dir():
        folder = _hub_folder(model, revision, weights)
    config_dict = _read_json_object(folder / CONFIG_FILE)
    config = _parse_config(folder, config_dict)
    files = _safetensors_files(folder) if weights else ()
    tokenizer = tuple(folder / name for name in TOKENIZER_FILES if (folder / name).is_file())
    return ModelSource(model, folder, config, config_dict, files, tokenizer, revision, read_embedding(folder))


def _hub_folder(model: str, revision: str | None, weights: bool) -> Path:
    """The snapshot folder of a hub id, from the cache where it is complete."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if not HUB_ID.fullmatch(model):
        raise SourceError(
            f"there is no folder '{model}', and it is not a hub id", hint="give a folder with a config.json, or an id such as org/name"
        )
    where = f"hub id {model}" + (f", revision {revision}" if revision else "")
    small_files = (CONFIG_FILE, INDEX_FILE, MODULES_FILE, POOLING_CONFIGS)
    try:
        folder = Path(snapshot_download(model, revision=revision, allow_patterns=[*small_files, *TOKENIZER_FILES]))
        if weights:
            snapshot_download(model, revision=revision, allow_patterns=_weight_patterns(folder), ignore_patterns=DUPLICATE_WEIGHTS)
        return folder
    except GatedRepoError:
        raise SourceError(
            f"'{model}' needs permission to download", where=where, hint="accept its terms on the hub and log in with `hf auth login`"
        ) from None
    except RevisionNotFoundError:
        raise SourceError(
            f"'{model}' has no revision '{revision}'", where=where, hint="leave --revision out, or name a branch, tag or commit"
        ) from None
    except RepositoryNotFoundError:
        raise SourceError(
            f"there is no folder and no hub repository '{model}'",
            where=where,
            hint="check the spelling; a private one needs `hf auth login`",
        ) from None
    except LocalEntryNotFoundError:
        hint = "give a local folder, or connect to the network (unset HF_HUB_OFFLINE) for the first download"
        raise SourceError(f"there is no folder '{model}', and the hub cache does not hold it", where=where, hint=hint) from None
    except (HfHubHTTPError, OSError) as error:
        raise SourceError(
            f"cannot download '{model}': {_first_line(error)}", where=where, hint="try again, or give a local folder"
        ) from None


def _weight_patterns(folder: Path) -> list[str]:
    """The weight files to download: those that the index names, or all at the top of the repository."""
    if not (folder / INDEX_FILE).is_file():
        return ["*.safetensors"]
    weight_map = _read_json_object(folder / INDEX_FILE).get("weight_map")
    return sorted(set(map(str, weight_map.values()))) if isinstance(weight_map, dict) else []


def _read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`, which must exist."""
    if not path.is_file():
        raise SourceError(
            f"'{path.name}' is missing", where=str(path.parent), hint="a model folder has config.json beside its safetensors files"
        )
    try:
        value = json.loads(path.read_bytes())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise SourceError(
            f"'{path.name}' is not JSON: {error}", where=str(path), hint="download the file again; it may be cut off"
        ) from None
    if not isinstance(value, dict):
        raise SourceError(
            f"'{path.name}' holds a JSON {type(value).__name__}, expected an object", where=str(path), hint="download the file again"
        )
    return value


def _parse_config(folder: Path, config_dict: dict[str, Any]) -> PreTrainedConfig:
    """The transformers config of a known model type."""
    where = str(folder / CONFIG_FILE)
    model_type = config_dict.get("model_type")
    if not isinstance(model_type, str):
        raise SourceError(
            f"'model_type' is {model_type!r}, expected a string",
            where=where,
            hint='add the model_type that transformers knows, e.g. "llama"',
        )
    if model_type not in CONFIG_MAPPING:
        raise SourceError(f"unknown model_type '{model_type}'", where=where, hint=_unknown_type_hint(model_type, config_dict))
    try:
        with quiet():
            return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers validates with many exception types
        raise SourceError(
            f"transformers refuses this config: {_first_line(error)}", where=where, hint="compare it with the config.json on the hub"
        ) from error


def _unknown_type_hint(model_type: str, config_dict: dict[str, Any]) -> str:
    if "auto_map" in config_dict:
        return "the model brings its own Python code, which is never run; use a checkpoint whose model_type transformers knows"
    close = difflib.get_close_matches(model_type, list(CONFIG_MAPPING), 1)
    return f"did you mean '{close[0]}'? Else install a newer transformers" if close else "install a transformers that knows it"


def _safetensors_files(folder: Path) -> tuple[Path, ...]:
    """The weight files: those that the index names, or every *.safetensors of the folder."""
    index = folder / INDEX_FILE
    if index.is_file():
        weight_map = _read_json_object(index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise CheckpointError("'weight_map' is not an object of file names", where=str(index), hint="download the index again")
        return _existing(folder, sorted(set(weight_map.values())))
    files = tuple(sorted(folder.glob("*.safetensors")))
    if files:
        return (folder / "model.safetensors",) if folder / "model.safetensors" in files else files
    others = sorted(path.name for path in folder.iterdir() if path.suffix in OTHER_WEIGHT_SUFFIXES)
    if others:
        hint = (
            'convert once: python -c "from transformers import AutoModelForCausalLM as M; '
            f"M.from_pretrained('{folder}').save_pretrained('{folder.name}-safetensors')\" (it unpickles: only files you trust)"
        )
        raise CheckpointError(f"the weights are {others[0]}, only safetensors are read", where=str(folder), hint=hint)
    raise CheckpointError(
        "the folder has no weights: no *.safetensors", where=str(folder), hint="download them, or run `fmo check`, which needs none"
    )


def _existing(folder: Path, names: Sequence[str]) -> tuple[Path, ...]:
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        what = f"{len(missing)} of {len(names)} weight files are missing: {', '.join(missing[:3])}" + (" …" if len(missing) > 3 else "")
        raise CheckpointError(what, where=str(folder / INDEX_FILE), hint="download the folder again; the index names these files")
    return tuple(folder / name for name in names)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
