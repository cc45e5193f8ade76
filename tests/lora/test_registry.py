"""Names, slots and users of adapters, on an executor that is in the middle of a long step."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from friendli_runtime.lora.registry import AdapterRegistry, UnknownAdapter

from .conftest import SavedModel
from .peft_models import make_adapter


class BusyExecutor:
    """Takes adapters at once; to remove one waits for the end of the step."""

    def __init__(self) -> None:
        self.step_is_over = threading.Event()
        self.freed_slots: list[int] = []

    def adapter_modules(self) -> dict[str, tuple[int, int]]:
        return {}

    def load_adapter(self, slot: int, modules: object) -> None:
        pass

    def unload_adapter(self, slot: int) -> None:
        assert self.step_is_over.wait(timeout=30)
        self.freed_slots.append(slot)


def test_who_releases_an_adapter_last_does_not_wait_for_the_step_and_its_slot_is_taken_until_then(
    saved_model: SavedModel, tmp_path: Path
) -> None:
    make_adapter(saved_model("llama")[0], tmp_path / "adapter", target_modules=["q_proj"])
    executor = BusyExecutor()
    registry = AdapterRegistry(executor)
    registry.load("law", str(tmp_path / "adapter"))
    used = registry.acquire("law")
    registry.unload("law")
    registry.release(used)
    assert executor.freed_slots == []
    assert registry.load("law", str(tmp_path / "adapter")).slot != used.slot
    executor.step_is_over.set()
    for thread in threading.enumerate():
        if thread.name == "fmo-free-adapter":
            thread.join()
    assert executor.freed_slots == [used.slot]
    assert registry.load("other", str(tmp_path / "adapter")).slot == used.slot


def test_a_load_that_is_held_can_be_used_when_another_has_its_name_and_one_that_is_gone_cannot(
    saved_model: SavedModel, tmp_path: Path
) -> None:
    make_adapter(saved_model("llama")[0], tmp_path / "adapter", target_modules=["q_proj"])
    executor = BusyExecutor()
    executor.step_is_over.set()
    registry = AdapterRegistry(executor)
    first = registry.load("law", str(tmp_path / "adapter"))
    registry.acquire("law")
    registry.unload("law")
    second = registry.load("law", str(tmp_path / "adapter"))
    assert second.slot != first.slot
    assert registry.acquire(first) is first and registry.acquire("law") is second
    registry.release(first)
    registry.release(first)
    with pytest.raises(UnknownAdapter, match="unloaded"):
        registry.acquire(first)
