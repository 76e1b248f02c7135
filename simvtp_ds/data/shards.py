"""Tar shards that the webdataset library reads, each with an index of its members' bytes and checksums.

A video is three members: KEY.mp4 (or its own extension), KEY.txt (its first caption) and KEY.json (all of them). Names,
dates, owners and rights are fixed, so the same videos give the same bytes. A shard and then its index appear whole or
not at all, and only after the shard was read back from disk.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from simvtp_ds.data.probe import Probe
from simvtp_ds.files import replacing, sha256

SHARDS, INDEX = "shards", "index"  # folders of a packed set
_BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True)
class Packed:
    """What became of a video.

    Attributes:
        probe: Of the video as it is packed, or why it is not.
        length: Its bytes.
        sha256: Of its bytes, hex; empty where they were not read yet.
        offset: Place of its bytes in the shard.
    """

    probe: Probe
    length: int = 0
    sha256: str = ""
    offset: int = 0


class Entry(NamedTuple):
    """A video to put into a shard."""

    key: str
    path: str  # file that holds its bytes
    suffix: str  # of the member, with the dot
    clip_id: str
    captions: list[str]
    packed: Packed


class Shard(NamedTuple):
    """Videos first .. first + len(entries) - 1 of a packed set, and the number of the shard that holds them."""

    number: int
    first: int
    entries: list[Entry]


class Index(NamedTuple):
    """What a finished shard holds. `size` 0: none of its videos can be used, there is no file."""

    number: int
    first: int
    end: int
    size: int  # bytes of the tar
    sha256: str

    @property
    def uri(self) -> str:
        """The shard's name relative to the packed set."""
        return f"{SHARDS}/{self.number:06d}.tar"


def texts(entry: Entry) -> list[tuple[str, bytes]]:
    """The members beside the video: (name, content)."""
    probe = entry.packed.probe
    facts = {
        "clip_id": entry.clip_id,
        "captions": entry.captions,
        "frames": probe.frames,
        "fps": probe.fps,
        "width": probe.width,
        "height": probe.height,
    }
    content = json.dumps(facts, ensure_ascii=False).encode()
    return [(f"{entry.key}.txt", entry.captions[0].encode()), (f"{entry.key}.json", content)]


def room(entry: Entry) -> int:
    """Bytes that a video takes in a tar; 0 where it is refused."""
    if entry.packed.probe.reason:
        return 0
    lengths = [entry.packed.length, *(len(content) for _, content in texts(entry))]
    return sum(_BLOCK + -(-length // _BLOCK) * _BLOCK for length in lengths)


def write_shard(folder: Path, shard: Shard) -> Index:
    """Writes a shard and its index; a video whose file is gone or not as expected is left out, with the reason.

    Raises:
        OSError: The folder cannot be written, or gives back other bytes.
    """
    index = Index(shard.number, shard.first, shard.first + len(shard.entries), 0, "")
    path = folder / index.uri
    with replacing(path) as temporary:
        members = []
        with tarfile.open(temporary, "w", format=tarfile.GNU_FORMAT) as tar:
            members = [_add(tar, entry) for entry in shard.entries]
        used = {e.key + e.suffix: m for e, m in zip(shard.entries, members, strict=True) if not m.probe.reason}
        _read_back(temporary, used)
        index = index._replace(size=temporary.stat().st_size, sha256=sha256(temporary))
    if not used:
        path.unlink()
        index = index._replace(size=0, sha256="")
    with replacing(_index_path(folder, shard.number)) as temporary, temporary.open("w") as file:
        file.write(json.dumps(index._asdict()) + "\n")
        file.writelines(json.dumps(asdict(member)) + "\n" for member in members)
    return index


def _add(tar: tarfile.TarFile, entry: Entry) -> Packed:
    """Adds a video's members; says where its bytes are, or why they are not."""
    packed = entry.packed
    if packed.probe.reason:
        return packed
    try:
        content = Path(entry.path).read_bytes()
    except OSError as error:
        check_mounted(entry.path)
        return Packed(Probe(f"file unreadable: {error.strerror}"))
    digest = hashlib.sha256(content).hexdigest()
    if len(content) != packed.length or packed.sha256 not in ("", digest):
        return Packed(
            Probe(f"file changed: {len(content)} bytes of other content, {packed.length} when it was read first")
        )
    offset = tar.offset + _BLOCK
    for name, data in [(entry.key + entry.suffix, content), *texts(entry)]:
        info = tarfile.TarInfo(name)
        info.size, info.mode, info.mtime = len(data), 0o644, 0
        tar.addfile(info, io.BytesIO(data))
    return replace(packed, sha256=digest, offset=offset)


def check_mounted(path: str) -> None:
    """OSError where a file is gone with all that lay beside it: a file server that is away comes back."""
    folder = Path(path).parent
    if not Path(path).exists() and not (folder.is_dir() and any(folder.iterdir())):
        raise OSError(f"{folder}, the folder of {Path(path).name}, is gone or empty: mount it again")


def _read_back(path: Path, members: dict[str, Packed]) -> None:
    """OSError unless the tar on disk holds each member where it should be, with the bytes that were meant."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # from the disk, not from memory
        found = set()
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for info in tar:
                if (member := members.get(info.name)) is not None:
                    content = tar.extractfile(info)
                    same = content is not None and hashlib.sha256(content.read()).hexdigest() == member.sha256
                    if not same or info.offset_data != member.offset:
                        raise OSError(f"{path}: {info.name} reads back otherwise than written; check the disk")
                    found.add(info.name)
        if missing := members.keys() - found:
            raise OSError(f"{path}: {len(missing)} members written are not there when read back; check the disk")


def finished_shards(folder: Path) -> list[Index]:
    """Shards with a whole index and a file of the right size, by number."""
    found = []
    for path in sorted((folder / INDEX).glob("[0-9]*.jsonl")):
        try:
            index = read_index(path)
        except (ValueError, TypeError):
            continue  # damaged: the shard is written again
        if path.read_bytes().count(b"\n") != 1 + index.end - index.first:
            continue  # videos would be taken for others
        shard = folder / index.uri
        if (shard.stat().st_size if shard.is_file() else 0) == index.size:
            found.append(index)
    return found


def read_index(path: Path) -> Index:
    """The head of an index file."""
    with path.open() as file:
        return Index(**json.loads(file.readline()))


def read_members(folder: Path, index: Index) -> Iterator[Packed]:
    """Videos first .. end - 1 of a finished shard."""
    with _index_path(folder, index.number).open() as file:
        file.readline()
        for line in file:
            yield loads_packed(line)


def loads_packed(text: str) -> Packed:
    """From JSON; ValueError, KeyError or TypeError where it is not one."""
    entry: dict[str, Any] = json.loads(text)
    return Packed(**{**entry, "probe": Probe(**entry["probe"])})


def _index_path(folder: Path, number: int) -> Path:
    return folder / INDEX / f"{number:06d}.jsonl"
