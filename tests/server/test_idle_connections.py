"""Many idle and half-closed connections: others are answered, the memory is bounded, and the limits end them."""

import gc
import json
import resource
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from friendli_runtime.server.limits import Limits

from .conftest import TestServer
from .idle_clients import HEALTH
from .test_lifetime import ENDLESS, eventually, raw_request

MAX_BYTES_PER_CONNECTION = 16 * 2**10
"""Of memory: of a request parser, a transport with its buffer, a timer."""
MakeServer = Callable[..., TestServer]
NUM_IDLE = [500, pytest.param(10_000, marks=pytest.mark.slow)]
FOR_EVER = {"header_timeout_s": 10_000, "keep_alive_s": 10_000}


@contextmanager
def idle_connections(server: TestServer, num_connections: int) -> Iterator[Callable[[int], list[str]]]:
    """Given is what reads from the first of them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < num_connections + 1000:
        pytest.skip(f"{num_connections} connections need more open files than the {hard} allowed here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    command = [sys.executable, str(Path(__file__).parent / "idle_clients.py"), server.url.rsplit(":", 1)[1], str(num_connections)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as clients:
        assert clients.stdin is not None and clients.stdout is not None
        stdin, stdout = clients.stdin, clients.stdout

        def read(num_first: int) -> list[str]:
            print(num_first, file=stdin, flush=True)
            return json.loads(stdout.readline())

        try:
            assert stdout.readline() == "open\n"
            yield read
        finally:
            stdin.close()
            clients.wait(60)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def is_answered(server: TestServer) -> bool:
    whole = server.post("/v1/completions", prompt="[[fine]]").json()["choices"][0]["text"] == "fine"
    return whole and "[DONE]" in server.post("/v1/completions", prompt="[[fine]]", stream=True).text


@pytest.mark.parametrize("num_connections", NUM_IDLE)
def test_idle_connections_cost_little_and_harm_nobody(make_server: MakeServer, num_connections: int) -> None:
    server = make_server(limits=Limits(max_connections=num_connections + 100, **FOR_EVER))
    assert is_answered(server)
    gc.collect()
    num_bytes = resident_bytes()
    with idle_connections(server, num_connections):
        eventually(lambda: server.num_connections >= num_connections, "all are open")
        assert is_answered(server)
        assert resident_bytes() - num_bytes < num_connections * MAX_BYTES_PER_CONNECTION + 2**22
    eventually(lambda: server.num_connections <= 1, "closed connections are forgotten")


@pytest.mark.parametrize("num_connections", NUM_IDLE)
def test_too_many_idle_connections_give_way(make_server: MakeServer, num_connections: int) -> None:
    max_connections = num_connections // 4
    server = make_server(limits=Limits(max_connections=max_connections, **FOR_EVER))
    sock = raw_request(server, {**ENDLESS, "max_tokens": 50, "stream": True})
    with idle_connections(server, num_connections) as read:
        eventually(lambda: server.num_connections <= max_connections, "the first have given way")
        assert is_answered(server)
        for idx, answer in enumerate(read(num_connections // 2)):
            assert answer.startswith("HTTP/1.1 503") if idx % 3 == 2 else answer == "", "who had begun to ask is told"
        assert server.num_connections >= max_connections - 2, "the last ones are still there"
    while data := sock.recv(2**16):
        sent = data
        if data.endswith(b"\r\n0\r\n\r\n"):
            break
    assert b"[DONE]" in sent, "a request that runs is not in question"
    sock.close()


def test_one_too_many_is_503_when_a_request_runs_on_each(make_server: MakeServer) -> None:
    server = make_server(limits=Limits(max_connections=2), step_s=0.01, max_context_len=100_000)
    running = [raw_request(server, {**ENDLESS, "stream": True}) for _ in range(2)]
    eventually(lambda: server.engine.stats()["num_running"] == 2, "both run")
    with raw_request(server, ENDLESS) as refused:
        assert refused.recv(1000).startswith(b"HTTP/1.1 503")
    for sock in running:
        assert sock.recv(1000).startswith(b"HTTP/1.1 200")
        sock.close()


@pytest.mark.parametrize("num_connections", NUM_IDLE)
def test_limits_end_idle_connections(make_server: MakeServer, num_connections: int) -> None:
    server = make_server(limits=Limits(max_connections=num_connections + 100, header_timeout_s=1, keep_alive_s=1))
    with idle_connections(server, num_connections) as read:
        for idx, answer in enumerate(read(num_connections)):
            assert answer.startswith("HTTP/1.1 408") if idx % 3 != 1 else answer == "", "only who never had an answer is told"
        assert is_answered(server)
    eventually(lambda: server.num_connections <= 1, "nothing is left")


HALVES: dict[str, bytes] = {
    "nothing": b"",
    "part of a head": HEALTH[:20],
    "part of a body": b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{",
    "part of a chunk": b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n20\r\n{",
}


@pytest.mark.parametrize("sent", HALVES)
def test_half_closed_connections_that_ask_for_nothing_are_closed(make_server: MakeServer, sent: str) -> None:
    server = make_server(limits=Limits(**FOR_EVER, body_timeout_s=10_000))
    address = ("127.0.0.1", int(server.url.rsplit(":", 1)[1]))
    with ExitStack() as stack:
        socks = [stack.enter_context(socket.create_connection(address, timeout=60)) for _ in range(100)]
        for sock in socks:
            sock.sendall(HALVES[sent])
            sock.shutdown(socket.SHUT_WR)
        assert all(sock.recv(1000) == b"" for sock in socks)
        assert is_answered(server)
        eventually(lambda: server.num_connections <= 1, "nothing is left")


@pytest.mark.parametrize("body", [{}, {"stream": True}, {"stream": True, "n": 32}], ids=str)
def test_half_closed_connections_with_a_request_cancel_it(make_server: MakeServer, body: dict[str, Any]) -> None:
    server = make_server(max_context_len=10**8, max_num_seqs=64, limits=Limits(write_stall_s=1))
    socks = [raw_request(server, {**ENDLESS, **body}) for _ in range(2 if "n" in body else 20)]
    eventually(lambda: server.engine.stats()["num_running"] == (64 if "n" in body else 20), "all run")
    for sock in socks:  # none reads: what is not sent yet may hold an answer up, for as long as the limit says
        sock.shutdown(socket.SHUT_WR)
    eventually(lambda: server.engine.stats()["num_running"] == 0, "nothing runs any more")
    assert is_answered(server)
    eventually(lambda: server.num_connections <= 1, "nothing is left")
    for sock in socks:
        sock.close()
