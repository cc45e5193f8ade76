"""The life of a server: ports first, then the model, then requests; on a signal no new ones, the running ones finish, then the end.

    bind ports ─▶ open model ─▶ serve ─▶ SIGTERM or SIGINT: new requests get 503 ─▶ drain ─▶ left-overs get an error ─▶ exit
                                          a second signal: exit now

Exit codes: 0 all requests were finished, 4 some were cut off. Ports are bound before the model is opened, so that a port in use is known at
once, and clients that come early wait instead of being refused.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import resource
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

from .. import __version__
from ..errors import ConfigError
from ..loaded_model import EngineOptions, LoadedEmbedder, LoadedModel, TextOptions, open_any
from ..metrics import Metrics
from .app import App, AppOptions, MetricsApp, ServedModel
from .bad_stop import read_bad_stop
from .bridge import Bridge, TokenEngine
from .errors import unavailable

EXIT_OK = 0
EXIT_CUT_OFF = 4
_USUAL_THRESHOLDS = gc.get_threshold()
_NEW_OBJECTS_BEFORE_COLLECTION = 20_000
_DRAIN_POLL_S = 0.02
_OTHER_FILES = 256
"""Open files that are not connections."""
_ANSWER_GRACE_S = 1.0
"""After the drain timeout: what the last error answers get to leave the process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """Everything `fmo serve` can be told. Port 0 takes a free one."""

    artifact: Path
    host: str = "127.0.0.1"
    port: int = 8000
    metrics_port: int = 8281
    served_model_name: str | None = None
    bad_stop_file: Path | None = None
    drain_timeout_s: float = 30.0
    engine: EngineOptions = field(default_factory=EngineOptions)
    text: TextOptions = field(default_factory=TextOptions)
    app: AppOptions = field(default_factory=AppOptions)


def serve(options: ServeOptions, announce: Callable[[str], None]) -> int:
    """Serves until a signal ends it; returns the exit code. `announce` gets lines for the operator, the addresses among them.

    Raises ConfigError for ports and options, ArtifactError and its kinds for the artifact.
    """
    web_socket = bind(options.host, options.port, "--web-server-port")
    metrics_socket = bind(options.host, options.metrics_port, "--metrics-port")
    metrics: Metrics
    bridge = Bridge(lambda delay_s: metrics.queueing_delays.observe(delay_s * 1e9))
    with web_socket, metrics_socket:
        announce(f"opening {options.artifact}")
        _allow_connections(options.app.limits.max_connections)
        loaded = open_any(options.artifact, options.engine, options.text)
        model = served_model(loaded, options.served_model_name)
        if isinstance(loaded, LoadedModel):
            loaded.engine.adapters.reserve(model.name)
        metrics = Metrics(__version__, lambda: app.gauges())
        try:
            app = App(model, bridge, metrics, _app_options(options, loaded))
            for line in _notes(loaded):
                announce(line)
            return asyncio.run(_run(app, loaded, web_socket, metrics_socket, options, announce))
        finally:
            restore_collector()
            loaded.close()


def _app_options(options: ServeOptions, loaded: LoadedModel | LoadedEmbedder) -> AppOptions:
    """Those given, with what the file of stop phrases and bad words says."""
    if options.bad_stop_file is None:
        return options.app
    return replace(options.app, bad_stop=read_bad_stop(options.bad_stop_file, loaded.tokenizer, loaded.engine.vocab_size))


def served_model(loaded: LoadedModel | LoadedEmbedder, name: str | None) -> ServedModel:
    return ServedModel(name or loaded.artifact.name, loaded.tokenizer, loaded.chat_template, loaded.eos_token_ids)


def bind(host: str, port: int, option: str) -> socket.socket:
    """A listening socket. Raises ConfigError naming the option when the address cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        sock = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(
            f"host '{host}' is not an address of this machine: {error.strerror}",
            where="--host",
            hint="--host 127.0.0.1 serves this machine, --host 0.0.0.0 everybody who can reach it",
        ) from None
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(1024)
    except OSError as error:
        sock.close()
        raise _bind_error(error, host, port, option) from None
    return sock


def _bind_error(error: OSError, host: str, port: int, option: str) -> ConfigError:
    if error.errno == errno.EADDRINUSE:
        return ConfigError(
            f"port {port} on {host} is in use by another program",
            where=option,
            hint=f"stop that program, or take a free port with {option} 0",
        )
    if error.errno == errno.EACCES:
        return ConfigError(f"port {port} on {host} needs more rights than this process has", where=option, hint="take a port from 1024 up")
    return ConfigError(f"port {port} on {host} cannot be bound: {error.strerror}", where=f"{option}, --host", hint="check --host")


def calm_collector() -> None:
    """Python's collector need not look again and again at what is there now, nor as often as it does: requests leave no circles behind."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_NEW_OBJECTS_BEFORE_COLLECTION, *_USUAL_THRESHOLDS[1:])


