"""Opening an artifact: whole, for this program and for this machine, or a clear error that names the file."""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from friendli_runtime.artifact import Artifact, hash_file, tensors_of
from friendli_runtime.errors import ArtifactError, CorruptArtifact, IncompatibleArtifact

from .tiny import write_tiny_artifact


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return write_tiny_artifact(tmp_path / "tiny")


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def flip_byte(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_a_good_artifact_opens_and_says_what_it_is(artifact: Path) -> None:
    opened = Artifact.open(artifact)
    opened.verify()
    opened.start_verification().wait()
    assert (opened.name, opened.vocab_size, opened.max_context_len, opened.kv_dtype) == ("tiny", 40, 64, "bf16")
    assert (opened.bos_token_id, opened.eos_token_ids, opened.pad_token_id) == (1, (2, 3), None)
    assert set(opened.weights) == set(opened.plan["weights"]) and opened.tokenizer_folder == artifact / "tokenizer"
    assert opened.sha256 == hash_file(artifact / "manifest.json")


@pytest.mark.parametrize("position", [-1, -1000])
def test_a_flipped_byte_in_the_weights_is_found(artifact: Path, position: int) -> None:
    flip_byte(artifact / "weights-00001.safetensors", position)
    opened = Artifact.open(artifact)
    for check in (opened.verify, opened.start_verification().wait):
        with pytest.raises(CorruptArtifact, match=r"weights-00001.safetensors.*damaged"):
            check()


def test_a_flipped_byte_in_the_plan_is_found_at_once(artifact: Path) -> None:
    flip_byte(artifact / "plan.json", 100)
    with pytest.raises(CorruptArtifact, match=r"plan.json.*damaged"):
        Artifact.open(artifact)


@pytest.mark.parametrize("name", ["plan.json", "weights-00001.safetensors", "tokenizer/tokenizer.json", "report.json"])
def test_a_missing_file_is_named(artifact: Path, name: str) -> None:
    (artifact / name).unlink()
    with pytest.raises(CorruptArtifact, match=f"'{name}' is missing"):
        Artifact.open(artifact)


def test_a_truncated_file_is_named_with_both_sizes(artifact: Path) -> None:
    path = artifact / "weights-00001.safetensors"
    num_bytes = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(CorruptArtifact, match=f"has {num_bytes - 7} bytes, expected {num_bytes}"):
        Artifact.open(artifact)


def test_a_newer_schema_is_refused_with_the_advice_to_upgrade(artifact: Path) -> None:
    edit_manifest(artifact, lambda manifest: manifest.update(schema_version=2))
    with pytest.raises(IncompatibleArtifact, match=r"schema_version 2; this program reads up to 1") as caught:
        Artifact.open(artifact)
    assert "upgrade fmo" in str(caught.value)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"device": "sm_90"}, "for the device 'sm_90'"),
        ({"arch": "arm64"}, "for arm64 processors"),
        ({"isa_min": "amx"}, "instruction set 'amx'"),
    ],
)
def test_an_artifact_for_another_target_is_refused(artifact: Path, target: dict[str, str], message: str) -> None:
    edit_manifest(artifact, lambda manifest: manifest["target"].update(target))
    with pytest.raises(IncompatibleArtifact, match=message):
        Artifact.open(artifact)


def test_folders_that_are_no_artifacts_say_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is not a folder"):
        Artifact.open(tmp_path / "nothing")
    with pytest.raises(ArtifactError, match=r"holds no manifest.json"):
        Artifact.open(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ArtifactError, match="compile it first"):
        Artifact.open(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "nul", "[" * 5000, '{"schema_version": true}', '{"schema_version": 1}', '{"schema_version": 1, "files": 3}']
)
def test_a_malformed_manifest_is_a_clear_error(artifact: Path, text: str) -> None:
    (artifact / "manifest.json").write_text(text)
    with pytest.raises(CorruptArtifact):
        Artifact.open(artifact)


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
def test_a_file_name_that_no_file_can_have_is_missing(artifact: Path, name: str) -> None:
    edit_manifest(artifact, lambda manifest: manifest["files"].update({name: {"sha256": "0" * 64, "bytes": 1}}))
    with pytest.raises(CorruptArtifact, match="is missing"):
        Artifact.open(artifact)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", ""])
