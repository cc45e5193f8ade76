"""What makes the front end cheap changes nothing that clients see."""

import json
import subprocess
import sys
from math import isfinite
from pathlib import Path

import httpx

from .conftest import TestServer
from .test_completions import frames


def test_every_chunk_of_a_stream_has_the_same_fields(server: TestServer) -> None:
    text = 'quotes " and \\ and \n and 🙂 and \u2028 stay'
    response = server.post("/v1/chat/completions", messages=[{"role": "user", "content": f"[[{text}]]"}], stream=True, n=3)
    chunks = frames(response)
    for choice_idx in range(3):
        own = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == choice_idx]
        assert "".join(choice["delta"].get("content", "") for choice in own) == text
        assert all(set(choice) == {"index", "delta", "finish_reason", "logprobs"} for choice in own)
        assert own[0]["delta"]["role"] == "assistant" and own[-1]["finish_reason"] == "stop"
    assert len({json.dumps({**chunk, "choices": []}) for chunk in chunks}) == 1


def test_answers_on_one_connection_stay_apart(server: TestServer) -> None:
    with httpx.Client(base_url=server.url, limits=httpx.Limits(max_connections=1)) as client:
        for word in ("a", "bb", "ccc"):
            answer = client.post("/v1/completions", json={"prompt": f"[[{word}]]"})
            assert answer.json()["choices"][0]["text"] == word
            assert client.get("/nothing").status_code == 404
            streamed = client.post("/v1/completions", json={"prompt": f"[[{word}]]", "stream": True})
            assert "".join(frame["choices"][0]["text"] for frame in frames(streamed)) == word


def test_the_benchmark_of_the_front_end_gets_its_answers() -> None:
    """Its clients check them. A token's cost is a difference, which so few tokens leave to the machine's noise."""
    script = Path(__file__).parents[2] / "bench" / "serve" / "front_end.py"
    command = [sys.executable, script, "--requests", "4", "--streams", "2", "--tokens", "4", "--repeats", "1", "--dry-run"]
    line = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout)
    assert isfinite(line["token_us"])
    assert 0 < line["calibration_call_us"] < line["http_us"] and min(line["request_us"], line["loaded_request_us"]) > 0