def restore_collector() -> None:
    gc.set_threshold(*_USUAL_THRESHOLDS)
    gc.unfreeze()


async def _run(
    app: App,
    loaded: LoadedModel | LoadedEmbedder,
    web_socket: socket.socket,
    metrics_socket: socket.socket,
    options: ServeOptions,
    announce: Callable[[str], None],
) -> int:
    from .protocol import HttpServer

    # Of an Embedder the app uses what it shares with a TokenEngine; `refuse_generation` keeps away what would generate.
    app.bridge.attach(cast(TokenEngine, loaded.engine), asyncio.get_running_loop() if isinstance(loaded, LoadedModel) else None)
    if isinstance(loaded, LoadedModel):
        app.warm_up()
    calm_collector()
    servers = [
        HttpServer(app, options.app.limits, web_socket, app.refuse),
        HttpServer(MetricsApp(app.metrics), options.app.limits, metrics_socket),
    ]
    stopping = asyncio.Event()
    _install_signals(stopping)
    running = [asyncio.create_task(server.run_on_socket()) for server in servers]
    announce(f"serving {app.model.name} on http://{_address(web_socket)}/v1")
    announce(f"metrics on http://{_address(metrics_socket)}/metrics")
    await asyncio.wait([asyncio.create_task(stopping.wait()), *running], return_when=asyncio.FIRST_COMPLETED)
    num_cut_off = await _drain(app, options.drain_timeout_s, announce)
    for server in servers:
        server.stop()
    await asyncio.wait(running, timeout=_ANSWER_GRACE_S)
    announce("stopped" if num_cut_off == 0 else f"stopped; {num_cut_off} requests were cut off")
    return EXIT_OK if num_cut_off == 0 else EXIT_CUT_OFF


async def _drain(app: App, timeout_s: float, announce: Callable[[str], None]) -> int:
    """Lets the running requests finish; returns how many had to be cut off."""
    app.is_draining = True
    if app.in_flight:
        announce(f"stopping: {len(app.in_flight)} requests have up to {timeout_s:g} s to finish; a second signal stops now")
    await _wait_for_answers(app, timeout_s)
    num_cut_off = len(app.in_flight)
    app.abort_all(unavailable("the server is shutting down"))
    await _wait_for_answers(app, _ANSWER_GRACE_S)
    return num_cut_off


async def _wait_for_answers(app: App, timeout_s: float) -> None:
    deadline = asyncio.get_running_loop().time() + timeout_s
    while app.in_flight and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(_DRAIN_POLL_S)


def _allow_connections(max_connections: int) -> None:
    """Raises the number of open files to what the connections may need, as far as the system lets us."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max_connections + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def _install_signals(stopping: asyncio.Event) -> None:
    """SIGTERM and SIGINT: once to stop in order, twice to stop at once. Other signals that would end a process are ignored."""

    def on_stop() -> None:
        if stopping.is_set():
            os._exit(EXIT_CUT_OFF)
        stopping.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_stop)
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        loop.add_signal_handler(number, lambda: None)


def _address(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _notes(loaded: LoadedModel | LoadedEmbedder) -> list[str]:
    """What the operator should know before the first request."""
    if isinstance(loaded, LoadedEmbedder):
        facts = loaded.engine.facts
        return [f"embeddings of {facts.size} numbers from texts of at most {loaded.engine.max_context_len} tokens: POST /v1/embeddings"]
    kv_mib = loaded.kv_cache_bytes / 2**20
    notes = [f"KV cache: {loaded.kv_cache_tokens} tokens, {kv_mib:.0f} MiB; the longest request has {loaded.engine.max_total_len} tokens"]
    if loaded.tokenizer is None:
        notes.append("note: the artifact has no tokenizer: only token ids ('tokens' of /v1/completions) are served")
    elif loaded.chat_template is None:
        notes.append("note: the artifact has no chat template: /v1/chat/completions is refused, /v1/completions works")
    return notes
