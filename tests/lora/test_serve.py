"""Adapters over HTTP: `model` picks one, /v1/models lists them, and an operator may let clients load and unload."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from friendli_runtime.engine import Engine
from friendli_runtime.executor import load_executor
from friendli_runtime.lora.registry import AdapterRegistry
from friendli_runtime.server.app import AppOptions
from friendli_runtime.tokenizer.chat_template import load_chat_template
from server.conftest import TestServer, start
from server.test_openapi import FINE, check_random_bodies
from server.test_schemathesis import check_operation

from .compiled import compiled_base
from .conftest import SavedModel
from .peft_models import TARGETS, make_adapter

BODY = {"tokens": [5, 6, 7, 8, 9], "max_tokens": 8, "temperature": 0, "ignore_eos": True}
TEMPLATE = "{% for message in messages %}[{{ message.content }}]{% endfor %}"


@pytest.fixture(scope="module")
def adapter_dir(saved_model: SavedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    model, _ = saved_model("llama_512")
    make_adapter(model, folder / "law", seed=1, target_modules=TARGETS["llama"])
    make_adapter(model, folder / "chat", seed=2, target_modules=["q_proj"])
    (folder / "chat" / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    make_adapter(saved_model("qwen2")[0], folder / "of-another-model", target_modules=["q_proj"], r=2)
    (folder / "of-another-model" / "adapter_config.json").write_text("{}")
    return folder


@pytest.fixture
def make_server(saved_model: SavedModel) -> Iterator[Callable[..., TestServer]]:
    artifact = compiled_base("llama_512", saved_model("llama_512")[1])
    stops = []

    def make_engine(tokenizer: Any, eos_id: int, max_queue_len: int) -> Engine:
        executor = load_executor(artifact, num_threads=1, max_num_tokens=64, max_num_logits=8, num_blocks=64)
        sizes = {"max_num_seqs": 8, "max_num_tokens": 64, "max_context_len": artifact.max_context_len, "vocab_size": artifact.vocab_size}
        engine = Engine(executor, max_queue_len=max_queue_len, has_dispatcher=False, **sizes)
        engine.adapters.read_template = lambda folder: load_chat_template(folder, tokenizer)
        engine.adapters.reserve("scripted")
        return engine

    def make(adapter_dir: Path | None = None) -> TestServer:
        server, stop = start(AppOptions(adapter_dir=adapter_dir), make_engine=make_engine)
        stops.append(stop)
        return server

    yield make
    for stop in stops:
        stop()


def text_of(server: TestServer, **fields: Any) -> str:
    response = server.post("/v1/completions", **{**BODY, **fields})
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["text"]


def test_the_model_of_a_request_picks_the_adapter(make_server: Callable[..., TestServer], adapter_dir: Path) -> None:
    server = make_server()
    for name in ("law", "chat"):
        server.engine.adapters.load(name, str(adapter_dir / name))
    listed = server.client.get("/v1/models").json()["data"]
    assert [(card["id"], card.get("parent")) for card in listed] == [("scripted", None), ("law", "scripted"), ("chat", "scripted")]
    texts = {name: text_of(server, model=name) for name in ("scripted", "law", "chat")}
    assert len(set(texts.values())) == 3
    assert text_of(server) == text_of(server, model="") == texts["scripted"]
    answer = server.post("/v1/completions", **BODY, model="law").json()
    assert answer["model"] == "law" and server.client.get("/v1/models/law").json()["id"] == "law"
    missing = server.post("/v1/completions", **BODY, model="lax")
    assert missing.status_code == 404 and "'scripted', 'law', 'chat'" in missing.json()["error"]["message"]
    assert server.client.get("/v1/models/lax").status_code == 404


def test_an_adapter_with_a_chat_template_of_its_own_is_prompted_by_it(make_server: Callable[..., TestServer], adapter_dir: Path) -> None:
    server = make_server()
    for name in ("law", "chat"):
        server.engine.adapters.load(name, str(adapter_dir / name))
    messages = [{"role": "user", "content": "hello there"}]
    lengths = {}
    for name in ("scripted", "law", "chat"):
        response = server.post("/v1/chat/completions", messages=messages, max_tokens=2, model=name)
        assert response.status_code == 200, response.text
        lengths[name] = response.json()["usage"]["prompt_tokens"]
    assert lengths["law"] == lengths["scripted"]
    assert lengths["chat"] == len(server.tokenizer.encode("[hello there]", add_special_tokens=False))


def test_clients_load_and_unload_what_the_operator_offers(make_server: Callable[..., TestServer], adapter_dir: Path) -> None:
    server = make_server(adapter_dir)
    before = text_of(server)
    loaded = server.post("/v1/adapters", name="mine", folder="law")
    assert loaded.status_code == 200 and loaded.json()["id"] == "mine"
    assert text_of(server, model="mine") != before == text_of(server)
    assert server.post("/v1/adapters", name="mine", folder="law").status_code == 409
    assert server.post("/v1/adapters", name="scripted", folder="law").status_code == 409
    assert server.client.delete("/v1/adapters/mine").json() == {"id": "mine", "object": "model", "deleted": True}
    assert server.client.delete("/v1/adapters/mine").status_code == 404
    assert server.post("/v1/completions", **BODY, model="mine").status_code == 404
    assert [card["id"] for card in server.client.get("/v1/models").json()["data"]] == ["scripted"]


def test_an_adapter_that_is_replaced_while_a_prompt_is_made_answers_that_prompt(
    make_server: Callable[..., TestServer], adapter_dir: Path, saved_model: SavedModel
) -> None:
    """The prompt is made on a thread, by a template that takes its time over this message."""
    server = make_server(adapter_dir)
    wait = "{% if 'linger' in messages[0].content %}{% for i in range(1500) %}{% for j in range(1500) %}{% endfor %}{% endfor %}{% endif %}"
    slow = wait + TEMPLATE.replace("[", "[slow ")
    make_adapter(saved_model("llama_512")[0], adapter_dir / "slow", seed=7, target_modules=TARGETS["llama"])
    (adapter_dir / "slow" / "tokenizer_config.json").write_text(json.dumps({"chat_template": slow}))
    body = {"messages": [{"role": "user", "content": "linger", "name": "n" * 6000}], "max_tokens": 8, "temperature": 0, "model": "mine"}

    def answer() -> Any:
        response = server.post("/v1/chat/completions", **body)
        assert response.status_code == 200, response.text
        return response.json()["choices"][0]["message"]["content"], response.json()["usage"]["prompt_tokens"]

    def replace_by(folder: str) -> None:
        assert server.client.delete("/v1/adapters/mine").status_code == 200
        assert server.post("/v1/adapters", name="mine", folder=folder).status_code == 200

    answers = {}
    assert server.post("/v1/adapters", name="mine", folder="law").status_code == 200
    answers["law"] = answer()
    replace_by("slow")
    answers["slow"] = answer()
    assert answers["law"] != answers["slow"]
    old = server.engine.adapters.get("mine")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(answer)
        while old.num_users == 0 and not waiting.done():
            time.sleep(0.001)
        replace_by("law")
        assert not waiting.done(), "the template was not slow enough"
        assert waiting.result() == answers["slow"]
    assert answer() == answers["law"]
    assert old.num_users == 0


def test_a_client_learns_nothing_of_the_disk(make_server: Callable[..., TestServer], adapter_dir: Path) -> None:
    server = make_server(adapter_dir)
    for folder in ("..", ".", "../law", "/etc", "a/b", ".hidden", ""):
        assert server.post("/v1/adapters", name="x", folder=folder).status_code == 422, folder
    answers = [server.post("/v1/adapters", name="x", folder=folder) for folder in ("nothing", "of-another-model")]
    assert [answer.status_code for answer in answers] == [404, 404]
    messages = {
        answer.json()["error"]["message"].replace(folder, "F")
        for answer, folder in zip(answers, ("nothing", "of-another-model"), strict=True)
    }
    assert len(messages) == 1, "absent and unusable folders can be told apart"


def test_without_a_folder_of_adapters_nobody_may_load(make_server: Callable[..., TestServer], adapter_dir: Path) -> None:
    server = make_server()
    server.engine.adapters.load("law", str(adapter_dir / "law"))
    assert server.post("/v1/adapters", name="mine", folder="law").status_code == 403
    assert server.client.delete("/v1/adapters/law").status_code == 403
    assert text_of(server, model="law")


NUM_CASES = [25, pytest.param(2000, marks=pytest.mark.slow)]
FOLDERS = ["law", "chat", "of-another-model", "nothing", "..", "law/../law"]
KNOWN = {"name": ["mine", "law", "scripted", "a" * 128, "a" * 129], "folder": FOLDERS}


@pytest.mark.parametrize("num_cases", NUM_CASES)
@pytest.mark.parametrize("known", [None, KNOWN], ids=["any", "known"])
def test_adapters_are_loaded_and_unloaded_as_the_document_promises(
    make_server: Callable[..., TestServer], adapter_dir: Path, known: dict[str, list[Any]] | None, num_cases: int
) -> None:
    server = make_server(adapter_dir)
    registry = server.engine.adapters
    check_operation(server, "/v1/adapters", num_cases, known=known, before=lambda: unload_all(registry))
    names = None if known is None else {"name": ["law", "mine"]}
    for method, path in (("GET", "/v1/models/{name}"), ("DELETE", "/v1/adapters/{name}")):
        check_operation(server, path, num_cases, method, known=names, before=lambda: load_one(registry, adapter_dir))


@pytest.mark.parametrize("num_bodies", NUM_CASES)
@pytest.mark.parametrize("path", ["/v1/adapters", "/v1/completions", "/v1/chat/completions", "/v1/messages", "/v1/responses"])
def test_random_bodies_that_load_or_use_an_adapter_never_fail(
    make_server: Callable[..., TestServer], adapter_dir: Path, path: str, num_bodies: int
) -> None:
    server = make_server(adapter_dir)
    registry = server.engine.adapters
    document = server.client.get("/openapi.json").json()
    if path == "/v1/adapters":
        fine: dict[str, Any] = {"name": "mine", "folder": "law"}
        check_random_bodies(server, document, path, num_bodies, seed=num_bodies, fine=fine, before=lambda: unload_all(registry))
    else:
        load_one(registry, adapter_dir)
        check_random_bodies(server, document, path, num_bodies, seed=num_bodies, fine={**FINE[path], "model": "law"})


def unload_all(registry: AdapterRegistry) -> None:
    for adapter in registry.loaded():
        registry.unload(adapter.name)


def load_one(registry: AdapterRegistry, adapter_dir: Path) -> None:
    if not registry.loaded():
        registry.load("law", str(adapter_dir / "law"))
