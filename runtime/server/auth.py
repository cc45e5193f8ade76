"""API keys: one or several, in a file that may change while the server runs. Compared in constant time, kept as hashes only.

A request brings its key as `Authorization: Bearer KEY` or `x-api-key: KEY`. The file has one key per line; empty lines and lines that begin
with # are none. A file that has become unreadable or empty keeps the last keys: a mistake must neither open nor close the server.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
from pathlib import Path

from ..errors import ConfigError

_log = logging.getLogger(__name__)


class ApiKeys:
    """`source`: the keys as text, or the file that holds them. Raises ConfigError when there is no key in it."""

    def __init__(self, source: str | Path) -> None:
        self._path = source if isinstance(source, Path) else None
        self._stamp = self._file_stamp()
        self._hashes = _hashes(source.read_text() if isinstance(source, Path) else source)
        if not self._hashes:
            where = "--api-key-file" if self._path is not None else "FMO_API_KEY"
            raise ConfigError("the API key is empty", where=where, hint="write a key, or leave the option out to serve without keys")

    def accepts(self, key: bytes) -> bool:
        self._reload_if_changed()
        given = hashlib.sha256(key).digest()
        found = False
        for expected in self._hashes:  # all of them, so that the time does not tell which
            found |= hmac.compare_digest(given, expected)
        return found

    def _file_stamp(self) -> tuple[int, int, int] | None:
        if self._path is None:
            return None
        try:
            stat = self._path.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size, stat.st_ino

    def _reload_if_changed(self) -> None:
        stamp = self._file_stamp()
        if stamp == self._stamp or self._path is None:
            return
        self._stamp = stamp
        try:
            hashes = _hashes(self._path.read_text())
        except (OSError, UnicodeDecodeError):
            hashes = []
        if hashes:
            self._hashes = hashes
        else:
            _log.error("the API key file has no keys any more; the last ones stay valid")


def _hashes(text: str) -> list[bytes]:
    lines = (line.strip() for line in text.splitlines())
    return [hashlib.sha256(line.encode()).digest() for line in lines if line and not line.startswith("#")]