def test_file_names_cannot_leave_the_folder(artifact: Path, name: str) -> None:
    edit_manifest(artifact, lambda manifest: manifest["files"].update({name: {"sha256": "0" * 64, "bytes": 1}}))
    with pytest.raises(CorruptArtifact, match="malformed"):
        Artifact.open(artifact)


def test_a_weight_that_no_file_holds_is_named(artifact: Path) -> None:
    plan_path = artifact / "plan.json"
    plan = json.loads(plan_path.read_text())
    plan["weights"]["ghost"] = plan["weights"]["norm.weight"]
    plan_path.write_text(json.dumps(plan))
    edit_manifest(artifact, lambda m: m["files"].update({"plan.json": {"sha256": hash_file(plan_path), "bytes": plan_path.stat().st_size}}))
    with pytest.raises(CorruptArtifact, match="'ghost'"):
        Artifact.open(artifact)


@pytest.mark.parametrize(("dtype", "missing"), [("i4", "norm.weight.scales"), ("u4", "norm.weight.zeros")])
def test_a_quantized_weight_without_its_scales_or_zero_points_is_named(artifact: Path, dtype: str, missing: str) -> None:
    plan_path = artifact / "plan.json"
    plan = json.loads(plan_path.read_text())
    plan["weights"]["norm.weight"] |= {"dtype": dtype, "layout": "block8", "group": 32, "scale_dtype": "f16"}
    assert tensors_of("norm.weight", plan["weights"]["norm.weight"])[-1] == missing
    plan_path.write_text(json.dumps(plan))
    edit_manifest(artifact, lambda m: m["files"].update({"plan.json": {"sha256": hash_file(plan_path), "bytes": plan_path.stat().st_size}}))
    with pytest.raises(CorruptArtifact, match=r"'norm\.weight\.scales'"):
        Artifact.open(artifact)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [4], "data_offsets": [0, 999999999]},
        {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]},
        {"dtype": "F32", "shape": [3], "data_offsets": [0, 16]},
        {"dtype": "F99", "shape": [4], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": None, "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [4]},
        "text",
    ],
)
def test_a_malformed_weight_header_is_never_believed(tmp_path: Path, entry: object) -> None:
    from friendli_runtime.weight_files import locate_weights

    path = tmp_path / "w.safetensors"
    text = json.dumps({"a": entry}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(16))
    with pytest.raises(CorruptArtifact, match=r"'a'|data"):
        locate_weights([path])


@pytest.mark.parametrize("data", [b"", b"\x01", b"\xff" * 16, (10).to_bytes(8, "little") + b"{}", (2).to_bytes(8, "little") + b"[]"])
def test_a_malformed_weight_file_is_a_clear_error(tmp_path: Path, data: bytes) -> None:
    from friendli_runtime.weight_files import locate_weights

    path = tmp_path / "w.safetensors"
    path.write_bytes(data)
    with pytest.raises(CorruptArtifact):
        locate_weights([path])


def test_opening_needs_only_the_standard_library(artifact: Path) -> None:
    code = "import sys; from friendli_runtime.artifact import Artifact; Artifact.open(sys.argv[1]).verify()\n"
    code += "print(*sorted({'torch','transformers','numpy','safetensors','friendli_compile'} & {m.split('.')[0] for m in sys.modules}))"
    result = subprocess.run([sys.executable, "-c", code, str(artifact)], check=True, capture_output=True, text=True)
    assert result.stdout.split() in ([], ["numpy"])


@pytest.mark.parametrize("seed", range(150))
def test_a_mutated_manifest_opens_or_is_refused_as_an_artifact_error(artifact: Path, seed: int) -> None:
    rng = random.Random(seed)
    path = artifact / "manifest.json"
    manifest = json.loads(path.read_text())
    holder, key = rng.choice(list(places_in(manifest)))
    holder[key] = rng.choice([None, True, -1, 10**30, 1.5, "", "x" * 300, "\0", "../x", [], {}, [None], {"a": 1}])
    path.write_text(json.dumps(manifest))
    with contextlib.suppress(ArtifactError):
        opened = Artifact.open(artifact)
        opened.verify()
        assert isinstance(opened.name, str) and isinstance(opened.eos_token_ids, tuple)


def places_in(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) of a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else []
    for key, inner in list(items):
        yield value, key
        yield from places_in(inner)
