"""A bounded folder of byte ranges read from URLs, shared by all processes of a machine.

A file a range, named by a digest of uri, offset and length, in one of 64 parts of the folder by the digest's first
bits. Each part may hold a 64th of the limit: a new file costs a look at one part, a hit costs none. What was used
longest ago goes first. The file ends with a digest of its bytes, so a damaged or torn one counts as missing.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import TypeAlias

Range: TypeAlias = tuple[str, int, int]  # uri, offset, length

PARTS = 64
_DIGEST = 16  # bytes
_LOCK = ".lock"
_log = logging.getLogger(__name__)


class Cache:
    """Keeps bytes, or silently does not: a full disk or a folder without rights costs speed, never a clip.

    Args:
        folder: Made if missing.
        gib: Most that it holds, in GiB. A range larger than a 64th of it is not kept.
    """

    def __init__(self, folder: str | Path, gib: float) -> None:
        self._folder = Path(folder)
        self._part_limit = int(gib * 2**30) // PARTS

    def get(self, source: Range) -> bytes | None:
        """The source's bytes; None where they are not here or are damaged."""
        path = self._path(source)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        data = content[:-_DIGEST]
        if len(data) != source[2] or _digest(data) != content[-_DIGEST:]:
            return None
        with suppress(OSError):
            os.utime(path)  # used just now
        return data

    def put(self, source: Range, data: bytes) -> None:
        """Keeps a copy; makes room first."""
        path = self._path(source)
        size = len(data) + _DIGEST
        if size > self._part_limit:
            return
        temporary = path.with_suffix(".tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(path.parent / _LOCK):
                _make_room(path.parent, self._part_limit - size)
                try:
                    with temporary.open("wb") as file:
                        file.write(data)
                        file.write(_digest(data))
                    temporary.replace(path)
                finally:
                    temporary.unlink(missing_ok=True)
        except OSError as error:
            _log.warning("%s: not kept in the cache: %s", path, error)

    def _path(self, source: Range) -> Path:
        name = blake2b(repr(source).encode(), digest_size=20).hexdigest()
        return self._folder / f"{int(name[:2], 16) % PARTS:02d}" / name


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=_DIGEST).digest()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time writes to a part; readers need no lock, since files come and go whole."""
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make_room(part: Path, limit: int) -> None:
    """Removes what was used longest ago until the part holds at most `limit` bytes."""
    files = []
    with os.scandir(part) as entries:
        for entry in entries:
            if entry.name != _LOCK:
                info = entry.stat()
                files.append((info.st_mtime_ns, entry.path, info.st_size))
    total = sum(size for *_, size in files)
    for _, path, size in sorted(files):
        if total <= limit:
            return
        Path(path).unlink(missing_ok=True)
        total -= size
