"""What the front end costs without a model: CPU time per request and per streamed token, over HTTP on the loopback, with a null engine.

    python bench/serve/front_end.py [--requests 1000] [--streams 32] [--tokens 500] [--repeats 3]

A line goes to bench/results/<device>/front_end.jsonl. The server runs in this process and the client in another one, so CPU time
(`process_time`) is the server's alone: parsing HTTP and JSON, checking, template, tokenizer, taking outputs from the engine, detokenizing,
writing, and what the kernel does for it. The null engine (null_engine.py) answers with a known text; each of its steps gives one token to
every request. A request is a chat of about 100 tokens on a connection that stays open. Instructions of the event loop are counted too,
where the machine counts them: they tell versions apart that time on a shared machine does not.

    http           GET /health/ready: what the HTTP library costs here, the limit to compare with
    request        unstreamed chat requests of one token, one after the other: the server sleeps between them
    loaded         the same on `streams` connections at once
    token          `streams` chat streams at once: (CPU of long answers − CPU of answers of two tokens) / tokens between
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import multiprocessing
import platform
import random
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from friendli_runtime.metrics import Metrics
from friendli_runtime.server.app import App, AppOptions, ServedModel
from friendli_runtime.server.bridge import Bridge
from friendli_runtime.server.protocol import HttpServer
from friendli_runtime.server.serve import bind, calm_collector, restore_collector
from friendli_runtime.tokenizer.chat_template import ChatTemplate
from friendli_runtime.tokenizer.tokenizer import Tokenizer
from instructions import InstructionCounter
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
    return Tokenizer(backend, {})


def bodies(num_requests: int, num_tokens: int, *, stream: bool, seed: int = 0) -> list[bytes]:
    """Chats with the same system message and, of each request, another question, of words of our documentation: about 100 tokens."""
    words = " ".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))).split()
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
        self.instructions: InstructionCounter | None = None
        self._engine = NullEngine(script, tokenizer.backend.get_vocab_size(), MAX_CONTEXT_LEN, STEP_S)
        model = ServedModel("null", tokenizer, ChatTemplate(TEMPLATE, {"eos_token": "<|end|>"}), (eos_id,))
        metrics = Metrics("0", lambda: app.gauges())
        app = App(model, bridge, metrics, AppOptions())
        sock = bind("127.0.0.1", 0, "--web-server-port")
        self.port: int = sock.getsockname()[1]
        self._server = HttpServer(app, app.options.limits, sock)
        is_up = threading.Event()

        async def run() -> None:
            bridge.attach(self._engine, asyncio.get_running_loop())
            app.warm_up()
            calm_collector()
            self.instructions = InstructionCounter.of_this_thread()
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


def ask(port: int, num_requests: int, num_tokens: int, *, stream: bool, seed: int = 0) -> None:
    """In the client's process: `num_requests` one after the other on one connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    for body in bodies(num_requests, num_tokens, stream=stream, seed=seed):
        connection.request("POST", "/v1/chat/completions", body, HEADERS)
        response = connection.getresponse()
        data = response.read()
        assert response.status == 200 and (b"[DONE]" in data) == stream, data[:200]
    connection.close()


def ping(port: int, num_requests: int) -> None:
    """In the client's process: requests that the server answers from nothing, the least that HTTP costs."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    for _ in range(num_requests):
        connection.request("GET", "/health/ready", headers=HEADERS)
        assert connection.getresponse().read() == b'{"status":"ready"}'
    connection.close()


def ask_at_once(port: int, num_streams: int, num_requests: int, num_tokens: int, *, stream: bool) -> None:
    """In the client's process: `num_streams` connections at once."""
    args = (port, num_requests, num_tokens)
    threads = [threading.Thread(target=ask, args=args, kwargs={"stream": stream, "seed": seed}) for seed in range(num_streams)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def cost(server: Server, target: Callable[..., None], *args: Any, **kwargs: Any) -> Cost:
    """What this process does while `target` asks the server from another."""
    context = multiprocessing.get_context("spawn")
    client = context.Process(target=target, args=(server.port, *args), kwargs=kwargs)
    started = Cost.so_far(server)
    client.start()
    while client.is_alive():
        client.join(0.05)
    assert client.exitcode == 0, "the client failed"
    return Cost.so_far(server) - started


@dataclass(frozen=True)
class Cost:
    """`instructions`: of the event loop, in user mode; None where the machine does not count them."""

    cpu_s: float
    instructions: int | None

    @classmethod
    def so_far(cls, server: Server) -> Cost:
        return cls(time.process_time(), None if server.instructions is None else server.instructions.read())

    def __sub__(self, other: Cost) -> Cost:
        both = self.instructions, other.instructions
        return Cost(self.cpu_s - other.cpu_s, None if both[0] is None or both[1] is None else both[0] - both[1])

    def per(self, name: str, num: int) -> dict[str, float]:
        counted = {} if self.instructions is None else {f"{name}_kilo_instructions": self.instructions / num / 1e3}
        return {f"{name}_us": self.cpu_s / num * 1e6, **counted}


def measure(server: Server, num_requests: int, num_streams: int, num_tokens: int) -> dict[str, float]:
    """What an empty request, a request and a token cost. Differences, so that starting the client and idling do not count."""
    few, many = num_requests // 10, num_requests
    cost(server, ask, few, 1, stream=False)  # a server that runs has seen the common words
    pings = cost(server, ping, many) - cost(server, ping, few)
    requests = cost(server, ask, many, 1, stream=False) - cost(server, ask, few, 1, stream=False)
    each = max(2, num_requests // num_streams)
    loaded = cost(server, ask_at_once, num_streams, each, 1, stream=False) - cost(server, ask_at_once, num_streams, 1, 1, stream=False)
    short, long = (cost(server, ask_at_once, num_streams, 2, num, stream=True) for num in (2, num_tokens))
    return {
        **pings.per("http", many - few),
        **requests.per("request", many - few),
        **loaded.per("loaded_request", num_streams * (each - 1)),
        **(long - short).per("token", num_streams * 2 * (num_tokens - 2)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dry-run", action="store_true", help="print the line, do not append it")
    args = parser.parse_args()
    busy, server = Busy(), Server()
    rounds = [measure(server, args.requests, args.streams, args.tokens) for _ in range(args.repeats)]
    server.stop()
    best = {name: round(min(one[name] for one in rounds), 1) for name in rounds[0]}
    all_of = {f"{name}_all": [round(one[name], 1) for one in rounds] for name in rounds[0]}
    line = {"commit": commit(), "cpu": cpu_name(), "python": platform.python_version(), "streams": args.streams, **best, **all_of}
    line |= busy.of_others()
    if args.dry_run:
        print(json.dumps(line, indent=2))
    else:
        record("front_end.jsonl", line)


if __name__ == "__main__":
    main()
