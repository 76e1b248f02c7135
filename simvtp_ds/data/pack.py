"""From a prepared folder to a packed set: the videos in tar shards, and a manifest that says where in them.

Videos go into shards in the manifest's order, a new shard whenever the next video would make one too large. Which
video lies where therefore depends on the videos alone: a packing that was interrupted, however often, ends with the
same bytes. What is transcoded waits in DIR/work until its shard is written; a finished shard is never written again.
"""

from __future__ import annotations

import fcntl
import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from simvtp_ds.data.manifest import FILE_NAME, Manifest
from simvtp_ds.data.pack_result import PackSummary, write_results
from simvtp_ds.data.pack_tasks import WORK, Check, Fault, PackPool
from simvtp_ds.data.packer import Packer, PackError, unfinished
from simvtp_ds.data.shards import INDEX, SHARDS, Index, finished_shards
from simvtp_ds.data.transcode import Encoding
from simvtp_ds.data.videos import Videos
from simvtp_ds.files import replacing
from simvtp_ds.progress import Show

SETTINGS, LOCK = "pack.json", ".lock"
_ELSEWHERE = "choose another folder, or delete this one"
_VERSION = 1  # raise it when the same videos give other shards


@dataclass(frozen=True)
class PackConfig:
    """How a set is packed.

    Attributes:
        encoding: How videos are transcoded; None: their files go in as they are.
        shard_mib: Most MiB of a shard; a larger video has one of its own.
    """

    encoding: Encoding | None = None
    shard_mib: float = 512.0

    def __post_init__(self) -> None:
        if not 0 < self.shard_mib < math.inf:
            raise ValueError(f"--shard-mib is {self.shard_mib:g}; give a number above 0")


def check_settings(out: str | Path, folder: str | Path, config: PackConfig, fingerprint: str = "") -> None:
    """PackError where `folder` holds something else than what `out` would be packed into; before anything is done.

    Args:
        out: The prepared folder.
        folder: The packed set, there or not.
        config: How it is to be packed.
        fingerprint: Of the manifest in `out`; empty: not known yet.
    """
    out, folder = Path(out), Path(folder)
    if out.resolve() == folder.resolve():
        raise PackError(f"--out and --pack are both {folder}; give the packed set a folder of its own")
    try:
        old = json.loads((folder / SETTINGS).read_text())
    except FileNotFoundError:
        if (folder / FILE_NAME).exists():
            raise PackError(f"{folder}: holds a manifest that was not packed; choose another folder") from None
        return
    except (OSError, ValueError) as error:
        raise PackError(f"{folder / SETTINGS}: not the settings of a packed set ({error}); {_ELSEWHERE}") from None
    if not isinstance(old, dict):
        raise PackError(f"{folder / SETTINGS}: not the settings of a packed set; {_ELSEWHERE}")
    for name, value in _settings(config, fingerprint).items():
        if value != old.get(name) and not (name == "manifest" and not fingerprint):
            raise PackError(f"{folder} was packed with {name} {old.get(name)}, asked for is {value}; {_ELSEWHERE}")


def check_out(out: str | Path) -> None:
    """PackError where `out` is a packed set: preparing into it would put another manifest beside its shards."""
    if (Path(out) / SETTINGS).exists():
        raise PackError(f"--out {out} is a packed set; give --out another folder")


def pack(
    out: str | Path, folder: str | Path, config: PackConfig, workers: int, timeout: float, show: Show
) -> PackSummary:
    """Packs the accepted videos of a prepared folder, each once, whatever number of captions it has.

    Args:
        out: Folder that `prepare` wrote.
        folder: The packed set; made if missing. What an earlier run finished in it stays.
        config: How it is packed.
        workers: Packing processes.
        timeout: Seconds that transcoding one video may take.
        show: Shows how far it is.

    Raises:
        PackError: Other settings or another process at work in `folder`; no video is left; it cannot be written.
        OSError: It cannot be written.
    """
    out, folder = Path(out), Path(folder)
    manifest = Manifest.open(out)
    check_settings(out, folder, config, manifest.fingerprint)
    videos = Videos(manifest)
    for name in (SHARDS, INDEX, WORK):
        (folder / name).mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        if not (folder / SETTINGS).exists():
            with replacing(folder / SETTINGS) as temporary:
                temporary.write_text(json.dumps(_settings(config, manifest.fingerprint)) + "\n")
        finished = finished_shards(folder)
        if unfinished(finished, len(videos)) or not (folder / FILE_NAME).exists():
            (folder / FILE_NAME).unlink(missing_ok=True)  # of shards that are gone
            with PackPool(min(workers, len(videos)), folder, config.encoding, timeout) as pool:
                packer = Packer(videos, folder, config.encoding, int(config.shard_mib * 2**20), pool, finished)
                packer.run(show, ahead=4 * workers)
                _check(pool, folder, finished, show)
        summary = write_results(out, folder, videos, finished_shards(folder))
        shutil.rmtree(folder / WORK)
    return summary


def _settings(config: PackConfig, fingerprint: str) -> dict[str, object]:
    encoding = asdict(config.encoding) if config.encoding else "as they are"
    return {"version": _VERSION, "videos": encoding, "shard_mib": config.shard_mib, "manifest": fingerprint}


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    with (folder / LOCK).open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PackError(
                f"{folder}: another prepare packs into this folder; wait for it, or choose another"
            ) from None
        yield


def _check(pool: PackPool, folder: Path, earlier: list[Index], show: Show) -> None:
    """Reads the shards of earlier runs once more; those of this run were read back when they were written."""
    damaged = []
    with show("checking", "shards") as on_progress:
        pool.submit(Check(index) for index in earlier if index.size)
        for done, (task, result) in enumerate(pool.drain(), 1):
            assert isinstance(task, Check)
            if result is not True:
                (folder / task.index.uri).unlink(missing_ok=True)
                damaged.append(f"{task.index.uri}" + (f" ({result.reason})" if isinstance(result, Fault) else ""))
            on_progress(done, len(earlier))
    if damaged:
        raise PackError(
            f"{folder}: the bytes of {', '.join(damaged)} are no longer those written, check the disk; "
            "removed, the same command packs them again"
        )
