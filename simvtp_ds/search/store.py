"""Vectors kept on disk, each under a digest of what it stands for; what was kept survives a kill at any moment."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing, contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Self

import numpy as np

_TABLE = "CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vector BLOB, digest BLOB) WITHOUT ROWID"
_PATIENCE = 60.0  # seconds that another process may hold the file


class Store:
    """float32 vectors in one SQLite file; two processes may fill it at once. A damaged file is begun anew.

    Args:
        path: Made where it is missing, its folder too.

    Raises:
        OSError: here and in the methods: it cannot be read or written (no right, a full disk, held for a minute).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._opened()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def get(self, keys: Iterable[bytes]) -> dict[bytes, np.ndarray]:
        """The vectors [D] that are kept, of those asked for; one whose bytes changed on disk counts as missing."""
        found: dict[bytes, np.ndarray] = {}
        with self._told():
            for key in keys:
                row = self._file.execute("SELECT vector, digest FROM vectors WHERE key = ?", (key,)).fetchone()
                if row and row[1] == _digest(key, row[0]):
                    found[key] = np.frombuffer(row[0], dtype=np.float32)
        return found

    def put(self, vectors: Mapping[bytes, np.ndarray]) -> None:
        """Keep vectors float32 [D]: all of them or, after an error, none."""
        rows = [(key, data, _digest(key, data)) for key, data in ((k, v.tobytes()) for k, v in vectors.items())]
        with self._told(), self._file:
            self._file.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?)", rows)

    def _opened(self) -> sqlite3.Connection:
        with self._told():
            try:
                return self._connected()
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError:  # torn or overwritten: all of it can be computed again
                for name in (self.path.name, f"{self.path.name}-journal"):
                    self.path.with_name(name).unlink(missing_ok=True)
                return self._connected()

    def _connected(self) -> sqlite3.Connection:
        file = sqlite3.connect(self.path, timeout=_PATIENCE)
        try:
            file.execute(_TABLE)
            with closing(file.execute("PRAGMA quick_check(1)")) as found:
                if (verdict := found.fetchone()[0]) != "ok":
                    raise sqlite3.DatabaseError(verdict)
        except BaseException:
            file.close()
            raise
        return file

    @contextmanager
    def _told(self):
        try:
            yield
        except sqlite3.Error as error:
            raise OSError(f"{self.path}: {error}; name another folder with --index") from error


def _digest(key: bytes, data: bytes) -> bytes:
    return blake2b(key + data, digest_size=8).digest()
