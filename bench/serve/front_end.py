"""What the front end costs without a model: CPU time per request and per streamed token, over HTTP on the loopback, with a null engine.

    python bench/serve/front_end.py [--requests 1000] [--streams 32] [--tokens 500] [--repeats 3]

A line goes to bench/results/<device>/front_end.jsonl. The server runs in this process and the client in another one, so CPU time
(`process_time`) is the server's alone: parsing HTTP and JSON, checking, template, tokenizer, the hop from the engine's thread,
detokenizing, writing. The null engine answers with a known text; each of its steps gives one token to every request.

    http           GET /health/ready: what the HTTP library costs here, the limit to compare with
    per request    unstreamed chat requests of one token, one at a time per connection
    per token      `streams` chat streams at once: (CPU of long answers − CPU of answers of one token) / tokens between
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import multiprocessing
import platform
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from friendli_runtime.engine import Sink, TokenOutput
from friendli_runtime.metrics import Metrics
from friendli_runtime.sampling import SamplingParams
from friendli_runtime.server.app import App, AppOptions, ServedModel
from friendli_runtime.server.bridge import Bridge
from friendli_runtime.server.protocol import HttpServer
from friendli_runtime.server.serve import bind
from friendli_runtime.structured.mask_feeder import MaskSource
from friendli_runtime.tokenizer.chat_template import ChatTemplate
from friendli_runtime.tokenizer.tokenizer import Tokenizer
from machine import Busy, commit, cpu_name, results_dir
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, pre_tokenizers, trainers
from tokenizers.models import BPE

ANSWER = "The front end turns the tokens of an engine into the text of an answer, piece by piece. "
TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
MAX_CONTEXT_LEN = 4096


class NullEngine:
    """Implements the server's TokenEngine: every step, each request gets the next token of ANSWER, again and again until max_tokens."""

    max_context_len = max_total_len = MAX_CONTEXT_LEN
    adapters = None

    def __init__(self, tokenizer: Tokenizer, on_batch_end: Callable[[], None]) -> None:
        self.vocab_size = tokenizer.backend.get_vocab_size()
        ids = tokenizer.encode(ANSWER, add_special_tokens=False)
        self._tokens = (ids * (MAX_CONTEXT_LEN // len(ids) + 1))[:MAX_CONTEXT_LEN]
        self._on_batch_end = on_batch_end
        self._running: list[tuple[Sink, int, list[int]]] = []
        self._changed = threading.Condition()
        self._num_submitted = 0
        self._is_closed = False
        self._thread = threading.Thread(target=self._loop, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        sink: Sink,
        constraint: MaskSource | None = None,
        adapter: str | None = None,
    ) -> int:
        params.validate(self.vocab_size, self.max_context_len, len(prompt_ids))
        with self._changed:
            self._num_submitted += 1
            self._running.append((sink, params.output_limit(self.max_context_len, len(prompt_ids)), [0]))
            self._changed.notify()
            return self._num_submitted

    def cancel(self, request_id: int) -> None:
        """Requests of the benchmark run to their end."""

    def cancel_sample(self, request_id: int, sample_idx: int) -> None:
        """Nor has any a stop string."""

    def stats(self) -> dict[str, Any]:
        return {"num_queued_requests": 0, "num_running": len(self._running), "heartbeat_age_s": 0.0}

    def shutdown(self, drain_s: float = 0.0) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def _loop(self) -> None:
        while True:
            with self._changed:
                while not self._running and not self._is_closed:
                    self._changed.wait()
                if self._is_closed:
                    return
                running = list(self._running)
            for sink, limit, num_done in running:
                token_id = self._tokens[num_done[0]]
                num_done[0] += 1
                sink([TokenOutput(0, token_id, None, None, "length" if num_done[0] == limit else None, None, 0)])
            with self._changed:
                self._running = [entry for entry in self._running if entry[2][0] < entry[1]]
            self._on_batch_end()
            time.sleep(STEP_S)  # a model would run now


STEP_S = 0.002


def make_tokenizer() -> Tokenizer:
    """Byte-level BPE, trained on the answer."""
    backend = Backend(BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|end|>", "<|user|>", "<|assistant|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=2000, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator([ANSWER] * 10, trainer)
    return Tokenizer(backend, {})


class Server:
    """The front end on a free port, until `stop`."""

    def __init__(self) -> None:
        tokenizer = make_tokenizer()
        eos_id = tokenizer.backend.token_to_id("<|end|>")
        bridge = Bridge(lambda delay_s: metrics.queueing_delays.observe(delay_s * 1e9))
        self._engine = NullEngine(tokenizer, bridge.flush)
        model = ServedModel("null", tokenizer, ChatTemplate(TEMPLATE, {"eos_token": "<|end|>"}), (eos_id,))
        metrics = Metrics("0", lambda: app.gauges())
        app = App(model, bridge, metrics, AppOptions())
        sock = bind("127.0.0.1", 0, "--web-server-port")
        self.port: int = sock.getsockname()[1]
        self._server = HttpServer(app, app.options.limits, sock)
        is_up = threading.Event()

        async def run() -> None:
            bridge.attach(self._engine, asyncio.get_running_loop())
            is_up.set()
            await self._server.run_on_socket()

        self._engine.start()
        self._thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
        self._thread.start()
        is_up.wait()

    def stop(self) -> None:
        self._server.stop()
        self._thread.join()
        self._engine.shutdown()


def ask(port: int, num_requests: int, num_tokens: int, *, stream: bool) -> None:
    """In the client's process: `num_requests` one after the other on one connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    body = json.dumps({"messages": [{"role": "user", "content": "Say something."}], "max_tokens": num_tokens, "stream": stream})
    for _ in range(num_requests):
        connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
        response = connection.getresponse()
        data = response.read()
        assert response.status == 200 and (b"[DONE]" in data) == stream, data[:200]
    connection.close()


def ping(port: int, num_requests: int) -> None:
    """In the client's process: requests that the server answers from nothing, the least that HTTP costs."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    for _ in range(num_requests):
        connection.request("GET", "/health/ready")
        assert connection.getresponse().read() == b'{"status":"ready"}'
    connection.close()


def ask_at_once(port: int, num_streams: int, num_requests: int, num_tokens: int) -> None:
    """In the client's process: `num_streams` connections at once."""
    threads = [threading.Thread(target=ask, args=(port, num_requests, num_tokens), kwargs={"stream": True}) for _ in range(num_streams)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def cpu_s(target: Callable[..., None], *args: Any, **kwargs: Any) -> float:
    """CPU time of this process while `target` runs in another."""
    context = multiprocessing.get_context("spawn")
    client = context.Process(target=target, args=args, kwargs=kwargs)
    started_s = time.process_time()
    client.start()
    while client.is_alive():
        client.join(0.05)
    assert client.exitcode == 0, "the client failed"
    return time.process_time() - started_s


def measure(port: int, num_requests: int, num_streams: int, num_tokens: int) -> dict[str, float]:
    """Microseconds of CPU per empty request, request and token. Differences, so that starting the client and idling do not count."""
    few, many = num_requests // 10, num_requests
    ping_s = cpu_s(ping, port, many) - cpu_s(ping, port, few)
    request_s = cpu_s(ask, port, many, 1, stream=False) - cpu_s(ask, port, few, 1, stream=False)
    short_s, long_s = (cpu_s(ask_at_once, port, num_streams, 2, num) for num in (2, num_tokens))
    return {
        "http_us": ping_s / (many - few) * 1e6,
        "request_us": request_s / (many - few) * 1e6,
        "token_us": (long_s - short_s) / (num_streams * 2 * (num_tokens - 2)) * 1e6,
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
    rounds = [measure(server.port, args.requests, args.streams, args.tokens) for _ in range(args.repeats)]
    server.stop()
    best = {name: round(min(one[name] for one in rounds), 1) for name in rounds[0]}
    all_of = {f"{name}_all": [round(one[name], 1) for one in rounds] for name in rounds[0]}
    line = {"commit": commit(), "cpu": cpu_name(), "python": platform.python_version(), "streams": args.streams, **best, **all_of}
    text = json.dumps({**line, **busy.of_others()})
    print(text)
    if not args.dry_run:
        with (results_dir() / "front_end.jsonl").open("a") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    main()
