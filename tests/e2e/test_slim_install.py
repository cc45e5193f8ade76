"""A machine that only serves: a fresh environment with nothing but the wheel and its `serve` extra serves an artifact."""

import json
import subprocess
import sys
import urllib.request
import venv
from pathlib import Path

import pytest
from server.served import FMO, Process, scripted_artifact, serve

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "triton", "safetensors", "onnx")


@pytest.fixture(scope="module")
def slim_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The interpreter of an environment with `fmo[serve]`, installed from a wheel of this checkout. Needs the package index."""
    folder = tmp_path_factory.mktemp("slim")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = [*pip, "wheel", str(ROOT), "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    subprocess.run(build, check=True, env=_with_build_tools())
    wheel = next(folder.glob("fmo-*.whl"))
    venv.create(folder / "env", with_pip=True)
    python = str(folder / "env" / "bin" / "python")
    subprocess.run([python, "-m", "pip", "--disable-pip-version-check", "--quiet", "install", f"{wheel}[serve]"], check=True)
    return python


def _with_build_tools() -> dict[str, str]:
    """cmake and ninja stand beside the interpreter of the tests."""
    import os

    return os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def test_the_serve_extra_brings_no_compiler_package(slim_python: str) -> None:
    listed = subprocess.run([slim_python, "-m", "pip", "list", "--format=json"], check=True, capture_output=True, text=True).stdout
    installed = {package["name"].lower() for package in json.loads(listed)}
    assert "fmo" in installed
    assert not installed & set(HEAVY)


def test_an_artifact_is_served_from_an_environment_with_the_serve_extra_only(slim_python: str) -> None:
    process: Process = serve(scripted_artifact(), python=slim_python)
    try:
        body = json.dumps({"prompt": "<script>hello</script>", "max_tokens": 8, "temperature": 0}).encode()
        request = urllib.request.Request(f"{process.url}/v1/completions", body, {"Content-Type": "application/json"})
        answer = json.load(urllib.request.urlopen(request, timeout=60))
        assert answer["usage"]["completion_tokens"] >= 1
    finally:
        assert process.stop() == 0


def test_compiling_there_says_which_extra_is_missing(slim_python: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    command = [slim_python, *FMO[1:], "compile", str(tmp_path), "--output-dir", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert "fmo[compile]" in done.stderr
    assert "Traceback" not in done.stderr
