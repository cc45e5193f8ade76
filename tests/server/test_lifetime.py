"""What ends a request or a server: clients that leave, deadlines, a full queue, failures of the engine, draining."""

import json
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from engine.hash_model import HashModel
from friendli_runtime.engine import Engine
from friendli_runtime.server.auth import ApiKeys
from friendli_runtime.server.errors import unavailable
from friendli_runtime.server.limits import Limits
from friendli_runtime.tokenizer.tokenizer import Tokenizer

from .conftest import TestServer
from .test_completions import frames

ENDLESS: dict[str, Any] = {"prompt": "[[hello world ]]", "ignore_eos": True}
MakeServer = Callable[..., TestServer]
STEP_S = 0.02


def eventually(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, f"never came true: {what}"
        time.sleep(0.005)


def raw_request(server: TestServer, body: dict[str, Any]) -> socket.socket:
    """A connection that has sent a completions request and reads nothing yet."""
    data = json.dumps(body).encode()
    sock = socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1])))
    sock.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(data) + data)
    return sock


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_cancels_its_request(make_server: MakeServer, stream: bool) -> None:
    server = make_server(step_s=0.01, max_context_len=100_000)
    sock = raw_request(server, {**ENDLESS, "stream": stream, "n": 3})
    eventually(lambda: server.engine.stats()["num_running"] == 3, "the request runs")
    if stream:
        assert sock.recv(100)
    sock.close()
    eventually(lambda: server.engine.stats()["num_running"] == 0, "nothing runs any more")
    eventually(lambda: server.app.metrics.failures_by_cancel.value == 1, "the cancellation is counted")
    assert server.app.gauges()["current_requests"] == 0


def test_a_client_that_leaves_with_another_request_on_the_way_cancels_the_one_that_runs(make_server: MakeServer) -> None:
    server = make_server(step_s=0.01, max_context_len=100_000)
    sock = raw_request(server, ENDLESS)
    sock.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
    eventually(lambda: server.engine.stats()["num_running"] == 1, "the first request runs")
    sock.close()
    eventually(lambda: server.engine.stats()["num_running"] == 0, "nothing runs any more")


def test_a_client_that_leaves_while_it_waits_is_forgotten(make_server: MakeServer) -> None:
    server = make_server(step_s=0.01, max_num_seqs=1, max_context_len=100_000)
    first, second = raw_request(server, ENDLESS), None
    eventually(lambda: server.app.gauges()["current_assigned_items"] == 1, "the first runs")
    second = raw_request(server, ENDLESS)
    eventually(lambda: server.app.gauges()["current_waiting_items"] == 1, "the second waits")
    second.close()
    eventually(lambda: server.app.gauges()["current_items"] == 1, "only the first is left")
    first.close()


class PacedModel(HashModel):
    """Takes `STEP_S` for a step, and longer while `gate` is closed."""

    gate: threading.Event

    def forward(self, *batch: Any) -> Any:
        time.sleep(STEP_S)
        self.gate.wait(20)
        return super().forward(*batch)


def paced_engine(tokenizer: Tokenizer, eos_id: int, max_queue_len: int) -> Engine:
    """The real engine, for two samples at a time, on a model with time to disturb it."""
    model = PacedModel(num_blocks=256, vocab_size=tokenizer.backend.num_tokens)
    model.gate = threading.Event()
    model.gate.set()
    sizes = {"max_num_seqs": 2, "max_num_tokens": 8, "max_context_len": 512, "vocab_size": model.vocab_size}
    return Engine(model, max_queue_len=max_queue_len, has_dispatcher=False, **sizes)


