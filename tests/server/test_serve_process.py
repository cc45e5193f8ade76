"""`fmo serve` as people run it: a process on a real artifact, real clients, real signals."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from friendli import SyncFriendli
from friendli_runtime.artifact import Artifact
from models.scripted import script_tag

from .served import FMO, Process, scripted_artifact, serve
from .test_completions import frames
from .test_lifetime import eventually

SENTENCE = "héllo 🙂 world, " * 3


@pytest.fixture(scope="module")
def process() -> Iterator[Process]:
    running = serve(scripted_artifact())
    yield running
    running.stop()


def say(text: str) -> Any:
    return [{"role": "user", "content": script_tag(text)}]


def test_the_openai_client_chats_and_streams(process: Process) -> None:
    with openai.OpenAI(base_url=process.url + "/v1", api_key="none", max_retries=0) as client:
        name = client.models.list().data[0].id
        answer = client.chat.completions.create(model=name, messages=say(SENTENCE), temperature=0)
        assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (SENTENCE, "stop")
        stream = client.chat.completions.create(model=name, messages=say(SENTENCE), temperature=0, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices) == SENTENCE
        completion = client.completions.create(model=name, prompt=script_tag("abc") + "<|go|>", temperature=0, logprobs=2)
        assert completion.choices[0].text == "abc"


def test_quantized_weights_token_table_and_kv_cache_serve_the_same_text() -> None:
    artifact = scripted_artifact("8bit")
    schemes = Artifact.open(artifact).manifest["model"]["quantization"]["schemes"]
    assert "none" not in schemes and {"w7a7:g128", "w8a16:g16"} <= schemes.keys()
    running = serve(artifact, "--kv-cache-dtype", "int8")
    try:
        with openai.OpenAI(base_url=running.url + "/v1", api_key="none", max_retries=0) as client:
            answer = client.chat.completions.create(model="scripted", messages=say(SENTENCE), temperature=0)
        assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (SENTENCE, "stop")
    finally:
        running.stop()


def test_the_friendli_client_chats_completes_and_tokenizes(process: Process) -> None:
    with SyncFriendli(token="none", x_friendli_team="none") as client:
        container, where = client.container, {"server_url": process.url, "retries": None}
        answer = container.chat.complete(messages=say(SENTENCE), temperature=0, **where)  # type: ignore[arg-type]
        assert answer.choices[0].message.content == SENTENCE
        tokens = container.token.tokenize(prompt=script_tag("abc") + "<|go|>", **where).tokens  # type: ignore[arg-type]
        request: Any = {"tokens": tokens, "temperature": 0}
        completion = container.completions.complete(request=request, **where).choices[0]  # type: ignore[arg-type]
        assert completion.text == "abc"
        assert container.token.detokenize(tokens=completion.tokens, **where).text == "abc"  # type: ignore[arg-type]


def test_64_concurrent_streams_of_mixed_lengths_are_byte_identical_to_solo_runs(process: Process) -> None:
    bodies = [
        {"prompt": "x" * (7 * i % 90) + script_tag(f"{i} " + "ab🙂" * (i % 9)) + "y" * (i % 5) + "<|go|>", "stream": True, "seed": i,
         "temperature": 0 if i % 2 else 50, "max_tokens": 4 + i % 40}
        for i in range(64)
    ]  # fmt: skip
    with httpx.Client(base_url=process.url, timeout=120, limits=httpx.Limits(max_connections=64)) as client:

        def answer(body: dict[str, Any]) -> tuple[str, list[int]]:
            choices = [chunk["choices"][0] for chunk in frames(client.post("/v1/completions", json=body))]
            return "".join(choice["text"] for choice in choices), [choice["token"] for choice in choices if "token" in choice]

        solo = [answer(body) for body in bodies]
        with ThreadPoolExecutor(64) as pool:
            assert list(pool.map(answer, bodies)) == solo


def test_a_seed_replays_each_of_several_samples(process: Process) -> None:
    body = {"prompt": "abc", "temperature": 50, "max_tokens": 8, "n": 3}
    choices = httpx.post(process.url + "/v1/completions", json=body).json()["choices"]
    assert len({tuple(choice["tokens"]) for choice in choices}) > 1
    for choice in choices:
        again = httpx.post(process.url + "/v1/completions", json={**body, "n": 1, "seed": choice["seed"]}).json()
        assert again["choices"][0]["tokens"] == choice["tokens"]


def test_usage_counts_the_prompt_tokens_that_were_cached_for_the_same_salt(process: Process) -> None:
    def usage(salt: str, **fields: Any) -> dict[str, Any]:
        body = {"tokens": list(range(40)), "max_tokens": 2, "cache_salt": salt, **fields}
        response = httpx.post(process.url + "/v1/completions", json=body)
        return (frames(response)[-1] if "stream" in fields else response.json())["usage"]

    stream = {"stream": True, "stream_options": {"include_usage": True}}
    cached = [usage(*given)["prompt_tokens_details"]["cached_tokens"] for given in (["a"], ["a"], ["b"], ["b"])]
    assert cached == [0, 39, 0, 39]
    assert usage("a", **stream) == {
        "prompt_tokens": 40, "completion_tokens": 2, "total_tokens": 42, "prompt_tokens_details": {"cached_tokens": 39}
    }  # fmt: skip
    page = httpx.get(process.metrics_url + "/metrics").text
    assert float(page.partition("friendli_tcache_hit_ratio_sum ")[2].partition("\n")[0]) >= 3 * 0.8
    refused = httpx.post(process.url + "/v1/completions", json={"prompt": "a", "cache_salt": "x" * 2000})
    assert refused.status_code == 422 and refused.json()["error"]["param"] == "cache_salt"


def test_a_client_that_leaves_frees_the_engine(process: Process) -> None:
    body = json.dumps({"prompt": "abc", "ignore_eos": True, "stream": True, "n": 4}).encode()
    with socket.create_connection(("127.0.0.1", int(process.url.rsplit(":", 1)[1]))) as sock:
        sock.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        assert sock.recv(100)
    eventually(lambda: "friendli_current_items 0\n" in httpx.get(process.metrics_url + "/metrics").text, "nothing runs any more")


def test_bad_requests_leave_the_server_working(process: Process) -> None:
    url = process.url + "/v1/completions"
    for status, body in ((400, b"{"), (400, b'{"prompt":"a","temperature":NaN}'), (422, b'{"prompt":"a","max_tokens":-1}'),
                         (422, b'{"tokens":[999999]}'), (400, b'{"prompt":"a","tempature":1}')):  # fmt: skip
        assert httpx.post(url, content=body).status_code == status
    assert httpx.get(process.url + "/health").status_code == 200


def test_a_port_in_use_is_a_clear_error(process: Process) -> None:
    port = process.url.rsplit(":", 1)[1]
    command = [*FMO, "serve", str(scripted_artifact()), "--web-server-port", port, "--metrics-port", "0"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert f"port {port}" in result.stderr and "in use" in result.stderr and "--web-server-port 0" in result.stderr


def test_sigterm_lets_running_requests_finish_and_exits_0() -> None:
    process = serve(scripted_artifact())
    with ThreadPoolExecutor() as pool:
        body = {"prompt": "abc", "ignore_eos": True, "max_tokens": 300, "temperature": 0}
        running = pool.submit(httpx.post, process.url + "/v1/completions", json=body, timeout=120)
        while "friendli_current_requests 1\n" not in httpx.get(process.metrics_url + "/metrics").text and not running.done():
            time.sleep(0.001)
        process.popen.send_signal(signal.SIGTERM)
        assert running.result().json()["usage"]["completion_tokens"] == 300
    assert process.popen.wait(timeout=60) == 0
    assert process.lines[-1] == "stopped"


def test_requests_past_the_drain_timeout_are_cut_off_and_the_exit_code_says_so() -> None:
    process = serve(scripted_artifact(), "--drain-timeout", "0")
    with httpx.stream(
        "POST", process.url + "/v1/completions", json={"prompt": "a", "ignore_eos": True, "stream": True, "n": 8}
    ) as response:
        lines = response.iter_lines()
        next(lines)
        process.popen.send_signal(signal.SIGINT)
        rest = "".join(lines)
    assert process.popen.wait(timeout=60) == 4
    assert "shutting down" in rest and "[DONE]" not in rest


def half_sent(process: Process, path: str, body: bytes) -> socket.socket:
    """A request of which the last byte of the body is missing."""
    sock = socket.create_connection(("127.0.0.1", int(process.url.rsplit(":", 1)[1])), timeout=60)
    sock.sendall(b"POST %b HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % (path.encode(), len(body)))
    sock.sendall(body[:-1])
    return sock


def is_reading(process: Process, num_requests: int) -> bool:
    """Whether the server has seen that many requests, the ones without an answer among them."""
    return any(f"stopping: {num_requests} requests" in line for line in process.lines)


REQUESTS = {  # path → (body, status of its answer): of each kind that runs for a while
    "/v1/completions": (b'{"prompt": "a", "max_tokens": 1}', 200),
    "/v1/embeddings": (b'{"input": "a"}', 400),
    "/v1/tokenize": (b'{"prompt": "a"}', 200),
    "/v1/adapters": (b'{"name": "a", "folder": "none"}', 404),
}


def test_requests_of_every_kind_are_finished_before_the_server_stops(tmp_path: Path) -> None:
    process = serve(scripted_artifact(), "--adapter-dir", str(tmp_path))
    socks = {path: half_sent(process, path, body) for path, (body, _) in REQUESTS.items()}
    assert httpx.get(process.url + "/health").status_code == 200, "answered after the others were read"
    process.popen.send_signal(signal.SIGTERM)
    eventually(lambda: is_reading(process, len(REQUESTS)), "the server knows of all of them")
    assert httpx.post(process.url + "/v1/adapters", json={"name": "a", "folder": "none"}).status_code == 503
    for path, (body, status) in REQUESTS.items():
        with socks[path] as sock:
            sock.sendall(body[-1:])
            assert sock.recv(100).startswith(b"HTTP/1.1 %d " % status), path
    assert process.popen.wait(timeout=60) == 0


def test_requests_of_every_kind_that_are_cut_off_are_told(tmp_path: Path) -> None:
    process = serve(scripted_artifact(), "--adapter-dir", str(tmp_path), "--drain-timeout", "0")
    socks = [half_sent(process, path, body) for path, (body, _) in REQUESTS.items()]
    assert httpx.get(process.url + "/health").status_code == 200, "answered after the others were read"
    process.popen.send_signal(signal.SIGTERM)
    for sock in socks:
        with sock:
            assert sock.recv(100).startswith(b"HTTP/1.1 503 ")
    assert process.popen.wait(timeout=60) == 4


def test_a_second_signal_stops_at_once() -> None:
    process = serve(scripted_artifact(), "--drain-timeout", "600")
    with httpx.stream("POST", process.url + "/v1/completions", json={"prompt": "a", "ignore_eos": True, "stream": True}) as response:
        lines = response.iter_lines()
        next(lines)
        process.popen.send_signal(signal.SIGTERM)
        eventually(lambda: any(line.startswith("stopping") for line in process.lines), "the server says that it stops")
        process.popen.send_signal(signal.SIGTERM)
        assert process.popen.wait(timeout=60) == 4


def test_a_damaged_artifact_is_refused_by_file_name(tmp_path: Path) -> None:
    folder = shutil.copytree(scripted_artifact(), tmp_path / "artifact")
    weights = next(folder.glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-100] ^= 1
    weights.write_bytes(data)
    command = [*FMO, "serve", str(folder), "--web-server-port", "0", "--metrics-port", "0"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1 and weights.name in result.stderr and "Traceback" not in result.stderr


def test_serving_loads_no_compiler_package() -> None:
    program = (
        "import sys; sys.argv = ['fmo', 'serve', '--help']\n"
        "from friendli_compile.cli import run_cli\n"
        "run_cli(['serve', '--help'])\n"
        "import friendli_runtime.server.serve, friendli_runtime.server.protocol, friendli_runtime.llm, friendli_runtime.executor\n"
        "heavy = {'torch', 'transformers', 'triton', 'safetensors', 'onnx', 'friendli_compile.compile'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL, cwd=Path(__file__).parent)


def test_a_running_server_has_loaded_no_compiler_package() -> None:
    program = (
        "import os, signal, sys, threading\n"
        "from pathlib import Path\n"
        "from friendli_runtime.server.serve import ServeOptions, serve\n"
        "seen = []\n"
        "def announce(line):\n"
        "    seen.append(line)\n"
        "    if line.startswith('metrics'): os.kill(os.getpid(), signal.SIGTERM)\n"
        "code = serve(ServeOptions(artifact=Path(sys.argv[1]), port=0, metrics_port=0), announce)\n"
        "heavy = {name.split('.')[0] for name in sys.modules} & {'torch', 'transformers', 'triton', 'safetensors', 'friendli_compile'}\n"
        "assert not heavy, heavy\n"
        "sys.exit(code)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(scripted_artifact())], check=True)


def test_importing_the_runtime_starts_and_loads_nothing() -> None:
    program = (
        "import sys, threading, friendli_runtime\n"
        "assert threading.active_count() == 1\n"
        "heavy = {'numpy', 'tokenizers', 'jinja2', 'friendli_runtime._core', 'friendli_runtime.llm'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert friendli_runtime.SamplingParams and friendli_runtime.__version__\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
