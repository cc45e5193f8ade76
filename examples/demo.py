"""Serves an artifact, sends one real completion over HTTP, prints it with its speed, and says what to try next.

    python examples/demo.py build/stdlib-coder

Uses the standard library only, as a client without our packages would. The server is a child process on a free port that ends with it.
"""

import json
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

PROMPT = "def read_lines(path):\n"
SAMPLING = {"temperature": 0.6, "top_p": 0.95, "seed": 0}  # a model this small repeats itself when it is greedy
START_TIMEOUT_S = 60
FMO = str(Path(sys.executable).with_name("fmo"))

NEXT_STEPS = """
Try next:
  {fmo} run {artifact} 'class Stack:' --temperature 0.6 --max-tokens 96   one completion in the terminal
  {fmo} chat {artifact} --temperature 0.6               talk to it
  {fmo} serve {artifact}                            the OpenAI-compatible server on port 8000
  {fmo} explain {artifact}                          what the artifact holds
  {fmo} compile MODEL --output-dir DIR              your own Hugging Face model"""


def start_server(artifact: str) -> tuple[subprocess.Popen[str], str]:
    """Starts `fmo serve` on a free port; returns the process and its base URL, read from the line it prints when it is ready."""
    command = [FMO, "serve", artifact, "--web-server-port", "0", "--metrics-port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + START_TIMEOUT_S
    seen = []
    assert server.stdout is not None
    while time.monotonic() < deadline and (line := server.stdout.readline()):
        seen.append(line)
        if found := re.search(r"http://[\w.\[\]:]+:\d+", line):
            return server, found.group()
    server.kill()
    sys.exit("error: the server did not start; it said:\n" + "".join(seen))


def stream_completion(base_url: str) -> tuple[str, int, float]:
    """Prints the completion as it arrives; returns its text, its number of tokens and the seconds from first to last token."""
    body = {"prompt": PROMPT, "max_tokens": 96, "stream": True, "stream_options": {"include_usage": True}} | SAMPLING
    request = urllib.request.Request(f"{base_url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    text, num_tokens, first_s, last_s = "", 0, None, 0.0
    with urllib.request.urlopen(request, timeout=60) as response:
        for raw in response:
            line = raw.decode().strip()
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            event = json.loads(line.removeprefix("data: "))
            if usage := event.get("usage"):
                num_tokens = usage["completion_tokens"]
            for choice in event["choices"]:
                last_s = time.monotonic()
                first_s = first_s or last_s
                print(choice["text"], end="", flush=True)
                text += choice["text"]
    return text, num_tokens, last_s - (first_s or last_s)


def main() -> None:
    artifact = sys.argv[1] if len(sys.argv) > 1 else "build/stdlib-coder"
    started_s = time.monotonic()
    server, base_url = start_server(artifact)
    try:
        print(f"serving {artifact} at {base_url} after {time.monotonic() - started_s:.1f} s\n\n{PROMPT}", end="")
        text, num_tokens, seconds = stream_completion(base_url)
        if not text.strip():
            sys.exit("error: the completion is empty")
        print(f"\n\n{num_tokens} tokens, {(num_tokens - 1) / max(seconds, 1e-9):.0f} tokens/s")
        print(NEXT_STEPS.format(fmo=Path(FMO).relative_to(Path.cwd()) if Path(FMO).is_relative_to(Path.cwd()) else FMO, artifact=artifact))
    finally:
        server.terminate()
        server.wait(timeout=30)


if __name__ == "__main__":
    main()
