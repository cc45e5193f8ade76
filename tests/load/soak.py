"""Waves of requests against one server: more than it takes, a tenth of the clients leaving, answers checked, the process weighed between.

    warm up ─▶ [ burst of 5 × what may run and wait ─▶ all answered ─▶ weigh ] × many ─▶ Report

The scripted model says in advance what it will answer, so a mixed-up answer is found whatever the load was.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field
from typing import Any

from models.scripted import script_tag
from server.served import Process

from .client import Answer, post
from .gauges import Held, held, metric

MAX_BATCH_SIZE, MAX_QUEUE_LEN = 16, 48
SERVE_OPTIONS = ("--max-batch-size", str(MAX_BATCH_SIZE), "--max-queue-len", str(MAX_QUEUE_LEN), "--kv-cache-memory", "24MiB")
OVERLOAD, NUM_WARM_UP_WAVES = 5, 4
SHARE_THAT_LEAVES = 0.1
MAX_SCRIPT_LEN, MAX_PADDING = 60, 200
POOL_LEN = 100
"""Different requests. Few, so that what the tokenizer remembers of prompts is full when the weighing begins."""


@dataclass
class Report:
    """Counts of requests and times in seconds over a soak."""

    samples: list[Held] = field(default_factory=list)
    num_requests: int = 0
    num_left: int = 0
    num_whole: int = 0
    failures: list[str] = field(default_factory=list)
    rejection_times_s: list[float] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0

    @property
    def tokens_per_s(self) -> float:
        """Of answers that were wanted and complete."""
        return self.tokens / self.seconds


@dataclass(frozen=True)
class Request:
    script: str
    body: dict[str, Any]
    leaves_after: int | None


def make_request(rng: random.Random, max_script_len: int) -> Request:
    """A prompt that makes the model say `script`, streamed or not, one or two samples, plain or with padding that fills several blocks."""
    script = "".join(rng.choice("abcdefgh é🙂") for _ in range(rng.randrange(1, max_script_len)))
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


async def ask(process: Process, request: Request, report: Report) -> None:
    """One client: its answer is counted, and checked against the script."""
    answer = await post(process.url, "/v1/completions", request.body, leave_after_bytes=request.leaves_after)
    report.num_requests += 1
    if answer.status == 429:
        report.rejection_times_s.append(answer.took_s)
    elif answer.left:
        report.num_left += 1
    else:
        _check(answer, request, report)


def _check(answer: Answer, request: Request, report: Report) -> None:
    texts = [""] * request.body["n"]
    if answer.status == 200:
        for event in answer.events():
            for choice in event["choices"]:
                texts[choice["index"]] += choice["text"]
    if texts == [request.script] * len(texts):
        report.num_whole += 1
        report.tokens += len(texts) * (len(request.script.encode()) + 1)
    else:
        report.failures.append(f"status {answer.status}: asked for {request.script!r}, got {answer.body[:200]!r}")


async def wave(process: Process, requests: list[Request], report: Report) -> None:
    """All at once; returns when each has its answer and the server holds none of them any more."""
    started_s = time.monotonic()
    await asyncio.gather(*(ask(process, request, report) for request in requests))
    report.seconds += time.monotonic() - started_s
    deadline_s = time.monotonic() + 60
    while metric(process.metrics_url, "friendli_current_items"):
        assert time.monotonic() < deadline_s, "requests whose clients left are still held"
        await asyncio.sleep(0.01)


async def soak(
    process: Process, seconds: float, *, overload: int = OVERLOAD, max_script_len: int = MAX_SCRIPT_LEN, seed: int = 0
) -> Report:
    """Bursts of `overload` times what the server runs and queues, for about `seconds`; the first ones only warm it up."""
    rng, report = random.Random(seed), Report()
    pool = [make_request(rng, max_script_len) for _ in range(POOL_LEN)]
    burst_len = overload * (MAX_BATCH_SIZE + MAX_QUEUE_LEN)
    for _ in range(NUM_WARM_UP_WAVES):
        await wave(process, rng.choices(pool, k=burst_len), report)
    report = Report()
    deadline_s = time.monotonic() + seconds
    while time.monotonic() < deadline_s or len(report.samples) < 4:
        await wave(process, rng.choices(pool, k=burst_len), report)
        report.samples.append(held(process.popen.pid, report.num_requests))
    return report
