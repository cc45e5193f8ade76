"""HTTP/1.1 as clients, proxies and attackers write it, byte by byte."""

import asyncio
import contextlib
import json
import re
import socket
import time
from collections.abc import Callable

import pytest
from friendli_runtime.server.exchange import Exchange
from friendli_runtime.server.limits import Limits
from friendli_runtime.server.protocol import HttpServer
from friendli_runtime.server.serve import bind

from .conftest import TestServer
from .test_lifetime import ENDLESS, eventually

BODY = b'{"prompt": "[[hi]]"}'
POST = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n"
GET = b"GET /health HTTP/1.1\r\nhost: x\r\n"


def connected(server: TestServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1])), timeout=10)


def until_closed(sock: socket.socket) -> bytes:
    data = b""
    while part := sock.recv(65536):
        data += part
    return data


def exchanged(server: TestServer, *parts: bytes, closes: bool = True) -> bytes:
    """What comes back for `parts`, which are sent one by one; the client asks for the end of the connection if the server does not."""
    with connected(server) as sock:
        for part in parts:
            sock.sendall(part)
            time.sleep(0.02 if len(parts) > 1 else 0)
        if not closes:
            sock.sendall(GET + b"connection: close\r\n\r\n")
        return until_closed(sock)


def statuses(data: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", data)]


@pytest.mark.parametrize(
    "head",
    [
        b"content-length: 5\r\ntransfer-encoding: chunked\r\n",
        b"transfer-encoding: chunked\r\ncontent-length: 5\r\n",
        b"content-length: 5\r\ncontent-length: 6\r\n",
        b"content-length: 5, 6\r\n",
        b"content-length: +5\r\n",
        b"content-length: 0x5\r\n",
        b"content-length: -1\r\n",
        b"content-length: 99999999999999999999999\r\n",
        b"content-length : 5\r\n",
        b"transfer-encoding: chunked, identity\r\n",
        b"transfer-encoding: xchunked\r\n",
        b"transfer-encoding : chunked\r\n",
        b"x: a\r\n folded: b\r\nhost\r\n",
        b"x: a\x00b\r\n",
    ],
)
def test_requests_that_two_servers_may_read_differently_are_refused(server: TestServer, head: bytes) -> None:
    smuggled = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
    assert statuses(exchanged(server, POST + head + b"\r\n" + b"0\r\n\r\n" + smuggled)) == [400]


@pytest.mark.parametrize("size", [b"zz", b"-1", b"0x1", b"fffffffffffffffff"])
def test_a_chunk_of_a_wrong_size_is_400_and_the_end(server: TestServer, size: bytes) -> None:
    answer = exchanged(server, POST + b"transfer-encoding: chunked\r\n\r\n" + size + b"\r\nabc\r\n0\r\n\r\n" + GET + b"\r\n")
    assert statuses(answer) == [400]


def test_requests_that_arrive_together_are_answered_in_order(server: TestServer) -> None:
    bodies = [b'{"prompt": "[[%s]]"}' % word for word in (b"long " * 20, b"short", b"last")]
    requests = [POST + b"content-length: %d\r\n\r\n" % len(body) + body for body in bodies]
    data = b"".join(requests)
    for parts in ([data], [data[:300], data[300:]], [data[: len(requests[0]) + 100], data[len(requests[0]) + 100 :]]):
        answer = exchanged(server, *parts, closes=False)
        assert statuses(answer) == [200] * 4
        texts = [json.loads(found)["choices"][0]["text"] for found in re.findall(rb"\{\"id\".*?\}\}\}", answer)]
        assert [text.split()[0] for text in texts] == ["long", "short", "last"]


def test_times_without_end_are_no_times_in_the_past(make_server: Callable[..., TestServer]) -> None:
    server = make_server(limits=Limits(header_timeout_s=2**53, keep_alive_s=2**53, body_timeout_s=2**53, write_stall_s=2**53))
    head = POST + b"content-length: %d\r\n\r\n" % len(BODY)
    assert statuses(exchanged(server, GET + b"\r\n" + GET + b"\r\n" + head, BODY, closes=False)) == [200] * 4


def test_a_body_in_chunks_with_trailers_is_read(server: TestServer) -> None:
    chunks = b"".join(b"1;name=value\r\n%c\r\n" % byte for byte in BODY)
    head = POST + b"transfer-encoding: chunked\r\n\r\n"
    for parts in ([head + chunks + b"0\r\nx-trailer: y\r\n\r\n"], [head, chunks[:50], chunks[50:] + b"0\r\n", b"\r\n"]):
        answer = exchanged(server, *parts, closes=False)
        assert statuses(answer) == [200, 200] and b'"hi"' in answer


def test_trailers_and_chunk_extensions_have_a_size(server: TestServer) -> None:
    head = POST + b"transfer-encoding: chunked\r\n\r\n"
    for rest in (b"0\r\n" + b"a: b\r\n" * 200_000, b"1;" + b"x" * 1_000_000, b"0\r\na: " + b"b" * 1_000_000):
        with connected(server) as sock, contextlib.suppress(ConnectionResetError, BrokenPipeError):
            sock.sendall(head + rest)
            assert statuses(until_closed(sock)) == [400]
    assert server.client.get("/health").status_code == 200


def test_the_client_may_ask_before_it_sends_the_body(server: TestServer) -> None:
    with connected(server) as sock:
        sock.sendall(POST + b"content-length: %d\r\nexpect: 100-continue\r\n\r\n" % len(BODY))
        assert sock.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(BODY)
        assert sock.recv(1000).startswith(b"HTTP/1.1 200 OK\r\n")
    too_large = POST + b"content-length: 999999999\r\nexpect: 100-continue\r\n\r\n"
    assert statuses(exchanged(server, too_large)) == [413]


def test_an_answer_to_head_has_no_body(server: TestServer) -> None:
    answer = exchanged(server, b"HEAD /health HTTP/1.1\r\nhost: x\r\n\r\n", closes=False)
    assert statuses(answer) == [405, 200] and answer.count(b"method_not_allowed") == 0


@pytest.mark.parametrize("stream", [b"false", b"true"])
def test_http_1_0_gets_an_answer_without_chunks_and_the_end(server: TestServer, stream: bytes) -> None:
    body = b'{"prompt": "[[hello]]", "stream": %s}' % stream
    head = b"POST /v1/completions HTTP/1.0\r\nconnection: keep-alive\r\ncontent-length: %d\r\n\r\n"
    answer = exchanged(server, head % len(body) + body)
    assert statuses(answer) == [200] and b"chunked" not in answer and b"connection: close" in answer and b"hello" in answer
    if stream == b"true":
        assert answer.endswith(b"data: [DONE]\n\n")


def test_an_upgrade_is_not_taken_and_the_request_answered_as_any_other(server: TestServer) -> None:
    upgrade = b"connection: Upgrade\r\nupgrade: %b\r\n"
    assert statuses(exchanged(server, GET + upgrade % b"websocket" + b"\r\n" + GET + b"\r\n", closes=False)) == [200] * 3
    head = POST + upgrade % b"h2c" + b"content-length: %d\r\n\r\n" % len(BODY)
    answer = exchanged(server, head + BODY, closes=False)
    assert statuses(answer) == [200, 200] and b'"hi"' in answer


@pytest.mark.parametrize("target", [b"/%68ealth", b"/health?a=b", b"http://x/health", b"/health#f"])
def test_a_path_is_found_however_it_is_written(server: TestServer, target: bytes) -> None:
    assert statuses(exchanged(server, b"GET " + target + b" HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")) == [200]


@pytest.mark.parametrize("request_line", [b"CONNECT x:1", b"OPTIONS *", b"GET health", b"GET /\xff", b"PRI *"])
def test_other_targets_are_4xx_or_the_end(server: TestServer, request_line: bytes) -> None:
    answer = exchanged(server, request_line + b" HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    assert 400 <= statuses(answer)[0] < 500


def test_a_body_that_nobody_reads_harms_no_request_behind_it(make_server: Callable[..., TestServer]) -> None:
    server = make_server(limits=Limits(keep_alive_s=1))
    nowhere = b"POST /nowhere HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n"
    answer = exchanged(server, nowhere, b"x" * 50_000, b"x" * 50_000, closes=False)
    assert statuses(answer) == [404, 200]
    assert statuses(exchanged(server, nowhere, b"x")) == [404]  # and the rest never comes


def test_an_idle_connection_is_closed_without_a_word(make_server: Callable[..., TestServer]) -> None:
    server = make_server(limits=Limits(keep_alive_s=1, header_timeout_s=3))
    assert statuses(exchanged(server, GET + b"\r\n")) == [200]
    assert statuses(exchanged(server, GET + b"\r\n" + GET)) == [200, 408]


def test_what_breaks_off_behind_a_request_leaves_its_answer_whole(server: TestServer) -> None:
    request = POST + b"content-length: %d\r\n\r\n" % len(BODY) + BODY
    answer = exchanged(server, request + b"\x00garbage\r\n\r\n")
    assert statuses(answer) == [200, 400] and b'"hi"' in answer


def test_who_asks_and_does_not_read_fills_no_memory(server: TestServer) -> None:
    num_requests = 5000
    served = 0
    with connected(server) as sock:
        sock.settimeout(0.5)
        with contextlib.suppress(TimeoutError):
            sock.sendall(b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n" * num_requests)
        eventually(lambda: any(has_stalled for _, has_stalled in server.http.core.connections()), "the server has to wait")
        time.sleep(0.1)
        assert max(num_unsent_bytes for num_unsent_bytes, _ in server.http.core.connections()) < 2**20
        sock.settimeout(10)
        while served < 200:
            served += sock.recv(2**16).count(b"HTTP/1.1 200")
    assert server.client.get("/health").status_code == 200


def test_a_slow_reader_gets_all_of_it(make_server: Callable[..., TestServer]) -> None:
    server = make_server(max_context_len=200_000)
    fields = {"stream": True, "n": 50, "max_tokens": 400, "stream_options": {"include_usage": True}}
    body = json.dumps({**ENDLESS, **fields}).encode()
    with connected(server) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
        sock.sendall(POST + b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        eventually(lambda: any(has_stalled for _, has_stalled in server.http.core.connections()), "the answer has to wait")
        answer = until_closed(sock)
    assert answer.count(b'"token":') == 20_000 and b'"completion_tokens":20000' in answer and answer.endswith(b"[DONE]\n\n\r\n0\r\n\r\n")


def test_a_burst_of_connections_does_not_hold_up_those_that_are_there() -> None:
    num_clients, seen = 100, []

    async def count_connections(exchange: Exchange) -> None:
        seen.append(http_server.core.num_connections)
        exchange.answer(200, b"", b"text/plain", [(b"connection", b"close")])
        if len(seen) == num_clients:
            http_server.stop()

    with bind("127.0.0.1", 0, "--web-server-port") as listener, contextlib.ExitStack() as stack:
        for _ in range(num_clients):  # before the server runs: all are there at its first look
            stack.enter_context(socket.create_connection(listener.getsockname())).sendall(GET + b"\r\n")
        http_server = HttpServer(count_connections, Limits(), listener)
        asyncio.run(asyncio.wait_for(http_server.run_on_socket(), 20))
    assert len(seen) == num_clients and max(seen) < num_clients / 2


def test_a_failure_that_is_no_answer_cuts_off_its_connection_and_no_other(caplog: pytest.LogCaptureFixture) -> None:
    async def answer(exchange: Exchange) -> None:
        exchange.answer(200, b"fine", b"text/plain", [(b"connection", b"close")])
        http_server.stop()

    def refuse(exchange: Exchange) -> bool:
        if exchange.path == "/fails":
            raise OSError("on purpose")
        return False

    with bind("127.0.0.1", 0, "--web-server-port") as listener, contextlib.ExitStack() as stack:
        socks = [stack.enter_context(socket.create_connection(listener.getsockname(), timeout=10)) for _ in range(2)]
        for sock, path in zip(socks, (b"/fails", b"/"), strict=True):  # before the server runs: both are there at its first look
            sock.sendall(b"GET " + path + b" HTTP/1.1\r\nhost: x\r\n\r\n")
        http_server = HttpServer(answer, Limits(), listener, refuse)
        asyncio.run(asyncio.wait_for(http_server.run_on_socket(), 20))
        assert [until_closed(sock)[-4:] for sock in socks] == [b"", b"fine"]
    assert http_server.exchanges == {} and "on purpose" in caplog.text
