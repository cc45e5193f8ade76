"""Waves of requests against one server: more than it takes, a tenth of the clients leaving, answers checked, the process weighed between.

    warm up ─▶ [ 5 × what may run and wait, 5 × as fast as it is served ─▶ all answered ─▶ weigh ] × many ─▶ Report
                 after every fourth, 1 × that at once: the speed of a server that is just full, in the same minute

The scripted model says in advance what it will answer, so a mixed-up answer is found whatever the load was.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from typing import Any

from models.scripted import script_tag
from server.served import Process

from .client import Answer, ask
from .gauges import Held, held, metric

MAX_BATCH_SIZE, MAX_QUEUE_LEN = 16, 48
SERVE_OPTIONS = ("--max-batch-size", str(MAX_BATCH_SIZE), "--max-queue-len", str(MAX_QUEUE_LEN), "--kv-cache-memory", "24MiB")
OVERLOAD, NUM_WARM_UP_WAVES = 5, 9
"""The allocator has settled after about 3,000 requests, however long they take."""
WAVES_PER_CALM_ONE = 4
SHARE_THAT_LEAVES = 0.1
MAX_SCRIPT_LEN, MAX_PADDING = 60, 200
POOL_LEN = 100
"""Different requests. Few, so that what the tokenizer remembers of prompts is full when the weighing begins."""


@dataclass
class Speed:
    """Tokens of answers that were wanted and complete, and the time from the first request of a wave to its last answer."""

    requests: int = 0
    tokens: int = 0
    seconds: float = 0.0

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds


@dataclass
class Report:
    """Counts of requests and times in seconds over a soak."""

    samples: list[Held] = field(default_factory=list)
    num_requests: int = 0
    num_left: int = 0
    num_whole: int = 0
    num_whole_tokens: int = 0
    failures: list[str] = field(default_factory=list)
    rejection_times_s: list[float] = field(default_factory=list)
    in_bursts: Speed = field(default_factory=Speed)
    in_calm: Speed = field(default_factory=Speed)

    @property
    def goodput(self) -> float:
        """Speed under overload over that of a server that is just full."""
        return self.in_bursts.tokens_per_s / self.in_calm.tokens_per_s


@dataclass(frozen=True)
class Request:
    script: str
    body: dict[str, Any]
    leaves_after: int | None


def make_request(rng: random.Random) -> Request:
    """A prompt that makes the model say `script`, streamed or not, one or two samples, plain or with padding that fills several blocks."""
    script = "".join(rng.choice("abcdefgh é🙂") for _ in range(rng.randrange(1, MAX_SCRIPT_LEN)))
    padding = "x" * rng.randrange(MAX_PADDING)
    body = {
        "prompt": padding + script_tag(script) + "<|go|>",
        "temperature": 0,
        "stream": True,
        "n": rng.choice((1, 1, 2)),
        "max_tokens": 400,
    }
    leaves = rng.random() < SHARE_THAT_LEAVES
    return Request(script, body, rng.randrange(1, 2000) if leaves else None)


def _note(answer: Answer, request: Request, report: Report) -> None:
    """An answer is counted, and checked against the script."""
    report.num_requests += 1
    if answer.status == 429:
        assert answer.first_byte_s is not None
        report.rejection_times_s.append(answer.first_byte_s - answer.sent_s)
    elif answer.left:
        report.num_left += 1
    elif _texts(answer, request) == [request.script] * request.body["n"]:
        report.num_whole += 1
        report.num_whole_tokens += request.body["n"] * (len(request.script.encode()) + 1)
    else:
        report.failures.append(f"status {answer.status}: asked for {request.script!r}, got {answer.body[:200]!r}")


def _texts(answer: Answer, request: Request) -> list[str]:
    texts = [""] * request.body["n"]
    for event in answer.events() if answer.status == 200 else ():
        for choice in event["choices"]:
            texts[choice["index"]] += choice["text"]
    return texts


def wave(process: Process, requests: list[Request], report: Report, speed: Speed, interval_s: float = 0) -> None:
    """Requests `interval_s` after each other or at once; returns when the server holds none of them and no block any more."""
    started_s, num_tokens = time.monotonic(), report.num_whole_tokens
    leave_after = [request.leaves_after for request in requests]
    answers = ask(process.url, "/v1/completions", [request.body for request in requests], leave_after, interval_s=interval_s)
    speed.seconds += time.monotonic() - started_s
    speed.requests += len(requests)
    for answer, request in zip(answers, requests, strict=True):
        _note(answer, request, report)
    speed.tokens += report.num_whole_tokens - num_tokens
    deadline_s = time.monotonic() + 60
    while any(metric(process.metrics_url, f"friendli_current_{what}") for what in ("items", "used_blocks")):
        assert time.monotonic() < deadline_s, "requests whose clients left, or their blocks, are still held"
        time.sleep(0.01)


def soak(process: Process, seconds: float, seed: int = 0) -> Report:
    """Waves of requests that come `OVERLOAD` times as fast as they are served, for about `seconds`; the first ones only warm up."""
    rng, report = random.Random(seed), Report()
    pool = [make_request(rng) for _ in range(POOL_LEN)]
    full_len = MAX_BATCH_SIZE + MAX_QUEUE_LEN

    def fill() -> None:
        wave(process, rng.choices(pool, k=full_len), report, report.in_calm)

    def overload() -> None:
        interval_s = report.in_calm.seconds / report.in_calm.requests / OVERLOAD
        wave(process, rng.choices(pool, k=OVERLOAD * full_len), report, report.in_bursts, interval_s)

    fill()
    for _ in range(NUM_WARM_UP_WAVES):
        overload()
    report = Report()
    fill()
    deadline_s = time.monotonic() + seconds
    while time.monotonic() < deadline_s or len(report.samples) < WAVES_PER_CALM_ONE:
        overload()
        report.samples.append(held(process.popen.pid, report.num_requests))
        if len(report.samples) % WAVES_PER_CALM_ONE == 0:
            fill()
    return report
