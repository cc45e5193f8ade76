"""The scripted model as an artifact, and `fmo serve` on it in a process of its own."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

FMO = [sys.executable, "-c", "from friendli_compile.cli import main; main()"]
_KEPT: list[TemporaryDirectory[str]] = []


@cache
def scripted_artifact(quantize: str | None = None) -> Path:
    """Compiled once per test run, as it is or quantized; removed at its end."""
    from models.scripted import build

    from friendli_compile.compile import CompileOptions, compile_model

    folder = TemporaryDirectory(prefix="fmo-test-")
    _KEPT.append(folder)
    checkpoint = build(Path(folder.name) / "scripted")
    options = CompileOptions(model=str(checkpoint), output_dir=Path(folder.name) / "artifact", quantize=quantize, quality=None)
    return compile_model(options).artifact


@dataclass
class Process:
    """A running `fmo serve`; `lines` collects what it says on stderr."""

    popen: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    url: str = ""
    metrics_url: str = ""

    def stop(self) -> int:
        if self.popen.poll() is None:
            self.popen.terminate()
        return self.popen.wait(timeout=60)


def serve(artifact: Path, *options: str, python: str = sys.executable) -> Process:
    """Starts `fmo serve` on free ports, with the packages of the interpreter `python`, and waits until it says where."""
    command = [python, *FMO[1:], "serve", str(artifact), "--web-server-port", "0", "--metrics-port", "0", "--num-threads", "1", *options]
    popen = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert popen.stderr is not None
    process = Process(popen)
    threading.Thread(target=_collect, args=(popen.stderr, process.lines), daemon=True).start()
    deadline = time.monotonic() + 60
    while not process.metrics_url:
        assert popen.poll() is None and time.monotonic() < deadline, f"the server did not start: {process.lines}"
        text = "\n".join(process.lines)
        if found := re.search(r"on (http://\S+)/v1[\s\S]*metrics on (http://\S+)/metrics", text):
            process.url, process.metrics_url = found[1], found[2]
        time.sleep(0.01)
    return process


def _collect(stream: IO[str], lines: list[str]) -> None:
    for line in stream:
        lines.append(line.rstrip())
