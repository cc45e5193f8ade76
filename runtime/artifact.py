"""Opens an artifact: checks that it is whole, for this program and for this machine, and says where everything is.

    artifact = Artifact.open("build/stdlib-coder")      # manifest, plan, sizes, headers; milliseconds
    checking = artifact.start_verification()            # hashes all files in a thread while the executor starts
    …
    checking.wait()                                     # raises CorruptArtifact naming the file

It reads nothing outside of the folder, needs only the standard library and executes nothing from the artifact.
The format is docs/artifact-format.md.
"""

from __future__ import annotations

import hashlib
import json
import platform
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from .errors import ArtifactError, CorruptArtifact, IncompatibleArtifact
from .weight_files import WeightLocation, locate_weights

SCHEMA_VERSION = 1  # the newest that this program reads
MANIFEST = "manifest.json"
PLAN = "plan.json"
TOKENIZER_FOLDER = "tokenizer"
ARCH_OF_MACHINE = {"x86_64": "x86-64", "AMD64": "x86-64", "aarch64": "arm64", "arm64": "arm64"}
ISA_FLAGS = {
    "scalar": frozenset[str](),
    "avx2": frozenset({"avx2", "fma", "f16c"}),
    "avx512": frozenset({"avx512f", "avx512bw", "avx512vl"}),
}
POOLINGS = ("last", "mean", "first")
_HASH_CHUNK_BYTES = 1 << 22
_RECOMPILE = "copy or compile the artifact again"


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 < value < 1 << 31


