"""Overload for 30 seconds in CI, for 10 minutes when asked (`pytest -m slow`); the detectors of leaks find those planted for them."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from server.served import Process, scripted_artifact, serve

from .client import ask, send
from .gauges import Held, leaks, memory_bytes, memory_slope, metric
from .soak import MAX_BATCH_SIZE, MAX_QUEUE_LEN, SERVE_OPTIONS, Report, soak

SHORT_S, LONG_S = 30, 600
LONG_ANSWER = {"prompt": "hello", "max_tokens": 1000, "ignore_eos": True, "temperature": 0}
MAX_BYTES_PER_REQUEST = 64
MAX_REFUSAL_S = 0.05
ALLOCATOR_NOISE_BYTES = 512
"""What a request may seem to leave behind in a run of half a minute: the allocator has not settled after a few thousand requests."""


@pytest.fixture
def process() -> Iterator[Process]:
    running = serve(scripted_artifact(), *SERVE_OPTIONS)
    yield running
    running.stop()


def check(report: Report, max_bytes_per_request: float) -> None:
    """What holds on any machine: nothing wrong, nothing lost, nothing left behind."""
    assert report.failures == []
    assert report.num_whole and report.num_left and report.rejection_times_s, "the load did not do what it is meant to do"
    assert report.num_whole + report.num_left + len(report.rejection_times_s) == report.num_requests
    assert leaks(report.samples, max_bytes_per_request=max_bytes_per_request) == []


def test_half_a_minute_of_overload_leaves_nothing_behind(process: Process) -> None:
    check(soak(process, SHORT_S), ALLOCATOR_NOISE_BYTES)
    assert process.stop() == 0


@pytest.mark.slow
def test_ten_minutes_of_overload_leave_nothing_behind_and_cost_no_throughput(process: Process) -> None:
    report = soak(process, LONG_S)
    print(f"\n{report.num_requests} requests, {report.num_whole} whole, {report.num_left} left, {len(report.rejection_times_s)} rejected")
    print(f"memory {memory_slope(report.samples):.1f} bytes a request; goodput {report.goodput:.3f}; {report.samples[-1]}")
    check(report, MAX_BYTES_PER_REQUEST)
    assert report.goodput >= 0.9
    assert process.stop() == 0


@pytest.mark.slow
def test_who_is_refused_under_overload_knows_within_50_ms(process: Process) -> None:
    """Of a machine with nothing else to do; short enough to have it for oneself."""
    times_s = soak(process, SHORT_S / 2).rejection_times_s
    print(f"\n{len(times_s)} refused after {np.percentile(times_s, [50, 90, 99, 100]) * 1e3} ms")
    assert np.percentile(times_s, 99) < MAX_REFUSAL_S


@pytest.mark.slow
def test_256_clients_at_once_are_refused_within_50_ms_while_the_server_is_full(process: Process) -> None:
    slowest_s = []
    for _ in range(5):
        filling, deadline_s = [], time.monotonic() + 60
        while metric(process.metrics_url, "friendli_current_waiting_items") < MAX_QUEUE_LEN:
            assert time.monotonic() < deadline_s, "the queue does not fill"
            filling += [send(process.url, "/v1/completions", LONG_ANSWER) for _ in range(MAX_BATCH_SIZE)]
        refused = ask(process.url, "/v1/completions", [{"prompt": "x" * 100, "n": 2}] * 256)
        assert {answer.status for answer in refused} == {429}, "the server was not full"
        times_s = [answer.first_byte_s - answer.sent_s for answer in refused if answer.first_byte_s is not None]
        slowest_s.append(max(times_s))
        print(f"refused after {np.percentile(times_s, [50, 90, 100]) * 1e3} ms")
        for sock in filling:
            sock.close()
    assert np.median(slowest_s) < MAX_REFUSAL_S


LEAKS = {
    "memory": "held.append(bytearray(4096))",
    "num_descriptors": "held.append(os.dup(0))",
    "num_threads": "threading.Thread(target=threading.Event().wait, daemon=True).start()",
}


@pytest.mark.parametrize("kind", LEAKS)
def test_the_detectors_find_a_planted_leak(kind: str, tmp_path: Path) -> None:
    program = tmp_path / "leaky"
    program.write_text(
        f"#!{sys.executable}\n"
        "import os, sys, threading\n"
        "from friendli_runtime.server import http\n"
        "held, finish, calls = [], http.EventStream.finish, [0]\n"
        "def leaky(self):\n"
        "    calls[0] += 1\n"
        f"    if calls[0] % {1 if kind == 'memory' else 20} == 0: {LEAKS[kind]}\n"
        "    finish(self)\n"
        "http.EventStream.finish = leaky\n"
        "sys.argv = sys.argv[:1] + sys.argv[3:]\n"  # what `serve` passes to an interpreter: -c and a program
        "from friendli_compile.cli import main\n"
        "main()\n"
    )
    program.chmod(0o755)
    running = serve(scripted_artifact(), *SERVE_OPTIONS, python=str(program))
    try:
        report = soak(running, 0)
    finally:
        running.stop()
    assert any(kind in leak for leak in leaks(report.samples, max_bytes_per_request=ALLOCATOR_NOISE_BYTES))


def test_the_slope_ignores_jumps_and_finds_growth() -> None:
    steady = [Held(i * 100, 10**6 + (50_000 if i > 7 else 0) + (i % 3) * 1000, 9, 3) for i in range(10)]
    growing = [Held(i * 100, 10**6 + i * 100 * 100, 9, 3) for i in range(10)]
    assert abs(memory_slope(steady)) < 20 and memory_slope(growing) == 100
    assert leaks(growing, max_bytes_per_request=64) and not leaks(steady, max_bytes_per_request=64)


def test_a_server_that_is_gone_is_not_taken_for_one_that_is_flat() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with pytest.raises((FileNotFoundError, ProcessLookupError, AssertionError)):
        memory_bytes(gone.pid)
