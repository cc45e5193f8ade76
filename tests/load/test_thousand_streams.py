"""A thousand streams at once on the embedded model, each equal to its run alone, and what a stream costs in memory."""

import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from server.served import FMO, Process, serve

from .client import ask
from .gauges import held, memory_bytes

MODEL = Path(__file__).parents[2] / "examples" / "stdlib-coder" / "model"
NUM_STREAMS, NUM_TOKENS = 1000, 100
NUM_PROMPTS = 50
MAX_BYTES_PER_STREAM = 64 * 1024


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    folder = tmp_path_factory.mktemp("embedded") / "artifact"
    subprocess.run([*FMO, "compile", str(MODEL), "--output-dir", str(folder)], check=True, capture_output=True)
    running = serve(folder, "--max-batch-size", "256", "--num-threads", "2")
    yield running
    running.stop()


def request(index: int) -> dict[str, Any]:
    """One of NUM_PROMPTS; half are greedy, half sampled with a seed."""
    which = index % NUM_PROMPTS
    sampling = {"temperature": 0} if which % 2 else {"temperature": 1, "top_p": 0.95, "seed": which}
    return {"prompt": f"def f{which}(" + "a, " * (which % 7), "max_tokens": NUM_TOKENS, "ignore_eos": True, "stream": True, **sampling}


def peak_memory_bytes(pid: int, until: threading.Event) -> int:
    peak = 0
    while not until.wait(0.1):
        peak = max(peak, memory_bytes(pid))
    return peak


def answers(process: Process, requests: list[dict[str, Any]]) -> tuple[list[str], int]:
    """The texts of all, asked at once, and the most memory that the server held meanwhile."""
    done = threading.Event()
    with ThreadPoolExecutor() as pool:
        weighing = pool.submit(peak_memory_bytes, process.popen.pid, done)
        try:
            got = ask(process.url, "/v1/completions", requests)
        finally:
            done.set()
    assert {answer.status for answer in got} == {200}
    return [answer.text() for answer in got], weighing.result()


def test_each_of_a_thousand_streams_is_what_it_is_alone_and_costs_little_memory(process: Process) -> None:
    alone = [answers(process, [request(index)])[0][0] for index in range(NUM_PROMPTS)]
    assert len(set(alone)) > NUM_PROMPTS // 2
    _, before_bytes = answers(process, [request(index) for index in range(256)])  # a full batch: all buffers exist
    together, peak_bytes = answers(process, [request(index) for index in range(NUM_STREAMS)])
    assert together == [alone[index % NUM_PROMPTS] for index in range(NUM_STREAMS)]
    bytes_per_stream = (peak_bytes - before_bytes) / (NUM_STREAMS - 256)
    print(f"{bytes_per_stream / 1024:.1f} KiB a stream")
    assert bytes_per_stream <= MAX_BYTES_PER_STREAM
    assert held(process.popen.pid, 0).num_descriptors < 64, "connections that ended are still open"
