"""Who answers a request: the base model, or one of its LoRA adapters; and their loading and unloading while the server runs.

    targets.find("law") ─▶ Target(name, adapter, chat template, planner)         404 for a name that is not served
    POST /v1/adapters {"name": "law", "folder": "law-2024"}                      only with --adapter-dir, and only folders right in it
    DELETE /v1/adapters/law                                                      answers at once; requests that use it end as they would

A client never names a path: `folder` is one plain name below the operator's folder, and whatever is wrong with that folder is one error.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import FmoError
from ..lora.registry import AdapterRegistry, LoadedAdapter, UnknownAdapter
from ..lora.source import ADAPTER_NAME
from ..tokenizer.chat_template import ChatTemplate
from .answer_plan import AnswerPlanner
from .errors import ApiError, invalid_value

FOLDER_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Target:
    """What is served under one name. `adapter` None: the base model."""

    name: str
    adapter: LoadedAdapter | None
    chat_template: ChatTemplate | None
    planner: AnswerPlanner
    created: int = field(default_factory=lambda: int(time.time()))


class Targets:
    """The base model and whatever `registry` holds; `make_planner` reads answers by a chat template."""

    def __init__(self, base: Target, registry: AdapterRegistry | None, make_planner: Callable[[ChatTemplate], AnswerPlanner]) -> None:
        self.base = base
        self._registry = registry
        self._make_planner = make_planner
        self._known: dict[int, Target] = {}  # by uid of the adapter
        self._held: dict[Hashable, LoadedAdapter] = {}

    def find(self, name: str | None) -> Target:
        """Absent and empty names are the base model. Raises ApiError 404."""
        if not name or name == self.base.name:
            return self.base
        try:
            if self._registry is not None:
                return self._target(self._registry.get(name))
        except UnknownAdapter:
            pass
        names = ", ".join(f"'{target.name}'" for target in self.all()[:20])
        raise ApiError(404, f"there is no model '{name[:128]}' here; this server has {names}", param="model", code="model_not_found")

    def hold(self, name: str | None, holder: Hashable) -> Target:
        """As `find`; what is found stays as it is, also if another adapter gets its name, until `release(holder)`."""
        target = self.find(name)
        if target.adapter is not None and self._registry is not None:
            try:
                self._held[holder] = self._registry.acquire(target.adapter)
            except UnknownAdapter:  # unloaded on another thread since
                return self.hold(name, holder)
        return target

    def release(self, holder: Hashable) -> None:
        adapter = self._held.pop(holder, None)
        if adapter is not None and self._registry is not None:
            self._registry.release(adapter)

    def all(self) -> list[Target]:
        """The base model first, then adapters as they were loaded."""
        adapters = self._registry.loaded() if self._registry is not None else []
        return [self.base, *map(self._target, adapters)]

    def forget_unloaded(self) -> None:
        loaded = {adapter.uid for adapter in self._registry.loaded()} if self._registry is not None else set()
        for uid in list(self._known):
            if uid not in loaded:
                del self._known[uid]

    def _target(self, adapter: LoadedAdapter) -> Target:
        found = self._known.get(adapter.uid)
        if found is None:
            template = adapter.chat_template
            planner = self.base.planner if template is None else self._make_planner(template)
            found = self._known[adapter.uid] = Target(adapter.name, adapter, template or self.base.chat_template, planner)
        return found


def load_from(root: Path, registry: AdapterRegistry, name: str, folder: str) -> LoadedAdapter:
    """Loads `folder` of `root`. Raises ApiError 404, 409 or 422; what exactly is wrong with a folder is in the log only."""
    if not ADAPTER_NAME.fullmatch(name):
        raise invalid_value("'name' is no adapter name: letters, digits, dots, dashes and underscores, at most 128", "name")
    if not FOLDER_NAME.fullmatch(folder):
        raise invalid_value("'folder' is not the name of a folder: letters, digits, dots, dashes and underscores, at most 128", "folder")
    if registry.is_taken(name):
        raise ApiError(409, f"the name '{name}' is taken; unload it first", param="name", code="name_taken")
    path = root / folder
    if not path.is_dir():
        raise _not_usable(folder)
    try:
        return registry.load(name, str(path))
    except (FmoError, OSError) as error:
        _log.warning("adapter '%s' cannot be loaded from '%s': %s", name, path, error)
        raise _not_usable(folder) from None


def card(target: Target, base: Target, max_model_len: int) -> dict[str, Any]:
    """The entry of /v1/models."""
    entry = {"id": target.name, "object": "model", "created": target.created, "owned_by": "fmo", "max_model_len": max_model_len}
    return entry if target.adapter is None else entry | {"parent": base.name}


def _not_usable(folder: str) -> ApiError:
    message = f"there is no adapter '{folder}' that this model can use; the server's log has the details"
    return ApiError(404, message, param="folder", code="adapter_not_found")
