"""From an annotation file to a folder that training reads: manifest, tokenizer, and a list of what was refused.

Probing is the long part. Each result is appended to DIR/probe.jsonl as it comes in, under the file's path, size and
modification time; a run that was interrupted, however, goes on from there. Everything else is written at the end, each
file whole or not at all, the manifest last.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

from simvtp_ds.data.annotations import read_annotations
from simvtp_ds.data.annotations_formats import READERS
from simvtp_ds.data.annotations_summary import Summary, summarize
from simvtp_ds.data.annotations_videos import clip_id, find_videos
from simvtp_ds.data.manifest import Clip, write_manifest
from simvtp_ds.data.probe import Probe, probe_files, stat_file
from simvtp_ds.data.text import Tokenizer, train_wordpiece
from simvtp_ds.files import replacing

_RULES = 1  # raise it when probe.py decides otherwise about some file: older results are then not used again
_PASSING = ("hung", "decoder crashed", "file unreadable")  # may go better on another day: never taken from the cache
_CACHE = "probe.jsonl"

_Key = tuple[str, int, int]  # path, size in bytes, modification time in ns


class PrepareError(RuntimeError):
    """Nothing can be prepared; the message says why and what to do. `summary`: what was found, as far as it came."""

    def __init__(self, message: str, summary: Summary | None = None) -> None:
        super().__init__(message)
        self.summary = summary


def prepare(
    annotations: str | Path,
    out: str | Path,
    videos: str | Path = "",
    workers: int = 1,
    timeout: float = 120.0,
    tokenizer: str = "",
    vocab_size: int = 30522,
    format: str = "auto",
    split: str = "",
    names: str | Path = "",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Summary:
    """Probes every video once and writes manifest.arrow, tokenizer.json, refused.jsonl and summary.json into `out`.

    Args:
        annotations: A file that `read_annotations` understands.
        out: The folder to write; made if missing. With the results of an earlier run in it, only the rest is probed.
        videos: Folder that the annotation's video paths start from (see `find_videos`); empty: the annotation file's.
        workers: Probing processes.
        timeout: Seconds after which a probe counts as hung.
        tokenizer: Name or folder of a tokenizer; empty: one is trained on the accepted captions.
        vocab_size: Most tokens of a trained tokenizer.
        format, split, names: See `read_annotations`.
        on_progress: Called with (files probed, files to probe).

    Raises:
        AnnotationError, TokenizerError: See there.
        PrepareError: `out` is in use; or no row is usable: refused.jsonl and summary.json are then written, an earlier
            manifest stays.
        OSError: `out` cannot be written. What it held before is still whole.
    """
    annotations, out = Path(annotations), Path(out)
    if workers < 1 or not timeout > 0:  # neither is NaN
        raise PrepareError(f"workers is {workers} and timeout {timeout:g} s; expected at least 1 and more than 0")
    found = read_annotations(annotations, format, split, names)
    root = Path(videos) if videos else annotations.parent
    if not root.is_dir():
        raise PrepareError(f"{root}: no such folder; expected the one that the video paths start from")
    given = Tokenizer.load(tokenizer) if tokenizer else None
    out.mkdir(parents=True, exist_ok=True)
    places = READERS[found.format].places
    files = find_videos(str(root), {video: places(video) for video in dict.fromkeys(row.video for row in found.rows)})
    wanted = dict.fromkeys(uri for uri, reason in (files[row.video] for row in found.rows if row.caption) if not reason)
    with _cache(out) as (known, log):
        results, probed = _probe_all(wanted, known, log, workers, timeout, on_progress)
        clips: list[Clip] = []
        refused: list[dict[str, str]] = []
        for row in found.rows:
            uri, reason = files[row.video]
            size, probe = results[uri] if row.caption and not reason else (0, Probe(reason or "empty caption"))
            if probe.reason:
                refused.append({"video": row.video, "caption": row.caption, "reason": probe.reason})
            else:
                clips.append(probed_clip(clip_id(row.video), row.caption, uri, size, probe))
        _write_lines(out / "refused.jsonl", refused)
        words = (given or train_wordpiece((clip.caption for clip in clips), vocab_size)) if clips else None
        summary = summarize(found, clips, refused, probed, words.vocab_size if words else 0)
        if words is None:
            _write_lines(out / "summary.json", [asdict(summary)])
            kinds = ", ".join(f"{count} {kind}" for kind, count in summary.refused.items())
            raise PrepareError(
                f"{annotations}: none of its {len(found.rows)} rows is usable ({kinds}); every row's reason is in "
                f"{out / 'refused.jsonl'}; video paths start from {root} (--videos)",
                summary,
            )
        words.save(out)
        _write_lines(out / "summary.json", [asdict(summary)])
        write_manifest(out, clips)
    return summary


def _probe_all(
    uris: Iterable[str],
    known: dict[_Key, Probe],
    log: BinaryIO,
    workers: int,
    timeout: float,
    on_progress: Callable[[int, int], None],
) -> tuple[dict[str, tuple[int, Probe]], int]:
    """uri -> (size in bytes, result) of every file, and how many of them had to be opened for it."""
    results: dict[str, tuple[int, Probe]] = {}
    todo: dict[str, _Key] = {}
    for uri in uris:
        found = stat_file(uri)
        if isinstance(found, str):
            results[uri] = 0, Probe(found)
        elif (uri, *found) in known:
            results[uri] = found[0], known[uri, *found]
        else:
            todo[uri] = (uri, *found)
    on_progress(0, len(todo))
    for done, (uri, probe) in enumerate(probe_files(todo, workers, timeout), 1):
        _, size, mtime = todo[uri]
        results[uri] = size, probe
        log.write(json.dumps({"rules": _RULES, "key": [uri, size, mtime], "probe": asdict(probe)}).encode() + b"\n")
        log.flush()
        on_progress(done, len(todo))
    return results, len(todo)


def probed_clip(name: str, caption: str, uri: str, size: int, probe: Probe) -> Clip:
    """A usable file of `size` bytes as a row of a manifest; `name` is its clip id."""
    return Clip(
        clip_id=name,
        uri=uri,
        offset=0,
        length=size,
        caption=caption,
        frames=probe.frames,
        fps=probe.fps,
        width=probe.width,
        height=probe.height,
        codec=probe.codec,
    )


def _write_lines(path: Path, entries: Iterable[dict]) -> None:
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)


@contextmanager
def _cache(out: Path) -> Iterator[tuple[dict[_Key, Probe], BinaryIO]]:
    """The results of earlier runs, and the file to append new ones to; held by one process at a time."""
    with (out / _CACHE).open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PrepareError(
                f"{out}: another prepare is at work in this folder; wait for it, or choose another"
            ) from None
        file.seek(0)
        known, end = {}, 0
        for line in file:
            if not line.endswith(b"\n"):  # torn when an earlier run was killed
                file.truncate(end)
                break
            end += len(line)
            try:
                entry = json.loads(line)
                probe = Probe(**entry["probe"])
                if entry["rules"] == _RULES and probe.reason.partition(":")[0] not in _PASSING:
                    known[tuple(entry["key"])] = probe
            except (ValueError, KeyError, TypeError):
                continue  # not ours: that file is probed again
        yield known, file
