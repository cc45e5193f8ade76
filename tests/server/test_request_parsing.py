"""The parser of requests beside httptools, on mutated requests and every split of their bytes; and under sanitizers."""

import contextlib
import random
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote_to_bytes

import httptools
import pytest
from friendli_runtime._core import HttpServer
from friendli_runtime.server.limits import Limits

ROOT = Path(__file__).parents[2]
NUM_MUTATED = 3000
FUZZ_ROUNDS = 20_000
REQUESTS = [
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /a%20b/c?d=e#f HTTP/1.1\r\nHost: x\r\nAccept:  text/html , */*;q=0.1 \r\nX-Empty:\r\nCookie: a=b; c=\xc3\xa9\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 11\r\n\r\nhello world",
    b"POST /chunks HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n006;a=b\r\n world\r\n0\r\n\r\n",
    b"PUT /trailers HTTP/1.1\r\nTransfer-Encoding: Chunked\r\nHost: x\r\n\r\nA\r\n0123456789\r\n0\r\nTrailer: yes\r\n\r\n",
    b"HEAD http://proxied:80/x?y HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\n\r\n",
    b"GET https://[::1]:8000?y HTTP/1.1\r\nHost: x\r\n\r\n",
    b"OPTIONS /old HTTP/1.0\r\nConnection: close\r\n\r\n",
    b"DELETE /one HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n\r\nGET /two HTTP/1.1\r\nHost: y\r\n\r\n",
    b"POST /a HTTP/1.1\r\ncontent-length: 2\r\n\r\nabPOST /b HTTP/1.1\r\ncontent-length: 1\r\nconnection: close\r\n\r\nc",
]
PIECES = [
    b"\r\n",
    b"\n",
    b"\r",
    b" ",
    b"\t",
    b":",
    b"\0",
    b"\x7f",
    b"\xff",
    b"0",
    b"1",
    b"-",
    b"+",
    b",",
    b";",
    b"%",
    b"HTTP/1.1",
    b"chunked",
]
PIECES += [b"content-length: 3\r\n", b"transfer-encoding: chunked\r\n", b"host: z\r\n", b" folded\r\n", b"0\r\n\r\n", b"%2f", b"close"]


@dataclass
class Seen:
    """Requests whose end was seen, as (method, path, {name: value}, body), and the status of a refusal."""

    requests: list[tuple[bytes, bytes, dict[bytes, bytes], bytes]] = field(default_factory=list)
    refusal: int | None = None


class Reference:
    """httptools, to the end of the last request that keeps the connection."""

    def __init__(self, data: bytes) -> None:
        self.seen = Seen()
        self._parser = httptools.HttpRequestParser(self)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.seen.refusal = 400

    def on_message_begin(self) -> None:
        self._url, self._fields, self._body, self._in_head = b"", {}, b"", True

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:
            self._fields.setdefault(name.lower(), value.rstrip())

    def on_headers_complete(self) -> None:
        self._in_head = False

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        path = httptools.parse_url(self._url).path or b"/"
        self.seen.requests.append((self._parser.get_method(), unquote_to_bytes(path), self._fields, self._body))


def fields_of(lines: bytes) -> dict[bytes, bytes]:
    """The first of each name."""
    return {name: value.rstrip() for name, value in reversed(re.findall(rb"(.+?):(.*)\n", lines))}


class Server:
    """The connections of the server, without an application: every request is answered when its body is whole."""

    def __init__(self, listener: socket.socket) -> None:
        listener.setblocking(False)
        self._address = listener.getsockname()
        refusals = {status: b"HTTP/1.1 %d \r\n\r\n" % status for status in (400, 408, 431, 503)}
        self.core = HttpServer(listener.fileno(), Limits(max_header_bytes=400, max_headers=8, max_body_bytes=1000), refusals)

    def seen(self, *parts: bytes) -> Seen:
        """What it makes of `parts`, which arrive one by one."""
        result = Seen()
        with socket.create_connection(self._address) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for part in parts:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has refused what came before
                    sock.sendall(part)
                self._serve(result)
            sock.setblocking(False)
            with contextlib.suppress(BlockingIOError, ConnectionResetError):
                refusals = re.findall(rb"HTTP/1\.1 (?!200)(\d+)", sock.recv(2**16))
                result.refusal = int(refusals[0]) if refusals else None
        self._serve(Seen())
        return result

    def _serve(self, result: Seen) -> None:
        while events := self.core.poll() or self.core.poll():  # twice: an answer wakes the next request
            for kind, request_id, value in events:
                if kind == "request":
                    method, path, fields, body = value
                    self._head = method.encode(), path.encode(), fields_of(fields)
                    body = self.core.take_body(request_id) if body is None else body
                else:
                    body = value
                if isinstance(body, bytes):
                    result.requests.append((*self._head, body))
                if body is not None:
                    self.core.answer(request_id, 200 if isinstance(body, bytes) else 400, b"text/plain", b"", b"")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield Server(listener)


def mutated(data: bytes, draw: random.Random) -> bytes:
    """One to three pieces put in, taken out or put in the place of others."""
    for _ in range(draw.randint(1, 3)):
        start = draw.randrange(len(data))
        end = draw.choice((start, start, start + 1, start + draw.randint(1, 8)))
        data = data[:start] + draw.choice([b"", *PIECES]) + data[end:]
    return data


@pytest.mark.parametrize("data", REQUESTS)
def test_requests_are_read_as_by_another_parser_however_their_bytes_are_split(server: Server, data: bytes) -> None:
    expected = Reference(data).seen
    assert expected.requests and expected.refusal is None
    assert server.seen(data) == expected
    for split in range(1, len(data)):
        assert server.seen(data[:split], data[split:]) == expected, data[:split]
    assert server.seen(*(data[i : i + 1] for i in range(len(data)))) == expected


def test_what_is_accepted_another_parser_reads_in_the_same_way(server: Server) -> None:
    draw = random.Random(1)
    num_accepted = num_stricter = 0
    for _ in range(NUM_MUTATED):
        data = mutated(draw.choice(REQUESTS), draw)
        ours, theirs = server.seen(data), Reference(data).seen
        assert ours.requests == theirs.requests[: len(ours.requests)], data
        split = draw.randrange(len(data))
        assert server.seen(data[:split], data[split:]).requests == ours.requests, (data, split)
        num_accepted += ours.requests == theirs.requests and bool(ours.requests)
        num_stricter += len(ours.requests) < len(theirs.requests)
    assert num_accepted > NUM_MUTATED / 6 and num_stricter < NUM_MUTATED / 30


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_the_program_of_the_test_below_still_compiles() -> None:
    fuzz = Path(__file__).with_name("http_fuzz.cpp")
    subprocess.run(["g++", "-std=c++20", "-fsyntax-only", "-Wall", "-Werror", f"-I{ROOT / 'csrc'}", str(fuzz)], check=True)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_connections_are_clean_under_the_address_and_undefined_behaviour_sanitizers(tmp_path: Path) -> None:
    program = tmp_path / "fuzz"
    sources = [*sorted((ROOT / "csrc" / "http").glob("*.cpp")), Path(__file__).with_name("http_fuzz.cpp")]
    flags = ["-std=c++20", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", f"-I{ROOT / 'csrc'}"]
    subprocess.run(["g++", *flags, *map(str, sources), "-o", str(program)], check=True)
    result = subprocess.run([str(program), str(FUZZ_ROUNDS)], capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
