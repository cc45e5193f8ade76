"""Where an adapter comes from: a folder, or a hub id that is looked up in the hub cache first and downloaded when it is not there.

`parse_adapter_list("name:path,name2:path2")` is the form of `--adapter-model`.
"""

from __future__ import annotations

import re
from pathlib import Path

from .config import CONFIG_FILE, AdapterError

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
"""Not `./folder` or `../folder`."""
ADAPTER_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")
FILES = [CONFIG_FILE, "adapter_model.safetensors", "tokenizer_config.json", "chat_template.jinja"]


def parse_adapter_list(text: str) -> dict[str, str]:
    """`name:path` pairs, joined by commas, in order. Raises AdapterError."""
    found: dict[str, str] = {}
    for part in text.split(","):
        name, colon, path = part.strip().partition(":")
        if not colon or not path:
            raise AdapterError(f"'{part}' is not NAME:PATH", where="--adapter-model", hint='e.g. --adapter-model "law:adapters/law"')
        require_name(name)
        if name in found:
            raise AdapterError(f"the adapter name '{name}' is given twice", where="--adapter-model", hint="give each adapter its own name")
        found[name] = path
    return found


def require_name(name: str) -> None:
    if not ADAPTER_NAME.fullmatch(name):
        hint = "use letters, digits, dots, dashes and underscores, at most 128 of them"
        raise AdapterError(f"'{name[:140]}' is no adapter name", where="adapter name", hint=hint)


def find_adapter(path_or_id: str) -> Path:
    """The folder of an adapter. Raises AdapterError when there is neither a folder nor a hub repository."""
    folder = Path(path_or_id).expanduser()
    if folder.is_dir():
        return folder
    if not HUB_ID.fullmatch(path_or_id):
        hint = "give a folder with adapter_config.json, or a hub id such as org/name"
        raise AdapterError(f"there is no adapter folder '{path_or_id}', and it is no hub id", where=path_or_id, hint=hint)
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError:
        hint = "pip install huggingface_hub, or download it and give the folder"
        raise AdapterError(f"there is no adapter folder '{path_or_id}'", where=path_or_id, hint=hint) from None
    try:
        return Path(snapshot_download(path_or_id, allow_patterns=FILES))
    except Exception as error:  # the hub's client raises many kinds, those of its HTTP library too
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        hint = "check the spelling; private repositories need `hf auth login`; HF_HUB_OFFLINE=1 looks in the cache only"
        raise AdapterError(
            f"there is no adapter folder '{path_or_id}', and no such adapter from the hub: {reason}", where=path_or_id, hint=hint
        ) from None
