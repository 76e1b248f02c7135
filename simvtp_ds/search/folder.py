"""A folder of videos as a manifest, each file's name in place of a caption."""

from __future__ import annotations

import json
import os
from pathlib import Path

from simvtp_ds.data.annotations_source import VIDEO_EXTENSIONS
from simvtp_ds.data.prepare import PrepareError, prepare
from simvtp_ds.data.text import Tokenizer
from simvtp_ds.evaluation.frames import Missing
from simvtp_ds.files import replacing
from simvtp_ds.progress import Show


def prepare_folder(folder: Path, out: Path, tokenizer: Tokenizer, workers: int, show: Show) -> list[Missing]:
    """Write a manifest of all video files below a folder into `out`; only files that are new or changed are opened.

    Links to folders are not followed; what a link to a file leads to is a video like any other.

    Args:
        folder: Looked through with all its folders, hidden ones left out.
        out: Holds what `prepare` writes.
        tokenizer: The model's, so that none is trained.
        workers: Probing processes.
        show: Progress.

    Returns:
        The files that cannot be used, with the reason.

    Raises:
        ValueError: there is no such folder, no video in it, or none that can be used.
        OSError: `out` cannot be written.
    """
    if not folder.is_dir():
        raise ValueError(f"--videos {folder}: no such folder")
    names, odd = find_files(folder)
    if not names:
        extensions = ", ".join(sorted(VIDEO_EXTENSIONS))
        raise ValueError(f"--videos {folder}: holds no video files (their names end in {extensions})")
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(out)
    listed = out / "files.json"
    with replacing(listed) as temporary:
        temporary.write_text(json.dumps({name: name for name in names}))
    try:
        with show("probing", "files") as on_progress:
            prepare(listed, out, folder, workers, tokenizer=str(out), format="json", on_progress=on_progress)
    except PrepareError as error:
        if error.summary is None:
            raise ValueError(str(error)) from error
        kinds = ", ".join(f"{count} {kind}" for kind, count in error.summary.refused.items())
        raise ValueError(f"--videos {folder}: none of its {len(names)} video files can be used ({kinds})") from error
    with (out / "refused.jsonl").open(encoding="utf-8") as lines:
        refused = [json.loads(line) for line in lines]
    return [*odd, *(Missing(each["video"], str(folder / each["video"]), each["reason"]) for each in refused)]


def find_files(folder: Path) -> tuple[list[str], list[Missing]]:
    """Paths, relative to the folder, of the files named like videos, sorted; and those whose name is no text."""
    names: list[str] = []
    odd: list[Missing] = []
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.startswith(".") or name.rpartition(".")[2].lower() not in VIDEO_EXTENSIONS:
                continue
            path = Path(place, name).relative_to(folder).as_posix()
            try:
                path.encode()
                names.append(path)
            except UnicodeEncodeError:
                shown = path.encode("utf-8", "backslashreplace").decode()
                odd.append(Missing(shown, str(folder / shown), "its name is not UTF-8: rename it"))
    return names, odd