PHASES = {  # name → (what is asked, when the client leaves)
    "mid-prefill": ({"tokens": [7] * 400}, lambda stats: stats["num_prompt_tokens"] >= 24),
    "decode": ({"tokens": [7, 8]}, lambda stats: stats["num_generated_tokens"] >= 3),
    "several samples, some of them waiting": ({"tokens": [7, 8], "n": 4}, lambda stats: stats["num_generated_tokens"] >= 6),
}


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("stream", [True, False])
def test_the_blocks_of_a_client_that_leaves_are_free_within_a_step(make_server: MakeServer, phase: str, stream: bool) -> None:
    server = make_server(make_engine=paced_engine)
    body, is_in_phase = PHASES[phase]
    sock = raw_request(server, {"max_tokens": 100, "ignore_eos": True, "stream": stream, **body})
    eventually(lambda: is_in_phase(server.engine.stats()), phase)
    server.engine._core.model.gate.clear()
    assert server.engine.stats()["num_used_blocks"] > 0
    num_steps = server.engine.stats()["num_steps"]
    sock.close()
    eventually(lambda: server.app.metrics.failures_by_cancel.value == 1, "the server notices, while the model works")
    server.engine._core.model.gate.set()
    eventually(lambda: server.engine.stats()["num_used_blocks"] == server.engine.stats()["num_waiting"] == 0, "the blocks are free")
    assert server.engine.stats()["num_steps"] <= num_steps + 2, "the step that was running, and one that was about to end"


def test_the_queued_request_of_a_client_that_leaves_takes_nobodys_turn(make_server: MakeServer) -> None:
    server = make_server(make_engine=paced_engine)
    endless = {"tokens": [7, 8], "max_tokens": 400, "ignore_eos": True, "n": 2}
    running = raw_request(server, endless)
    eventually(lambda: server.engine.stats()["num_running"] == 2, "both samples run")
    queued = raw_request(server, endless)
    eventually(lambda: server.engine.stats()["num_queued_requests"] == 1, "the second waits")
    queued.close()
    eventually(lambda: server.engine.stats()["num_queued_requests"] == 0, "the second is forgotten")
    assert server.engine.stats()["num_running"] == 2
    running.close()


def test_an_answer_that_ended_at_a_stop_string_frees_its_blocks(make_server: MakeServer) -> None:
    server = make_server(make_engine=paced_engine)
    response = server.post(
        "/v1/completions", tokens=[7, 8], max_tokens=400, ignore_eos=True, stop=list("etaoinshrdlu")[:4], n=2, seed=[1, 2]
    )
    assert [choice["finish_reason"] for choice in response.json()["choices"]] == ["stop", "stop"]
    eventually(lambda: server.engine.stats()["num_used_blocks"] == 0, "the blocks are free")


