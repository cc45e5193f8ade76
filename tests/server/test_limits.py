"""The limits of `fmo serve --limit`, and the options that need no server."""

from pathlib import Path

import pytest
from friendli_runtime.errors import ConfigError
from friendli_runtime.server.limits import Limits, limits_from

from friendli_compile.cli import run_cli
from friendli_compile.cli.engine_options import Size


def test_settings_replace_defaults() -> None:
    limits = limits_from(["max_n=3", "max_body_bytes=1000"])
    assert (limits.max_n, limits.max_body_bytes, limits.max_stop) == (3, 1000, Limits().max_stop)


@pytest.mark.parametrize("setting", ["max_m=3", "max_n", "max_n=", "max_n=-1", "max_n=0", "max_n=x", "max_n=1.5", "max_n=" + "9" * 5000])
def test_a_wrong_setting_is_refused(setting: str) -> None:
    with pytest.raises(ConfigError):
        limits_from([setting])


def test_a_wrong_name_gets_the_nearest_and_all_names() -> None:
    with pytest.raises(ConfigError) as caught:
        limits_from(["max_m=3"])
    assert "did you mean 'max_n'?" in caught.value.hint and "write_stall_s" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "num_bytes"), [("512MiB", 2**29), ("2GB", 2 * 10**9), ("1048576", 2**20), ("1.5k", 1500), ("1 GiB", 2**30)]
)
def test_sizes_are_read_as_people_write_them(text: str, num_bytes: int) -> None:
    assert Size().convert(text, None, None) == num_bytes


def test_a_wrong_size_port_or_key_is_an_error_before_anything_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "key").write_text("\n")
    assert run_cli(["serve", str(tmp_path), "--kv-cache-memory", "lots"]) == 2
    assert run_cli(["serve", str(tmp_path), "--web-server-port", "70000"]) == 2
    assert run_cli(["serve", str(tmp_path), "--api-key-file", str(tmp_path / "key")]) == 1
    assert run_cli(["serve", str(tmp_path), "--host", "no.such.host.invalid", "--web-server-port", "0"]) == 1
    assert run_cli(["serve", str(tmp_path), "--web-server-port", "0", "--metrics-port", "0"]) == 1
    errors = capsys.readouterr().err
    for words in ("'lots' is not a size", "70000", "the API key is empty", "--host", "holds no manifest.json"):
        assert words in errors
