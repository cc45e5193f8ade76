"""Adapters in the engine: chosen per request, mixed in a batch, loaded and unloaded while others run, never sharing cached prompts."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from friendli_runtime.llm import LLM
from friendli_runtime.lora.config import AdapterError
from friendli_runtime.lora.registry import UnknownAdapter
from friendli_runtime.sampling import SamplingParams
from frontend.architectures import VOCAB_SIZE

from .compiled import compiled_base
from .conftest import SavedModel
from .peft_models import TARGETS, logits_of, make_adapter

GREEDY = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)
PROMPTS = [np.random.default_rng(i).integers(3, VOCAB_SIZE, length).tolist() for i, length in enumerate([40, 19, 33, 5])]


@pytest.fixture(scope="module")
def adapters(saved_model: SavedModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    model, _ = saved_model("llama")
    folder = tmp_path_factory.mktemp("adapters")
    make_adapter(model, folder / "law", seed=1, target_modules=TARGETS["llama"])
    make_adapter(model, folder / "chat", seed=2, r=16, target_modules=["q_proj", "gate_proj"])
    return {"law": folder / "law", "chat": folder / "chat"}


@pytest.fixture
def llm(saved_model: SavedModel, adapters: dict[str, Path]) -> Iterator[LLM]:
    artifact = compiled_base("llama", saved_model("llama")[1])
    with LLM(artifact.folder, num_threads=2, max_num_tokens=64, max_num_seqs=8, kv_cache_bytes=1 << 20, adapters=adapters) as opened:
        yield opened


def tokens_of(llm: LLM, prompt: list[int], adapter: str | None) -> list[int]:
    return llm.generate(prompt, GREEDY, adapter=adapter)[0].outputs[0].token_ids


def test_each_request_has_the_tokens_of_its_own_adapter_whatever_runs_beside_it(llm: LLM, saved_model: SavedModel, tmp_path: Path) -> None:
    model, _ = saved_model("llama")
    wrapped = make_adapter(model, tmp_path / "law", seed=1, target_modules=TARGETS["llama"])
    prompts = [prompt for prompt in PROMPTS for _ in range(3)]
    names: list[str | None] = [None, "law", "chat"] * len(PROMPTS)
    together = [output.outputs[0].token_ids for output in llm.generate(prompts, GREEDY, adapter=names)]
    assert together == [tokens_of(llm, prompt, name) for prompt, name in zip(prompts, names, strict=True)]
    for i in range(0, len(prompts), 3):
        assert together[i] != together[i + 1] and together[i + 1] != together[i + 2], "the adapters change nothing"
        expected = logits_of(wrapped, prompts[i] + together[i + 1])[len(prompts[i]) - 1 : -1].argmax(axis=1)
        assert expected.tolist() == together[i + 1]


def test_cached_prompts_are_found_by_the_same_load_of_the_same_adapter_only(llm: LLM, adapters: dict[str, Path]) -> None:
    def num_cached(adapter: str | None) -> int:
        return llm.generate(PROMPTS[0], GREEDY, adapter=adapter)[0].num_cached_tokens

    assert [num_cached(name) for name in (None, "law", "chat")] == [0, 0, 0]
    assert [num_cached(name) for name in (None, "law", "chat")] == [39, 39, 39]
    llm.unload_adapter("law")
    llm.load_adapter("law", adapters["chat"])
    assert num_cached("law") == 0, "another adapter of that name has computed these blocks"
    assert num_cached("chat") == 39


def test_an_adapter_that_is_unloaded_serves_its_running_requests_to_their_end(llm: LLM) -> None:
    expected = tokens_of(llm, PROMPTS[1], "law")
    stream = llm.stream(PROMPTS[1], GREEDY, adapter="law")
    tokens = list(next(stream).token_ids)
    llm.unload_adapter("law")
    assert llm.adapters == ["chat"]
    with pytest.raises(UnknownAdapter, match="no adapter 'law'"):
        llm.generate(PROMPTS[1], GREEDY, adapter="law")
    for delta in stream:
        tokens += delta.token_ids
    assert tokens == expected


def test_loading_and_unloading_disturbs_nobody(llm: LLM, adapters: dict[str, Path]) -> None:
    expected = [tokens_of(llm, prompt, "chat") for prompt in PROMPTS]
    is_over = threading.Event()

    def churn() -> None:
        number = 0
        while not is_over.is_set():
            llm.load_adapter(f"other-{number}", adapters["law"])
            llm.unload_adapter(f"other-{number}")
            number += 1

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(5):
            outputs = llm.generate(PROMPTS, GREEDY, adapter="chat")
            assert [output.outputs[0].token_ids for output in outputs] == expected
    finally:
        is_over.set()
        thread.join()


def test_the_memory_of_an_adapter_is_given_back_with_its_last_user(llm: LLM) -> None:
    core = llm._loaded.engine._core.model
    before = core.memory()["adapter_bytes"]
    stream = llm.stream(PROMPTS[3], GREEDY, adapter="law")
    next(stream)
    llm.unload_adapter("law")
    list(stream)
    for thread in threading.enumerate():
        if thread.name == "fmo-free-adapter":
            thread.join()
    assert core.memory()["adapter_bytes"] < before


def test_names_and_folders_that_cannot_be_used_are_refused(llm: LLM, adapters: dict[str, Path], tmp_path: Path) -> None:
    for name, path, message in [
        ("law", adapters["law"], "loaded already"),
        ("llama", adapters["law"], "name of the model"),
        ("a/b", adapters["law"], "no adapter name"),
        ("new", tmp_path / "nothing", "no adapter folder"),
    ]:
        with pytest.raises(AdapterError, match=message):
            llm.load_adapter(name, path)
    with pytest.raises(UnknownAdapter, match="no adapter 'new'"):
        llm.unload_adapter("new")
    assert llm.adapters == ["law", "chat"]
