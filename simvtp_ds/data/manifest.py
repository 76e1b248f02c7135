"""The manifest: one row a (video, caption) pair, in an Arrow IPC file that is mapped into memory, not read.

Opening costs the same for a thousand rows and for ten million, and the pages belong to the operating system: workers on
one machine share them.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path

import pyarrow as pa

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


class ManifestError(ValueError):
    """There is no usable manifest in the folder; the message says what to do."""


@dataclass(frozen=True)
class Clip:
    """A caption and the bytes of its video.

    Attributes:
        clip_id: The video as its annotation names it: the same on every machine, shared by all captions of the video.
        uri: Absolute path of the file that holds the video.
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


class Manifest:
    """Read access by row; `open` it.

    Attributes:
        folder: Where it lies.
        fingerprint: sha256 (hex) over schema, order and content of all rows but not `uri`: the same corpus in another
            place has the same fingerprint.
    """

    def __init__(self, folder: Path, batches: list[pa.RecordBatch], fingerprint: str):
        self.folder = folder
        self.fingerprint = fingerprint
        self._columns = [batch.columns for batch in batches]
        self._starts = list(accumulate((batch.num_rows for batch in batches), initial=0))

    @classmethod
    def open(cls, folder: str | Path) -> Manifest:
        """Maps DIR/manifest.arrow.

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
            reader = pa.ipc.open_file(pa.memory_map(str(path)))
            if reader.schema != _SCHEMA:
                raise ManifestError(f"{path}: columns are {reader.schema.names}, expected {_SCHEMA.names}; {advice}")
            batches = [reader.get_batch(i) for i in range(reader.num_record_batches - 1)]
            metadata = reader.get_batch_with_custom_metadata(reader.num_record_batches - 1).custom_metadata
            fingerprint = (metadata or {})[_FINGERPRINT].decode()
        except (pa.ArrowException, OSError, KeyError) as error:
            raise ManifestError(f"{path}: not a whole manifest ({error}); {advice}") from None
        if not sum(batch.num_rows for batch in batches):
            raise ManifestError(f"{path}: holds no rows; {advice}")
        return cls(folder, batches, fingerprint)

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, row: int) -> Clip:
        """Row `row`, 0 <= row < len(self)."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {self.folder / FILE_NAME}: it has {len(self)} rows, the first is 0")
        batch = bisect_right(self._starts, row) - 1
        place = int(row) - self._starts[batch]
        return Clip(*(column[place].as_py() for column in self._columns[batch]))

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