def test_liveness_fails_while_the_model_hangs_and_comes_back(make_server: MakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("friendli_runtime.server.app.MAX_HEARTBEAT_AGE_S", 20 * STEP_S)
    server = make_server(make_engine=paced_engine)
    assert server.client.get("/health/live").status_code == 200
    model = server.engine._core.model
    model.gate.clear()
    sock = raw_request(server, {"tokens": [7], "max_tokens": 100, "ignore_eos": True})
    eventually(lambda: server.client.get("/health/live").status_code == 503, "the server says that it hangs")
    model.gate.set()
    eventually(lambda: server.client.get("/health/live").status_code == 200, "it lives again")
    sock.close()


def test_a_full_queue_is_429_with_retry_after(make_server: MakeServer) -> None:
    server = make_server(step_s=0.01, max_num_seqs=1, max_queue_len=1, max_context_len=100_000)
    socks = [raw_request(server, ENDLESS)]
    eventually(lambda: server.engine.stats()["num_running"] == 1, "the first runs")
    socks.append(raw_request(server, ENDLESS))
    eventually(lambda: server.engine.stats()["num_queued_requests"] == 1, "the second waits")
    response = server.post("/v1/completions", prompt="x")
    assert (response.status_code, response.headers["retry-after"]) == (429, "1")
    assert server.app.metrics.failures_by_reject.value == 1
    unread = server.client.post("/v1/completions", content=b"no JSON", headers={"content-type": "application/json"})
    assert unread.status_code == 429, "what will be refused is not looked at"
    assert server.client.get("/health/ready").status_code == 503
    for sock in socks:
        sock.close()


def test_a_request_that_no_queue_can_hold_is_told_so(make_server: MakeServer) -> None:
    server = make_server(step_s=0.001, max_num_seqs=1, max_queue_len=5, max_context_len=1000)
    response = server.post("/v1/completions", prompt=["a", "b", "c"], n=2, max_tokens=1)
    assert (response.status_code, response.json()["error"]["param"]) == (422, "prompt")
    assert server.post("/v1/completions", prompt=["a", "b"], n=2, max_tokens=1).status_code == 200
    assert server.post("/v1/completions", prompt="a", n=6, max_tokens=1).status_code == 200, "alone it waits for nobody"


def test_a_deadline_is_504_and_cancels(make_server: MakeServer) -> None:
    server = make_server(step_s=0.01, max_context_len=100_000, request_timeout_s=0.1)
    assert server.post("/v1/completions", **ENDLESS).status_code == 504
    assert server.app.metrics.failures_by_timeout.value == 1
    eventually(lambda: server.engine.stats()["num_running"] == 0, "nothing runs any more")
    assert server.post("/v1/completions", prompt="[[hi]]", timeout_microseconds=10**9).status_code == 200


def test_a_nan_is_400_and_harms_no_other(server: TestServer) -> None:
    before = server.app.metrics.failures_by_nan_error.value
    response = server.post("/v1/completions", prompt="[[hello ☢]]")
    assert (response.status_code, response.json()["error"]["code"]) == (400, "nan_error")
    assert server.app.metrics.failures_by_nan_error.value == before + 1
    assert server.post("/v1/completions", prompt="[[fine]]").json()["choices"][0]["text"] == "fine"


def test_a_failure_in_a_stream_is_an_error_event_and_no_done(server: TestServer) -> None:
    response = server.post("/v1/completions", prompt="[[hello ☢]]", stream=True)
    assert response.status_code == 200
    events = response.text.strip().split("\n\n")
    assert json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "nan_error"
    assert "[DONE]" not in response.text


def test_a_draining_server_finishes_what_runs_and_takes_nothing_new(make_server: MakeServer) -> None:
    server = make_server(step_s=0.02)
    with ThreadPoolExecutor() as pool:
        running = pool.submit(server.post, "/v1/completions", prompt="[[hello world hello world hello world hello world]]")
        eventually(lambda: server.engine.stats()["num_running"] == 1, "the request runs")
        server.app.is_draining = True
        refused = httpx.post(server.url + "/v1/completions", json={"prompt": "x"})
        assert refused.status_code == 503 and refused.headers["retry-after"]
        assert httpx.get(server.url + "/health/ready").status_code == httpx.get(server.url + "/health").status_code == 503
        assert httpx.get(server.url + "/health/live").status_code == 200
        assert running.result().json()["choices"][0]["finish_reason"] == "stop"


def test_what_is_cut_off_gets_an_error_as_its_last_event(make_server: MakeServer) -> None:
    server = make_server(step_s=0.01, max_context_len=100_000)
    with ThreadPoolExecutor() as pool:
        running = pool.submit(server.post, "/v1/completions", **ENDLESS, stream=True)
        eventually(lambda: server.engine.stats()["num_running"] == 1, "the request runs")
        time.sleep(0.05)
        server.loop.call_soon_threadsafe(server.app.abort_all, unavailable("the server is shutting down"))
        text = running.result().text
    assert "shutting down" in text.strip().split("\n\n")[-1] and "[DONE]" not in text


def test_64_streams_of_mixed_lengths_are_byte_identical_to_solo_runs(make_server: MakeServer) -> None:
    server = make_server()
    prompts = [f"[[{'hello 🙂 world café ' * (1 + i % 7)}{i}]]" for i in range(64)]

    def text_of(prompt: str) -> str:
        response = server.post("/v1/completions", prompt=prompt, stream=True)
        return "".join(chunk["choices"][0]["text"] for chunk in frames(response))

    solo = [text_of(prompt) for prompt in prompts[:8]]
    with ThreadPoolExecutor(64) as pool:
        together = list(pool.map(text_of, prompts))
    assert together[:8] == solo
    assert [f"[[{text}]]" for text in together] == prompts


def test_a_client_that_stops_reading_is_dropped(make_server: MakeServer) -> None:
    server = make_server(max_context_len=10**8, limits=Limits(write_stall_s=1))
    sock = raw_request(server, {**ENDLESS, "stream": True, "n": 32})
    eventually(lambda: server.engine.stats()["num_running"] == 32, "the request runs")
    eventually(lambda: server.engine.stats()["num_running"] == 0, "the stalled request is cancelled")
    sock.close()


def test_the_key_is_needed_everywhere_but_for_health(make_server: MakeServer) -> None:
    server = make_server(api_keys=ApiKeys("secret"))
    for path in ("/v1/models", "/v1/completions", "/nothing"):
        assert server.client.get(path).status_code == 401
    assert server.client.get("/v1/models", headers={"authorization": "Bearer wrong"}).status_code == 401
    assert server.client.get("/v1/models", headers={"authorization": "Bearer secret"}).status_code == 200
    assert server.client.get("/health").status_code == 200


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /health HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n", 431),
        (b"GET /health HTTP/1.1\r\na: " + b"b" * 40_000, 431),
        (b"GET /" + b"b" * 40_000, 431),
        (b"nonsense\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\n", 408),
        (b"", 408),
    ],
)
def test_heads_that_are_too_large_too_slow_or_broken_are_refused(make_server: MakeServer, head: bytes, status: int) -> None:
    server = make_server(limits=Limits(header_timeout_s=1))
    with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1]))) as sock:
        sock.sendall(head)
        sock.settimeout(10)
        top, _, body = sock.recv(1000).partition(b"\r\n\r\n")
    assert top.startswith(b"HTTP/1.1 %d" % status) and b"content-length: %d\r\n" % len(body) in top
    assert json.loads(body)["error"]["message"]
    assert server.client.get("/health").status_code == 200


