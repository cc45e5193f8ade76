"""The output folder: complete under its final name or not there at all."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from friendli_compile.artifact.folder import OutputFolder
from friendli_compile.errors import OutputError

from .tiny import write_tiny_artifact


def test_nothing_appears_under_the_final_name_before_commit(tmp_path: Path) -> None:
    with OutputFolder(tmp_path / "out", replace=False) as folder:
        (folder.path / "file").write_text("x")
        assert not (tmp_path / "out").exists()
        folder.commit()
    assert (tmp_path / "out" / "file").read_text() == "x"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_error_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), OutputFolder(tmp_path / "out", replace=False) as folder:
        (folder.path / "file").write_text("x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_files_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for replace, hint in ((False, "--force"), (True, "only artifacts")):
        with pytest.raises(OutputError) as caught, OutputFolder(tmp_path, replace=replace):
            pass
        assert hint in str(caught.value) and (tmp_path / "notes.txt").read_text() == "mine"


def test_force_replaces_an_artifact(tmp_path: Path) -> None:
    target = write_tiny_artifact(tmp_path / "out")
    (target / "extra").write_text("of the old one")
    write_tiny_artifact(target, replace=True)
    assert not (target / "extra").exists() and (target / "manifest.json").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert (write_tiny_artifact(tmp_path / "out") / "manifest.json").is_file()


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(OutputError, match="is a file"), OutputFolder(tmp_path / "out", replace=True):
        pass


def test_what_a_killed_process_left_behind_is_removed(tmp_path: Path) -> None:
    code = "import os, signal, sys, pathlib\nfrom friendli_compile.artifact.folder import OutputFolder\n"
    code += "with OutputFolder(pathlib.Path(sys.argv[1]), replace=False): os.kill(os.getpid(), signal.SIGKILL)"
    result = subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], check=False)
    assert result.returncode == -signal.SIGKILL and len(list(tmp_path.iterdir())) == 1
    write_tiny_artifact(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_disk_that_is_too_small_is_refused_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"needs 1000000\.00 GB, the disk has"), OutputFolder(tmp_path / "out", replace=False) as folder:
        folder.require_space(10**15)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_a_clear_error_and_leaves_nothing(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OutputError, match="cannot write the artifact") as caught:
            write_tiny_artifact(tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "another disk" in str(caught.value) and list(tmp_path.iterdir()) == []
