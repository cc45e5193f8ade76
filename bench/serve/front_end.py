"""What the front end costs without a model: CPU per request and per streamed token, over HTTP on the loopback, with a null engine.

    python bench/serve/front_end.py [--requests 1000] [--streams 32] [--tokens 500] [--repeats 3]

A line goes to bench/results/<device>/front_end.jsonl. The server runs in this process, the client in another one, which makes its bodies
and connections before it is measured:

    client: ready ─▶ read the counters ─▶ go ─▶ (asks) ─▶ done ─▶ read them again

In between this process does nothing but serve: parsing HTTP and JSON, checking, template, tokenizer, taking outputs from the engine,
detokenizing, writing, and what the kernel does for it. The null engine (null_engine.py) answers with a known text; each of its steps gives
one token to every request. A request is a chat of about 100 tokens on a connection that stays open.

    http           GET /health/ready: what the HTTP library costs here, the limit to compare with
    request        unstreamed chat requests of one token, one after the other: the server sleeps between them
    loaded         the same on `streams` connections at once
    token          `streams` chat streams at once: (long answers − answers of two tokens) / tokens between
    calibration    a fixed loop of pure Python: what shows whether the machine was itself

of each `_us`, CPU time as the kernel tells it, what the host took away included; `_cycles_us`, cycles of user and kernel at the nominal
frequency, and of these `_user_cycles_us`; and `_kilo_instructions` in user mode. All but the first where the machine counts them
(hardware_counters.py).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import platform
import random
import re
import selectors
import socket
import sys
import sysconfig
import threading
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from friendli_runtime.metrics import Metrics
from friendli_runtime.server.app import App, AppOptions, ServedModel
from friendli_runtime.server.bridge import Bridge
from friendli_runtime.server.protocol import HttpServer
from friendli_runtime.server.serve import bind, calm_collector, restore_collector
from friendli_runtime.tokenizer.chat_template import ChatTemplate
from friendli_runtime.tokenizer.tokenizer import Tokenizer
from hardware_counters import HardwareCounters, nominal_mhz
from machine import ROOT, Busy, commit, cpu_name, record
from null_engine import NullEngine
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, pre_tokenizers, trainers
from tokenizers.models import BPE

ANSWER = "The front end turns the tokens of an engine into the text of an answer, piece by piece. "
SYSTEM = "You are a helpful assistant. You answer questions about software in a few words, and you say so when you do not know."
QUESTION_WORDS = 32
SPECIAL = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] | trim + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
HEADERS = {  # as OpenAI's client sends them
    "Content-Type": "application/json",
    "Accept": "application/json",
    "Authorization": "Bearer none",
    "User-Agent": "OpenAI/Python 2.8.0",
    "X-Stainless-Lang": "python",
    "X-Stainless-OS": "Linux",
    "X-Stainless-Retry-Count": "0",
}
CALIBRATION_CALLS = 500_000
VOCAB_SIZE = 4096
MAX_CONTEXT_LEN = 4096
STEP_S = 0.002


def make_tokenizer() -> Tokenizer:
    """Byte-level BPE, trained on our own documentation."""
    backend = Backend(BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train([str(path) for path in sorted((ROOT / "docs").glob("*.md"))], trainer)
    return Tokenizer.from_json(backend.to_str())


def bodies(num_requests: int, num_tokens: int, *, stream: bool, seed: int = 0) -> list[bytes]:
    """Chats with the same system message and, of each request, another question, of words of our documentation: about 100 tokens.

    Of words that spell no special token, as ordinary questions.
    """
    text = " ".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))
    words = [word for word in text.split() if not any(special in word for special in SPECIAL)]
    draw = random.Random(seed)
    return [
        json.dumps(
            {
                "model": "null",
                "messages": [
                    {"role": "system", "content": SYSTEM},
                    {"role": "user", "content": " ".join(draw.choices(words, k=QUESTION_WORDS))},
                ],
                "max_tokens": num_tokens,
                "temperature": 0.7,
                "stream": stream,
                "ignore_eos": True,
            }
        ).encode()
        for _ in range(num_requests)
    ]


class Server:
    """The front end on a free port, until `stop`."""

    def __init__(self) -> None:
        tokenizer = make_tokenizer()
        eos_id = tokenizer.backend.token_to_id("<|end|>")
        bridge = Bridge(lambda delay_s: metrics.queueing_delays.observe(delay_s * 1e9))
        script = tokenizer.encode(ANSWER, add_special_tokens=False)
        self.counters: HardwareCounters
        self._engine = NullEngine(script, tokenizer.backend.num_tokens, MAX_CONTEXT_LEN, STEP_S)
        model = ServedModel("null", tokenizer, ChatTemplate(TEMPLATE, {"eos_token": "<|end|>"}), (eos_id,))
        metrics = Metrics("0", lambda: app.gauges())
        app = App(model, bridge, metrics, AppOptions())
        sock = bind("127.0.0.1", 0, "--web-server-port")
        self.port: int = sock.getsockname()[1]
        self._server = HttpServer(app, app.options.limits, sock, app.refuse)
        is_up = threading.Event()

        async def run() -> None:
            self.counters = HardwareCounters()
            bridge.attach(self._engine, asyncio.get_running_loop())
            app.warm_up()
            calm_collector()
            is_up.set()
            await self._server.run_on_socket()

        self._thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
        self._thread.start()
        is_up.wait()

    def stop(self) -> None:
        self._server.stop()
        restore_collector()
        self._thread.join()
        self._engine.shutdown()


@dataclass(frozen=True)
class Workload:
    """`num_requests` one after the other on each of `num_connections`; `num_tokens` 0: requests that the server answers from nothing."""

    num_connections: int
    num_requests: int
    num_tokens: int = 0
    stream: bool = False

    def requests(self, seed: int) -> list[bytes]:
        if not self.num_tokens:
            return [_request("GET /health/ready", b"")] * self.num_requests
        asked = bodies(self.num_requests, self.num_tokens, stream=self.stream, seed=seed)
        return [_request("POST /v1/chat/completions", body) for body in asked]

    def check(self, answer: bytes) -> None:
        is_right = (b"[DONE]" in answer) == self.stream if self.num_tokens else answer.endswith(b'{"status":"ready"}')
        assert answer.startswith(b"HTTP/1.1 200 ") and is_right, answer[:400]


def _request(line: str, body: bytes) -> bytes:
    fields = {"Host": "127.0.0.1", "Accept-Encoding": "identity", "Content-Length": str(len(body)), **HEADERS}
    lines = [f"{line} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


class Asker:
    """A connection, and what is asked on it one after the other."""

    def __init__(self, port: int, workload: Workload, requests: list[bytes]) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port))
        self._workload, self._requests = workload, iter(requests)
        self._seen = bytearray()

    def ask_next(self) -> bool:
        """False: that was all."""
        request = next(self._requests, None)
        if request is not None:
            self.sock.sendall(request)
        return request is not None

    def receive(self) -> bool:
        """Whether an answer is whole."""
        data = self.sock.recv(2**18)
        assert data, "the server has closed the connection"
        self._seen += data
        if not _is_whole(self._seen):
            return False
        self._workload.check(bytes(self._seen))
        self._seen.clear()
        return True


def _is_whole(answer: bytearray) -> bool:
    if answer.endswith(b"0\r\n\r\n"):
        return True
    head_len = answer.find(b"\r\n\r\n")
    length = re.search(rb"\r\ncontent-length: (\d+)", answer[: max(head_len, 0)])
    return length is not None and len(answer) == head_len + 4 + int(length[1])


def run_client(port: int, pipe: Connection) -> None:
    """In the client's process: workloads come by the pipe; each is prepared, and asked when the word is given."""
    while (workload := pipe.recv()) is not None:
        askers = [Asker(port, workload, workload.requests(seed)) for seed in range(workload.num_connections)]
        ask_all([Asker(port, PING, PING.requests(0))])  # once it is answered, the connections before it are accepted
        pipe.send("ready")
        pipe.recv()
        ask_all(askers)
        pipe.send("done")


