"""The manifest: one row a (video, caption) pair, in an Arrow IPC file that is mapped into memory, not read.

Opening costs a few kilobytes for every 65,536 rows. Columns are looked at in the mapped file, whose pages belong to the
operating system; single rows are read from it, so that a shuffled walk does not end with all of it mapped, which would
count as memory of each process.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
import weakref
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from simvtp_ds.data.order import Order, replacement_row
from simvtp_ds.data.storage import Source, resolve
from simvtp_ds.files import replacing

FILE_NAME = "manifest.arrow"
_ROWS_PER_BATCH = 1 << 16
_FINGERPRINT = b"fingerprint"
_SCHEMA = pa.schema(
    [
        pa.field("clip_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("length", pa.int64(), nullable=False),
        pa.field("caption", pa.string(), nullable=False),
        pa.field("frames", pa.int64(), nullable=False),
        pa.field("fps", pa.float64(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("codec", pa.string(), nullable=False),
    ]
)


_NUMBERS = {pa.int32(): "<i", pa.int64(): "<q", pa.float64(): "<d"}  # as the file has them
_LAYOUTS = [_NUMBERS.get(field.type) for field in _SCHEMA]  # None: a string


class ManifestError(ValueError):
    """There is no usable manifest in the folder; the message says what to do."""


@dataclass(frozen=True)
class Clip:
    """A caption and the bytes of its video.

    Attributes:
        clip_id: The video as its annotation names it: the same on every machine, shared by all captions of the video.
        uri: Absolute path or URL of the file that holds the video; in the file of a packed set, a name relative to it.
        offset, length: The video's bytes inside that file (a loose file: 0 and its size).
        caption: One caption.
        frames: Frames that can be decoded, at least 1.
        fps: Average frames a second; 0 where unknown.
        width, height: Pixels as stored, rotation marks ignored.
        codec: FFmpeg's name of the codec.
    """

    clip_id: str
    uri: str
    offset: int
    length: int
    caption: str
    frames: int
    fps: float
    width: int
    height: int
    codec: str

    @property
    def source(self) -> Source:
        """The video's bytes."""
        return Source(self.uri, self.offset, self.length)


class Manifest:
    """Read access by row; `open` it.

    Attributes:
        folder: Where it lies.
        fingerprint: sha256 (hex) over schema, order and content of all rows but not `uri`: the same corpus in another
            place has the same fingerprint.
    """

    def __init__(self, folder: Path, pages: pa.Buffer, batches: list[pa.RecordBatch], fingerprint: str, root: str = ""):
        self.folder = folder
        self._base = pages.address
        self._file = os.open(folder / FILE_NAME, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._file)
        self._root = root
        self.fingerprint = fingerprint
        self._columns = [batch.columns for batch in batches]
        self._starts = list(accumulate((batch.num_rows for batch in batches), initial=0))

    @classmethod
    def open(cls, folder: str | Path, root: str = "") -> Manifest:
        """Maps DIR/manifest.arrow.

        Args:
            folder: DIR.
            root: Folder or URL that relative names in it start from (data.storage.root); empty: DIR.

        Raises:
            ManifestError: The folder or file is missing, is not a manifest of this version, was cut short or is empty.
        """
        folder = Path(folder)
        path = folder / FILE_NAME
        advice = "write one with: python launch/prepare.py ANNOTATIONS --out DIR"
        if not folder.is_dir():
            raise ManifestError(f"{folder}: no such folder; expected one that holds {FILE_NAME}; {advice}")
        if not path.is_file():
            raise ManifestError(f"{folder}: holds no {FILE_NAME}; {advice}")
        try:
            with path.open("rb") as file:
                pages = pa.py_buffer(mmap.mmap(file.fileno(), path.stat().st_size, prot=mmap.PROT_READ))
            reader = pa.ipc.open_file(pa.BufferReader(pages))
            if reader.schema != _SCHEMA:
                raise ManifestError(f"{path}: columns are {reader.schema.names}, expected {_SCHEMA.names}; {advice}")
            batches = [reader.get_batch(i) for i in range(reader.num_record_batches - 1)]
            metadata = reader.get_batch_with_custom_metadata(reader.num_record_batches - 1).custom_metadata
            fingerprint = (metadata or {})[_FINGERPRINT].decode()
        except ManifestError:
            raise
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:  # ValueError: nothing to map in 0 bytes
            raise ManifestError(f"{path}: not a whole manifest ({error}); {advice}") from None
        if not sum(batch.num_rows for batch in batches):
            raise ManifestError(f"{path}: holds no rows; {advice}")
        return cls(folder, pages, batches, fingerprint, root)

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, row: int) -> Clip:
        """Row `row`, 0 <= row < len(self); its `uri` is an absolute path or a URL."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {self.folder / FILE_NAME}: it has {len(self)} rows, the first is 0")
        batch = bisect_right(self._starts, row) - 1
        place = int(row) - self._starts[batch]
        columns = zip(self._columns[batch], _LAYOUTS, strict=True)
        clip_id, uri, *rest = (self._value(column, layout, place) for column, layout in columns)
        return Clip(clip_id, resolve(uri, self.folder, self._root), *rest)

    def _value(self, column: pa.Array, layout: str | None, place: int) -> Any:
        """One value of one batch."""
        _, *buffers = column.buffers()
        if layout is not None:
            size = struct.calcsize(layout)
            return struct.unpack(layout, self._bytes(buffers[0], size * place, size))[0]
        first, end = struct.unpack("<ii", self._bytes(buffers[0], 4 * place, 8))
        return self._bytes(buffers[1], first, end - first).decode()

    def _bytes(self, buffer: pa.Buffer, first: int, size: int) -> bytes:
        """A part of a buffer, from the file."""
        return os.pread(self._file, size, buffer.address - self._base + first)

    def order(self, global_batch: int, seed: int) -> Order:
        """The rows of every step."""
        return Order(len(self), global_batch, seed)

    def replacement(self, seed: int, epoch: int, row: int, attempt: int) -> int:
        """See `replacement_row`."""
        return replacement_row(seed, epoch, row, attempt, len(self))

    def column(self, name: str) -> pa.ChunkedArray:
        """One column of all rows, in the rows' order, still in the mapped file."""
        number = _SCHEMA.get_field_index(name)
        return pa.chunked_array([columns[number] for columns in self._columns], _SCHEMA.field(number).type)


def write_manifest(folder: str | Path, clips: Iterable[Clip]) -> None:
    """Writes DIR/manifest.arrow whole or not at all; the same clips give the same bytes."""
    path = Path(folder) / FILE_NAME
    digest = hashlib.sha256(str(_SCHEMA).encode())
    counted = [name for name in _SCHEMA.names if name != "uri"]
    clips = iter(clips)
    with (
        replacing(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, _SCHEMA) as writer,
    ):
        while rows := list(islice(clips, _ROWS_PER_BATCH)):
            arrays = [pa.array([getattr(clip, field.name) for clip in rows], field.type) for field in _SCHEMA]
            batch = pa.record_batch(arrays, schema=_SCHEMA)
            digest.update(batch.select(counted).serialize())
            writer.write_batch(batch)
        # The digest is known last: it travels in the metadata of a closing batch without rows.
        closing = pa.record_batch([pa.array([], field.type) for field in _SCHEMA], schema=_SCHEMA)
        writer.write_batch(closing, custom_metadata={_FINGERPRINT: digest.hexdigest().encode()})
