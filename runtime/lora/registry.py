"""The adapters of a running engine: names, slots of the executor, and how many requests use each.

    adapters.load("law", "adapters/law")     reads, checks and packs beside the running steps; the next request may ask for it
    adapter = adapters.acquire("law")        a request holds it from its first look at it to its last output, then releases it
    adapters.unload("law")                   the name is gone at once; the memory, when the last request that uses it has ended

Nothing of others is disturbed: a load holds up one step for the time of swapping pointers. Every load gets a number of its own, which
takes part in the scope of the prefix cache: an adapter never finds the blocks of another one, nor of an older one of the same name.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FmoError
from .config import AdapterError
from .source import find_adapter, require_name

if TYPE_CHECKING:
    from ..tokenizer.chat_template import ChatTemplate
    from .adapter import Adapter

TemplateReader = Callable[[Path], "ChatTemplate | None"]

MAX_ADAPTERS = 1024


class UnknownAdapter(FmoError):
    """No adapter of this name is loaded (HTTP 404)."""


@dataclass(slots=True)
class LoadedAdapter:
    """One load of an adapter. `uid` is never used again; `slot` is, after the last use."""

    name: str
    path: str  # as it was given
    folder: Path
    slot: int
    uid: int
    num_modules: int
    max_rank: int
    sha256: str
    chat_template: ChatTemplate | None  # its own; None: that of the base model
    num_users: int = 0
    is_leaving: bool = False


class AdapterRegistry:
    """`core`: the `_core.Executor` that runs the adapters. `read_template` reads the chat template of an adapter's folder."""

    def __init__(self, core: Any) -> None:
        self.read_template: TemplateReader = lambda folder: None
        self._core = core
        self._reserved: set[str] = set()
        self._by_name: dict[str, LoadedAdapter] = {}
        self._taken_slots: set[int] = set()
        self._next_uid = 1  # 0: the base model
        self._lock = threading.Lock()
        self._load_lock = threading.Lock()  # one load at a time; names and counts stay readable meanwhile

    def reserve(self, name: str) -> None:
        """No adapter may be called so: it is the name of the model. Raises AdapterError where one is."""
        with self._lock:
            if name in self._by_name:
                raise AdapterError(f"'{name}' is the name of the model", where="adapter name", hint="give the adapter another name")
            self._reserved.add(name)

    def load(self, name: str, path: str) -> LoadedAdapter:
        """Raises AdapterError: a bad or taken name, a folder that cannot be read, modules that the artifact does not have."""
        from .adapter import Adapter  # numpy is loaded when the first adapter is

        require_name(name)
        with self._load_lock:
            self._require_free(name)
            folder = find_adapter(path)
            adapter, template = Adapter.load(folder), self.read_template(folder)
            adapter.require_complete(self._core.adapter_modules())
            slot = next(slot for slot in range(MAX_ADAPTERS + 1) if slot not in self._taken_slots)
            if slot == MAX_ADAPTERS:
                raise AdapterError(f"{MAX_ADAPTERS} adapters are loaded", where=name, hint="unload one first")
            self._install(slot, adapter)
            with self._lock:
                loaded = LoadedAdapter(
                    name,
                    path,
                    folder,
                    slot,
                    self._next_uid,
                    len(adapter.modules),
                    max(p.rank for p in adapter.modules.values()),
                    adapter.sha256,
                    template,
                )
                self._next_uid += 1
                self._taken_slots.add(slot)
                self._by_name[name] = loaded
        return loaded

    def unload(self, name: str) -> LoadedAdapter:
        """Takes the name away; frees the memory now, or when the last request that uses it ends. Raises UnknownAdapter."""
        with self._lock:
            adapter = self._find(name)
            del self._by_name[name]
            adapter.is_leaving = True
            is_unused = adapter.num_users == 0
        if is_unused:
            self._free(adapter)
        return adapter

    def acquire(self, adapter: str | LoadedAdapter) -> LoadedAdapter:
        """For one request; `release` it once. A name: what is loaded so now; a load: just that one, as long as anybody has it.

        Raises UnknownAdapter.
        """
        with self._lock:
            found = self._find(adapter) if isinstance(adapter, str) else adapter
            if found.is_leaving and found.num_users == 0:
                raise UnknownAdapter(f"adapter '{found.name}' has been unloaded", where="model", hint="send the request again")
            found.num_users += 1
        return found

    def release(self, adapter: LoadedAdapter) -> None:
        """Never waits for a step or a load, as freeing the memory does: it is called where all outputs are handed out."""
        with self._lock:
            adapter.num_users -= 1
            is_last = adapter.num_users == 0 and adapter.is_leaving
        if is_last:
            threading.Thread(target=self._free, args=(adapter,), name="fmo-free-adapter").start()

    def get(self, name: str) -> LoadedAdapter:
        """Raises UnknownAdapter."""
        with self._lock:
            return self._find(name)

    def is_taken(self, name: str) -> bool:
        with self._lock:
            return name in self._reserved or name in self._by_name

    def loaded(self) -> list[LoadedAdapter]:
        """In the order in which they were loaded."""
        with self._lock:
            return list(self._by_name.values())

    def _install(self, slot: int, adapter: Adapter) -> None:
        modules = [(name, part.down, part.up, part.scale) for name, part in adapter.modules.items()]
        try:
            self._core.load_adapter(slot, modules)
        except RuntimeError as error:
            what, _, rest = str(error).partition("\nwhere: ")
            where, _, hint = rest.partition("\ntry: ")
            raise AdapterError(what, where=f"{adapter.folder}, {where}", hint=hint) from None

    def _free(self, adapter: LoadedAdapter) -> None:
        self._core.unload_adapter(adapter.slot)
        with self._lock:
            self._taken_slots.discard(adapter.slot)

    def _require_free(self, name: str) -> None:
        with self._lock:
            if name in self._reserved:
                raise AdapterError(f"'{name}' is the name of the model", where="adapter name", hint="give the adapter another name")
            if name in self._by_name:
                raise AdapterError(f"an adapter '{name}' is loaded already", where="adapter name", hint="unload it first")

    def _find(self, name: str) -> LoadedAdapter:
        """Called with the lock. Raises UnknownAdapter."""
        if name not in self._by_name:
            names = ", ".join(sorted(self._by_name)) or "none"
            raise UnknownAdapter(f"there is no adapter '{name}'", where="model", hint=f"loaded adapters: {names}")
        return self._by_name[name]