def _is_token_id(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 31


def _is_embedding(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and _is_count(value.get("size"))
        and value.get("pooling") in POOLINGS
        and isinstance(value.get("normalized"), bool)
    )


MODEL_FACTS: dict[str, Callable[[Any], bool]] = {
    "name": lambda value: isinstance(value, str) and value != "",
    "bos_token_id": lambda value: value is None or _is_token_id(value),
    "pad_token_id": lambda value: value is None or _is_token_id(value),
    "embedding": lambda value: value is None or _is_embedding(value),
    "eos_token_ids": lambda value: isinstance(value, list) and all(map(_is_token_id, value)),
}
PLAN_FACTS: dict[str, Callable[[Any], bool]] = {
    "vocab_size": _is_count,
    "max_context_len": _is_count,
    "kv_dtype": lambda value: value in ("f32", "bf16", "i8"),
    "kv_layers": lambda value: isinstance(value, list),
    "calls": lambda value: isinstance(value, list),
    "weights": lambda value: isinstance(value, dict),
}


@dataclass(frozen=True, slots=True)
class EmbeddingFacts:
    """`pooling`: which hidden states of a text are taken, one of POOLINGS. `is_normalized`: embeddings have the length 1."""

    size: int
    pooling: str
    is_normalized: bool


@dataclass(slots=True)
class Artifact:
    """An opened artifact. `manifest` and `plan` are the parsed JSON files."""

    folder: Path
    manifest: dict[str, Any]
    plan: dict[str, Any]
    weights: dict[str, WeightLocation]
    _model: Mapping[str, Any] = field(repr=False)

    @staticmethod
    def open(path: str | Path) -> Artifact:
        """Raises ArtifactError, CorruptArtifact or IncompatibleArtifact. Hashes only plan.json; see `start_verification` for the rest."""
        folder = Path(path)
        manifest = _read_manifest(folder)
        _require_schema(manifest, folder / MANIFEST)
        _require_target(manifest, folder / MANIFEST)
        _require_files(folder, manifest["files"])
        _require_hash(folder, PLAN, manifest["files"])
        plan = _read_json(folder / PLAN)
        _require_schema(plan, folder / PLAN)
        _require_facts(manifest["model"], MODEL_FACTS, folder / MANIFEST)
        _require_facts(plan, PLAN_FACTS, folder / PLAN)
        shards = sorted(name for name in manifest["files"] if name.endswith(".safetensors"))
        weights = locate_weights(folder / name for name in shards)
        for tensor in (tensor for name, weight in plan["weights"].items() for tensor in tensors_of(name, weight)):
            if tensor not in weights:
                raise CorruptArtifact(f"weight '{tensor}' of the plan is in none of the files {shards}", where=str(folder), hint=_RECOMPILE)
        return Artifact(folder, manifest, plan, weights, manifest["model"])

    def start_verification(self) -> Verification:
        """Hashes every file in a thread of its own (hashing releases the interpreter lock)."""
        return Verification(self.folder, self.manifest["files"])

    def verify(self) -> None:
        """Hashes every file now. Raises CorruptArtifact naming the first that differs."""
        for name in sorted(self.manifest["files"]):
            _require_hash(self.folder, name, self.manifest["files"])

    @property
    def name(self) -> str:
        """What the model is called, e.g. in /v1/models."""
        return str(self._model["name"])

    @property
    def vocab_size(self) -> int:
        return int(self.plan["vocab_size"])

    @property
    def max_context_len(self) -> int:
        """Tokens of prompt and answer together."""
        return int(self.plan["max_context_len"])

    @property
    def embedding(self) -> EmbeddingFacts | None:
        """How hidden states become an embedding; None: the model writes text."""
        facts = self._model.get("embedding")
        return None if facts is None else EmbeddingFacts(facts["size"], facts["pooling"], facts["normalized"])

    @property
    def kv_dtype(self) -> str:
        """The dtype of the KV cache unless the operator chooses another: f32 or bf16."""
        return str(self.plan["kv_dtype"])

    @property
    def bos_token_id(self) -> int | None:
        return self._model.get("bos_token_id")

    @property
    def pad_token_id(self) -> int | None:
        return self._model.get("pad_token_id")

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer; may be empty."""
        return tuple(self._model.get("eos_token_ids", ()))

    @property
    def tokenizer_folder(self) -> Path | None:
        """The folder with the checkpoint's tokenizer files; None when the checkpoint had no tokenizer.json."""
        folder = self.folder / TOKENIZER_FOLDER
        return folder if (folder / "tokenizer.json").is_file() else None

    @property
    def weight_bytes(self) -> int:
        return sum(location.num_bytes for location in self.weights.values())

    @property
    def sha256(self) -> str:
        """Identity of the whole artifact: the hash of its manifest, which holds the hashes of all other files."""
        return hashlib.sha256((self.folder / MANIFEST).read_bytes()).hexdigest()


class Verification:
    """A running check of all hashes. The server says that it is ready only after `wait`."""

    def __init__(self, folder: Path, files: Mapping[str, Any]) -> None:
        self._folder = folder
        self._files = files
        self._error: CorruptArtifact | None = None
        self._thread = threading.Thread(target=self._run, name="artifact-verify", daemon=True)
        self._thread.start()

    @property
    def is_done(self) -> bool:
        return not self._thread.is_alive()

    def wait(self) -> None:
        """Blocks until all files are hashed. Raises CorruptArtifact naming the first that differs."""
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            for name in sorted(self._files):
                _require_hash(self._folder, name, self._files)
        except CorruptArtifact as error:
            self._error = error


def tensors_of(name: str, weight: Any) -> tuple[str, ...]:
    """The stored tensors of an entry of the plan's weight table: a quantized weight (layout block8) has scales, u4 zero points too."""
    if not isinstance(weight, dict) or weight.get("layout") != "block8":
        return (name,)
    return (name, f"{name}.scales", f"{name}.zeros") if weight.get("dtype") == "u4" else (name, f"{name}.scales")


def supported_isas() -> tuple[str, ...]:
    """The instruction sets of ISA_FLAGS that this machine has, weakest first."""
    flags = _cpu_flags()
    return tuple(isa for isa, needed in ISA_FLAGS.items() if needed <= flags)


def hash_file(path: Path) -> str:
    """SHA-256 of a file, in pieces, as hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _read_manifest(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise ArtifactError(f"'{folder}' is not a folder", hint="give the folder that `fmo compile --output-dir` wrote")
    if not (folder / MANIFEST).is_file():
        hint = "give the folder that `fmo compile --output-dir` wrote"
        if (folder / "config.json").is_file():
            hint = f"this is a checkpoint; compile it first: fmo compile {folder} --output-dir ARTIFACT"
        raise ArtifactError(f"'{folder}' holds no {MANIFEST}, so it is not an artifact", hint=hint)
    manifest = _read_json(folder / MANIFEST)
    parts = {"target": dict, "model": dict, "files": dict}
    for name, kind in parts.items():
        if "schema_version" in manifest and not isinstance(manifest.get(name), kind):
            raise CorruptArtifact(f"'{name}' is missing", where=str(folder / MANIFEST), hint=_RECOMPILE)
    return manifest


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise CorruptArtifact(f"cannot be read: {error.strerror}", where=str(path), hint=_RECOMPILE) from None
    except (ValueError, RecursionError) as error:
        raise CorruptArtifact(f"is not JSON: {error}", where=str(path), hint=_RECOMPILE) from None
    if not isinstance(value, dict):
        raise CorruptArtifact("is not a JSON object", where=str(path), hint=_RECOMPILE)
    return value


def _require_schema(document: Mapping[str, Any], path: Path) -> None:
    version = document.get("schema_version")
    if type(version) is not int or version < 1:
        raise CorruptArtifact(f"schema_version is {version!r}, expected a positive number", where=str(path), hint=_RECOMPILE)
    if version > SCHEMA_VERSION:
        what = f"the artifact has schema_version {version}; this program reads up to {SCHEMA_VERSION}"
        raise IncompatibleArtifact(what, where=str(path), hint="upgrade fmo, or compile the model with this version")


def _require_target(manifest: Mapping[str, Any], path: Path) -> None:
    target = manifest["target"]
    device, arch, isa = target.get("device"), target.get("arch"), target.get("isa_min", "scalar")
    machine = ARCH_OF_MACHINE.get(platform.machine(), platform.machine())
    recompile = "compile the model for this machine: fmo compile MODEL --target cpu"
    if device != "cpu":
        raise IncompatibleArtifact(f"the artifact is for the device '{device}', this runtime has 'cpu'", where=str(path), hint=recompile)
    if arch != machine:
        raise IncompatibleArtifact(f"the artifact is for {arch} processors, this machine is {machine}", where=str(path), hint=recompile)
    if isa not in supported_isas():
        what = f"the artifact needs the instruction set '{isa}', this processor has {', '.join(supported_isas())}"
        raise IncompatibleArtifact(what, where=str(path), hint=recompile)


def _require_facts(facts: Mapping[str, Any], checks: Mapping[str, Callable[[Any], bool]], path: Path) -> None:
    """Every fact of `checks` is there and has its form, so that nobody else has to look."""
    for name, is_good in checks.items():
        if not is_good(facts.get(name)):
            raise CorruptArtifact(f"'{name}' is {facts.get(name)!r}", where=str(path), hint=_RECOMPILE)


def _require_files(folder: Path, files: Mapping[str, Any]) -> None:
    """Every file of the manifest is there with its size; names stay inside of the folder."""
    if PLAN not in files:
        raise CorruptArtifact(f"the manifest does not list {PLAN}", where=str(folder / MANIFEST), hint=_RECOMPILE)
    for name, entry in files.items():
        parts = PurePosixPath(name).parts
        is_entry = isinstance(entry, dict) and isinstance(entry.get("sha256"), str) and type(entry.get("bytes")) is int
        if not is_entry or not parts or PurePosixPath(name).is_absolute() or ".." in parts:
            raise CorruptArtifact(f"the entry of file '{name}' is malformed", where=str(folder / MANIFEST), hint=_RECOMPILE)
        path = folder / name
        if not _is_file(path):
            raise CorruptArtifact(f"'{name}' is missing", where=str(folder), hint=_RECOMPILE)
        if (num_bytes := path.stat().st_size) != entry["bytes"]:
            raise CorruptArtifact(f"'{name}' has {num_bytes} bytes, expected {entry['bytes']}", where=str(folder), hint=_RECOMPILE)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _require_hash(folder: Path, name: str, files: Mapping[str, Any]) -> None:
    try:
        found = hash_file(folder / name)
    except OSError as error:
        raise CorruptArtifact(f"'{name}' cannot be read: {error.strerror}", where=str(folder), hint=_RECOMPILE) from None
    if found != files[name]["sha256"]:
        what = f"'{name}' is damaged: its SHA-256 is {found[:12]}…, expected {files[name]['sha256'][:12]}…"
        raise CorruptArtifact(what, where=str(folder), hint=_RECOMPILE)


def _cpu_flags() -> frozenset[str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    line = next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), ":")
    return frozenset(line.split(":", 1)[1].split())
