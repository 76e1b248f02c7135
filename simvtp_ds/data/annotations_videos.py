"""Where the videos of an annotation file lie on this machine.

Annotations name a video by an id or with the extension that it had on somebody's disk. The exact path comes first;
where it is missing, the same name with another known video extension in the same folder is the video.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable, Mapping

from simvtp_ds.data.annotations_source import VIDEO_EXTENSIONS, stem

# os.path in place of pathlib: there may be 2.5 M paths.
# ruff: noqa: PTH100, PTH118


def clip_id(video: str) -> str:
    """What the manifest calls a video: as annotated, the same on every machine; ./a.mp4 and a.mp4 are one."""
    return posixpath.normpath(video)


def find_videos(root: str, places: Mapping[str, Iterable[str]]) -> dict[str, tuple[str, str]]:
    """video -> (absolute path, reason); the reason is empty, or says why no file can be chosen.

    Args:
        root: Folder that the paths start from.
        places: video -> paths below `root` where it may lie, the likeliest first. Nothing there: the path is the first.

    A file that is annotated under its own name is not taken for another video. Folders are listed once, and only where
    an exact path is missing.
    """
    exact: dict[str, str] = {}
    rest: list[str] = []
    for video, names in places.items():
        path = next(filter(os.path.isfile, (_path(root, name) for name in names)), None)
        if path is None:
            rest.append(video)
        else:
            exact[video] = path
    taken = set(exact.values()) if rest else set()
    folders: dict[str, dict[str, list[str]]] = {}
    alike = {video: _alike([_path(root, name) for name in places[video]], taken, folders) for video in rest}
    return {video: (exact[video], "") if video in exact else alike[video] for video in places}


def _alike(paths: list[str], taken: set[str], folders: dict[str, dict[str, list[str]]]) -> tuple[str, str]:
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in folders:
            folders[folder] = _videos_by_stem(folder)
        found = [other for other in folders[folder].get(stem(name), ()) if f"{folder}/{other}" not in taken]
        if len(found) > 1:
            return path, f"ambiguous: {name} may be {' or '.join(sorted(found))} in {folder}; keep one of them there"
        if found:
            return os.path.join(folder, found[0]), ""
    return paths[0], ""


def _videos_by_stem(folder: str) -> dict[str, list[str]]:
    """Files with a video extension; none where the folder cannot be listed (probing will say why)."""
    names: dict[str, list[str]] = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.rpartition(".")[2].lower() in VIDEO_EXTENSIONS and entry.is_file():
                    names.setdefault(stem(entry.name), []).append(entry.name)
    except (OSError, ValueError):
        return names
    return names


def _path(root: str, name: str) -> str:
    return os.path.abspath(os.path.join(root, name))
