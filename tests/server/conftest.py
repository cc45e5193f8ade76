"""A real server in this process: the app on a free port, over a scripted engine and a real byte-level tokenizer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import httpx
import pytest
from friendli_runtime.embedder import Embedder
from friendli_runtime.metrics import Metrics
from friendli_runtime.server.app import App, AppOptions, MetricsApp, ServedModel
from friendli_runtime.server.bridge import Bridge
from friendli_runtime.server.protocol import HttpServer
from friendli_runtime.server.serve import bind
from friendli_runtime.tokenizer.chat_template import ChatTemplate
from friendli_runtime.tokenizer.tokenizer import Tokenizer
from tokenizer.tokenizers_made_here import json_with_special_tokens
from tools.templates import HERMES

from .scripted_engine import ScriptedEngine

TEMPLATE = """{% for message in messages %}<|{{ 'user' if message.role == 'user' else 'assistant' }}|>{{ message.content }}<|end|>
{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}{{ suffix or '' }}"""


@dataclass
class TestServer:
    """The parts of a running server that tests look at."""

    __test__ = False
    url: str
    metrics_url: str
    app: App
    engine: Any
    tokenizer: Tokenizer
    client: httpx.Client
    http: HttpServer
    loop: asyncio.AbstractEventLoop

    @property
    def num_connections(self) -> int:
        return self.http.core.num_connections

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.client.post(path, json=body)


def start(
    options: AppOptions | None = None,
    *,
    with_template: bool = True,
    with_tokenizer: bool = True,
    template: str = TEMPLATE,
    special_tokens: Sequence[str] = (),
    end_tokens: Sequence[str] = ("<|end|>",),
    make_engine: Callable[..., Any] = ScriptedEngine,
    **engine_options: Any,
) -> tuple[TestServer, Callable[[], None]]:
    """A running server and the function that ends it. `special_tokens`: more of them; `end_tokens`: which of all end an answer."""
    tokenizer = Tokenizer.from_json(json_with_special_tokens("byte_level", *special_tokens), {})
    eos_ids = tuple(token_id for text in end_tokens if (token_id := tokenizer.backend.token_to_id(text)) is not None)
    eos_id = eos_ids[0]
    bridge = Bridge(lambda delay_s: metrics.queueing_delays.observe(delay_s * 1e9))
    max_queue_len = options.max_queue_len if options is not None else 1024
    engine = make_engine(tokenizer, eos_id, max_queue_len=max_queue_len, **engine_options)
    chat_template = ChatTemplate(template, {"bos_token": "", "eos_token": "<|end|>"}) if with_template else None
    model = ServedModel("scripted", tokenizer if with_tokenizer else None, chat_template, eos_ids)
    metrics = Metrics("1.2.3", lambda: app.gauges())
    app = App(model, bridge, metrics, options or AppOptions())
    sockets = [bind("127.0.0.1", 0, "--web-server-port"), bind("127.0.0.1", 0, "--metrics-port")]
    limits = app.options.limits
    servers = [HttpServer(app, limits, sockets[0], app.refuse), HttpServer(MetricsApp(metrics), limits, sockets[1])]
    is_up = threading.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def run() -> None:
        loops.append(asyncio.get_running_loop())
        bridge.attach(engine, None if isinstance(engine, Embedder) else loops[0])
        is_up.set()
        await asyncio.gather(*(server.run_on_socket() for server in servers))

    urls = [f"http://127.0.0.1:{sock.getsockname()[1]}" for sock in sockets]
    engine.start()
    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    is_up.wait()
    client = httpx.Client(base_url=urls[0], timeout=30, limits=httpx.Limits(max_connections=100))

    def stop() -> None:
        client.close()
        for server in servers:
            server.stop()
        thread.join()
        engine.shutdown()

    return TestServer(urls[0], urls[1], app, engine, tokenizer, client, servers[0], loops[0]), stop


@pytest.fixture(scope="session")
def server() -> Iterator[TestServer]:
    """One server with default options, for tests that leave nothing behind."""
    running, stop = start()
    yield running
    stop()


@pytest.fixture(scope="session")
def hermes() -> Iterator[TestServer]:
    """One server whose template writes tool calls as Hermes models do."""
    running, stop = start(template=HERMES.replace("<|im_end|>", "<|end|>"), max_context_len=4096)
    yield running
    stop()


@pytest.fixture
def make_server() -> Iterator[Callable[..., TestServer]]:
    """Starts servers with other options; they end with the test."""
    stops: list[Callable[[], None]] = []

    def make(**options: Any) -> TestServer:
        app_options = replace(AppOptions(), **{name: options.pop(name) for name in list(options) if name in AppOptions.__slots__})
        running, stop = start(app_options, **options)
        stops.append(stop)
        return running

    yield make
    for stop in stops:
        stop()