def ask_all(askers: list[Asker]) -> None:
    """On one thread: to wake one for each answer would cost the server, which a client on another machine does not."""
    with selectors.DefaultSelector() as selector:
        for asker in askers:
            asker.ask_next()
            selector.register(asker.sock, selectors.EVENT_READ, asker)
        num_open = len(askers)
        while num_open:
            for key, _ in selector.select():
                if key.data.receive() and not key.data.ask_next():
                    selector.unregister(key.fileobj)
                    key.data.sock.close()
                    num_open -= 1


PING = Workload(1, 1)


class Client:
    """The client's process. EOFError when it has failed; it has said why."""

    def __init__(self, port: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, its_end = context.Pipe()
        self._process = context.Process(target=run_client, args=(port, its_end))
        self._process.start()
        its_end.close()

    def cost(self, server: Server, workload: Workload) -> Cost:
        """What this process does while the client asks."""
        self._pipe.send(workload)
        self._pipe.recv()
        started = Cost.so_far(server.counters)
        self._pipe.send("go")
        self._pipe.recv()
        return Cost.so_far(server.counters) - started

    def stop(self) -> None:
        self._pipe.send(None)
        self._process.join()


@dataclass(frozen=True)
class Cost:
    """`cpu_s`: of this process. `counts`: by name, those that the machine has."""

    cpu_s: float
    counts: dict[str, int]

    @classmethod
    def so_far(cls, counters: HardwareCounters) -> Cost:
        return cls(time.process_time(), counters.read())

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.cpu_s - other.cpu_s, {name: count - other.counts[name] for name, count in self.counts.items()})

    def per(self, name: str, num: int) -> dict[str, float]:
        figures, mhz = {f"{name}_us": self.cpu_s / num * 1e6}, nominal_mhz()
        for count in ("cycles", "user_cycles"):
            if mhz is not None and count in self.counts:
                figures[f"{name}_{count}_us"] = self.counts[count] / num / mhz
        if "instructions" in self.counts:
            figures[f"{name}_kilo_instructions"] = self.counts["instructions"] / num / 1e3
        return figures


