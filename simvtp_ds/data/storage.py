"""Where the bytes of a clip are, and how they are read: a local file, a part of one, or a range of a URL.

Imports nothing heavy: decoder processes that read local files never load fsspec.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from simvtp_ds.data.storage_remote import read_url
from simvtp_ds.data_config import StorageConfig

DEFAULTS = StorageConfig()


class Source(NamedTuple):
    """Where the bytes of a video are: `length` bytes from `offset` of a local file (absolute path) or of a URL."""

    uri: str
    offset: int
    length: int


def is_url(uri: str) -> bool:
    """Whether fsspec reads it (scheme://...); everything else is a local path."""
    return "://" in uri


def resolve(uri: str, folder: str | Path, root: str = "") -> str:
    """Absolute path or URL of what a manifest names.

    Args:
        uri: As the manifest has it: absolute path, URL, or a name relative to `root`.
        folder: The manifest's folder.
        root: Folder or URL that relative names start from (data.storage.root); empty: `folder`.

    Raises:
        ValueError: A relative name leads out of the folder that it starts from.
    """
    if is_url(uri) or uri.startswith("/"):
        return uri
    if ".." in uri.split("/"):
        raise ValueError(f"the manifest in {folder} names {uri!r}, which leads out of its folder: prepare it again")
    base = root or str(folder)
    return f"{base}{'' if base.endswith('/') else '/'}{uri}" if is_url(base) else str(Path(base, uri).absolute())


class ByteRange:
    """A part of a local file as a seekable file of its own, read with pread."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._position = 0
        self._file = os.open(source.uri, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, size: int) -> bytes:
        """At most `size` bytes from the current position; none at the end."""
        size = max(0, min(size, self._source.length - self._position))
        data = os.pread(self._file, size, self._source.offset + self._position)
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Moves to a position of the part and returns it."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._source.length}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        """The current position."""
        return self._position

    def close(self) -> None:
        """Closes the file."""
        os.close(self._file)


@contextmanager
def open_source(source: Source, storage: StorageConfig = DEFAULTS) -> Iterator[str | ByteRange | BytesIO]:
    """What `av.open` takes: the path of a whole local file, else a seekable file of the range; a URL's is in memory.

    Raises:
        OSError: It cannot be opened or, from a URL, read; names the uri and the reason.
    """
    if is_url(source.uri):
        yield BytesIO(read_source(source, storage))
    elif source.offset == 0:  # a loose file: in a shard a header comes first
        info = Path(source.uri).stat()
        if stat.S_ISREG(info.st_mode) and info.st_size != source.length:
            raise OSError(f"{source.uri}: {info.st_size} bytes, {source.length} when it was prepared; prepare it again")
        yield source.uri
    else:
        part = ByteRange(source)
        try:
            yield part
        finally:
            part.close()


def read_source(source: Source, storage: StorageConfig = DEFAULTS) -> bytes:
    """All bytes of a source.

    Raises:
        OSError: They cannot be read, or are not all there; names the uri and the reason.
    """
    if is_url(source.uri):
        return read_url(source.uri, source.offset, source.length, storage)
    with Path(source.uri).open("rb") as file:
        file.seek(source.offset)
        data = file.read(source.length)
    if len(data) < source.length:
        raise OSError(
            f"{source.uri}: {len(data)} of the {source.length} bytes from {source.offset} on are there; "
            "the file is shorter than its manifest says: copy or prepare it again"
        )
    return data
