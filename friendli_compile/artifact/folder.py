"""An output folder that appears under its final name only when it is complete.

    with OutputFolder(Path("out"), replace=False) as folder:
        (folder.path / "plan.json").write_bytes(…)        # .out.partial-<pid>/, beside the target
        …
        folder.commit()                                   # files and folder synced, then renamed

Leaving without `commit` (an error, Ctrl-C, a full disk) removes everything that was written. A folder that a killed process left behind is
removed by the next one that writes to the same place.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from pathlib import Path
from types import TracebackType

from ..errors import OutputError

MANIFEST = "manifest.json"
CALL_VECTORS = "call_vectors.json"


class OutputFolder:
    """A temporary folder and the place that it will be renamed to."""

    def __init__(self, target: Path, *, replace: bool) -> None:
        self.target = target.absolute()
        self.path = self.target.parent / f".{self.target.name}.partial-{os.getpid()}"
        self._replace = replace
        self._is_committed = False

    def __enter__(self) -> OutputFolder:
        require_free_target(self.target, replace=self._replace)
        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
            self._remove_leftovers()
            self.path.mkdir()
        except OSError as error:
            raise write_error(error, self.target) from None
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self._is_committed:
            shutil.rmtree(self.path, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in _WRITE_ERRORS:
            raise write_error(error, self.target) from None

    def require_space(self, num_bytes: int) -> None:
        """Raises OutputError when the disk has less than `num_bytes` free: better now than after minutes of packing."""
        free_bytes = shutil.disk_usage(self.path).free
        if free_bytes < num_bytes:
            what = f"compiling needs {num_bytes / 1e9:.2f} GB, the disk has {free_bytes / 1e9:.2f} GB free"
            raise OutputError(what, where=str(self.target.parent), hint="free some space or choose an --output-dir on another disk")

    def commit(self) -> None:
        """Makes the folder durable and gives it its final name."""
        for path in sorted(self.path.rglob("*")):
            _sync(path)
        _sync(self.path)
        old = None
        if self.target.exists() and any(self.target.iterdir()):
            old = self.target.parent / f".{self.target.name}.old-{os.getpid()}"
            self.target.rename(old)
        self.path.rename(self.target)
        self._is_committed = True
        _sync(self.target.parent)
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)

    def _remove_leftovers(self) -> None:
        for path in self.target.parent.glob(f".{self.target.name}.partial-*"):
            pid = path.name.rpartition("-")[2]
            if pid.isdigit() and not Path(f"/proc/{pid}").exists() and Path("/proc/self").exists():
                shutil.rmtree(path, ignore_errors=True)


_WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def require_free_target(target: Path, *, replace: bool) -> None:
    """Raises OutputError unless `target` is new, empty, or (with `replace`) an artifact."""
    if target.is_file():
        raise OutputError(f"'{target}' is a file", hint="give a folder: --output-dir DIR")
    if not target.is_dir() or not any(target.iterdir()):
        return
    if not replace:
        raise OutputError(f"'{target}' is not empty", hint="choose another --output-dir, or add --force to replace the artifact in it")
    if not (target / MANIFEST).is_file():
        what = f"'{target}' holds other files than an artifact; --force replaces only artifacts"
        raise OutputError(what, hint="choose another --output-dir, or empty the folder yourself")


def write_error(error: OSError, target: Path) -> OutputError:
    """The reader's version of an OSError while writing."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    hint = "check that the folder above it exists and that you may write there"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        with contextlib.suppress(OSError):
            reason += f" ({shutil.disk_usage(target.parent).free / 1e9:.2f} GB free)"
        hint = "free some space or choose an --output-dir on another disk; nothing was left behind"
    return OutputError(f"cannot write the artifact: {reason}", where=str(error.filename or target), hint=hint)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