def calibration() -> Cost:
    """A loop of calls and sums, in this thread."""

    def one() -> int:
        return 1

    counters = HardwareCounters()
    started, total = Cost.so_far(counters), 0
    for _ in range(CALIBRATION_CALLS):
        total += one()
    cost = Cost.so_far(counters) - started
    counters.close()
    return cost


def measure(server: Server, client: Client, num_requests: int, num_streams: int, num_tokens: int) -> dict[str, float]:
    """What an empty request, a request and a token cost."""
    each = max(2, num_requests // num_streams)
    pings = client.cost(server, Workload(1, num_requests))
    requests = client.cost(server, Workload(1, num_requests, 1))
    loaded = client.cost(server, Workload(num_streams, each, 1))
    short, long = (client.cost(server, Workload(num_streams, 2, num, stream=True)) for num in (2, num_tokens))
    return {
        **pings.per("http", num_requests),
        **requests.per("request", num_requests),
        **loaded.per("loaded_request", num_streams * each),
        **(long - short).per("token", num_streams * 2 * (num_tokens - 2)),
        **calibration().per("calibration_call", CALIBRATION_CALLS),
    }


def machine_facts() -> dict[str, object]:
    """`python_flags`: of how the interpreter was built, those that make it faster or slower. Distributions do not tell all of them."""
    config = sysconfig.get_config_var("CONFIG_ARGS") or ""
    flags = [flag for flag in ("--enable-optimizations", "--with-lto", "--enable-shared") if flag in config]
    return {"cpu": cpu_name(), "nominal_mhz": nominal_mhz(), "python": platform.python_version(), "python_flags": flags}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dry-run", action="store_true", help="print the line, do not append it")
    args = parser.parse_args()
    server = Server()
    client = Client(server.port)
    client.cost(server, Workload(args.streams, 4, 2))  # a server that runs has seen the common words
    busy = Busy()
    rounds = [measure(server, client, args.requests, args.streams, args.tokens) for _ in range(args.repeats)]
    client.stop()
    server.stop()
    of_others = busy.of_others()
    best = {name: round(min(one[name] for one in rounds), 2) for name in rounds[0]}
    all_of = {f"{name}_all": [round(one[name], 2) for one in rounds] for name in rounds[0]}
    line = {"commit": commit(), **machine_facts(), "streams": args.streams, **best, **all_of, **of_others}
    if args.dry_run:
        print(json.dumps(line, indent=2))
    else:
        record("front_end.jsonl", line)


if __name__ == "__main__":
    main()