def test_a_slow_body_is_408(make_server: MakeServer) -> None:
    server = make_server(limits=Limits(body_timeout_s=1))
    with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1]))) as sock:
        sock.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
        sock.settimeout(10)
        assert sock.recv(1000).startswith(b"HTTP/1.1 408")


def test_large_bodies_have_a_bound_together_and_small_ones_always_pass(make_server: MakeServer) -> None:
    server = make_server(limits=Limits(max_bodies_bytes=200_000))
    padding = {"prompt": "[[hi]]", "user": "x" * 120_000}
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 160000\r\n\r\n"
    with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1]))) as slow:
        slow.sendall(head + b" " * 150_000)
        eventually(lambda: server.post("/v1/completions", **padding).status_code == 503, "a second large body is refused")
        refused = server.post("/v1/completions", **padding)
        assert refused.headers["retry-after"] and "too large together" in refused.json()["error"]["message"]
        assert server.post("/v1/completions", prompt="[[hi]]", user="x" * 50_000).status_code == 200
    eventually(lambda: server.post("/v1/completions", **padding).status_code == 200, "there is room again")
    for _ in range(5):
        assert server.post("/v1/completions", **padding).status_code == 200, "what was answered is not counted"


def test_random_bytes_never_bring_the_server_down(server: TestServer) -> None:
    import random

    rng = random.Random(1)
    for _ in range(30):
        with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1]))) as sock:
            sock.sendall(
                b"POST /v1/completions HTTP/1.1\r\ncontent-length: 50\r\n\r\n"[: rng.randrange(60)] + rng.randbytes(rng.randrange(200))
            )
    assert server.post("/v1/completions", prompt="[[fine]]").json()["choices"][0]["text"] == "fine"
    assert threading.active_count() < 100
