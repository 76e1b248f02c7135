"""The bytes of indexed videos over HTTP: whole or a range, of a file, of a part of a tar shard, or of a URL.

A request names a video by its number, never by a path. What is opened must still be the file that was indexed.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterator

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from simvtp_ds.data.storage import Source, read_source
from simvtp_ds.data_config import StorageConfig
from simvtp_ds.search.index import Entry, Stamp

CHUNK = 1 << 18  # bytes read at a time
_ONE_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})", re.ASCII)
# Browsers look into the file themselves; this tells them that it is worth it.
_TYPES = ((4, b"ftyp", "video/mp4"), (0, b"\x1a\x45\xdf\xa3", "video/webm"), (0, b"OggS", "video/ogg"))


def wanted_range(header: str | None, length: int) -> tuple[int, int] | None:
    """(first, end) of a Range header on `length` bytes; None: all of them (no range, several, or no valid one).

    Raises:
        HTTPException: 416, the range lies outside.
    """
    match = _ONE_RANGE.fullmatch(header.strip()) if header else None
    if not match or match[0] == "bytes=-":
        return None
    first, last = match.groups()
    if not first:
        start, end = max(0, length - int(last)), length
    else:
        start, end = int(first), min(length, int(last) + 1) if last else length
        if last and int(last) < start:
            return None
    if start >= length or start >= end:
        raise HTTPException(416, f"The video has {length} bytes.", {"Content-Range": f"bytes */{length}"})
    return start, end


def respond(request: Request, entry: Entry, storage: StorageConfig) -> Response:
    """The video of an entry, or the range of it that is asked for.

    Raises:
        HTTPException: 410, the file is gone or not the one that was indexed; 416; 502, a URL cannot be read.
    """
    source = entry.clip.source
    part = wanted_range(request.headers.get("range"), source.length)
    first, end = part or (0, source.length)
    read = _reader(entry, storage)
    head = read(0, min(16, source.length))
    kinds = (kind for place, mark, kind in _TYPES if head[place:].startswith(mark))
    headers = {
        "Accept-Ranges": "bytes",
        "Content-Length": str(end - first),
        "Content-Type": next(kinds, "application/octet-stream"),
    }
    if part:
        headers["Content-Range"] = f"bytes {first}-{end - 1}/{source.length}"
    code = 206 if part else 200
    if request.method == "HEAD":
        return Response(None, code, headers)
    return StreamingResponse(_chunks(read, first, end), code, headers)


def check_unchanged(entry: Entry) -> None:
    """The file that holds a video is still the one that was indexed.

    Raises:
        HTTPException: 410, it is not.
    """
    if entry.stamp is not None:
        _opened(entry).close()


def _opened(entry: Entry) -> io.FileIO:
    """The local file that holds a video. A pipe does not block it; a link that leads elsewhere by now is refused."""
    try:
        file = io.FileIO(os.open(entry.clip.uri, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
    except OSError as error:
        raise HTTPException(410, f"{entry.clip.clip_id} cannot be opened any more: {error.strerror}.") from None
    if Stamp.of(os.fstat(file.fileno())) != entry.stamp:
        file.close()
        raise HTTPException(410, f"{entry.clip.clip_id} has changed since it was indexed: start the search again.")
    return file


def _reader(entry: Entry, storage: StorageConfig) -> Callable[[int, int], bytes]:
    """Reads (place in the video, bytes); what it holds open closes with it."""
    uri, offset, length = entry.clip.source
    if entry.stamp is None:

        def fetch(place: int, size: int) -> bytes:
            try:
                return read_source(Source(uri, offset + place, size), storage)
            except OSError as error:
                raise HTTPException(502, f"{entry.clip.clip_id} cannot be fetched: {error}.") from None

        return fetch
    file = _opened(entry)
    if offset + length > entry.stamp.size:
        raise HTTPException(410, f"{entry.clip.clip_id} is not whole: its file is shorter than the manifest says.")
    return lambda place, size: os.pread(file.fileno(), size, offset + place)


def _chunks(read: Callable[[int, int], bytes], first: int, end: int) -> Iterator[bytes]:
    while first < end:
        data = read(first, min(CHUNK, end - first))
        if not data:
            raise OSError("the file was cut short while it was read")
        first += len(data)
        yield data
