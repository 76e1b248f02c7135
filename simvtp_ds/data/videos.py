"""A manifest seen as videos, each with all its captions: what retrieval trains on and is scored on."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa

from simvtp_ds.data.manifest import Clip, Manifest


class Videos:
    """The rows of a manifest grouped by clip id, videos in the order of their first rows.

    Args:
        manifest: The captions; those of one video need not stand together.

    Attributes:
        manifest: The same.
    """

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        # Dictionary codes count clip ids in the order of their first rows.
        codes = manifest.column("clip_id").dictionary_encode().combine_chunks().indices.to_numpy()
        self._rows = np.argsort(codes, kind="stable")
        firsts = np.flatnonzero(np.diff(codes[self._rows], prepend=-1))
        self._groups = np.stack([firsts, np.append(firsts[1:], len(codes))], axis=1)

    def __len__(self) -> int:
        return len(self._groups)

    def rows(self, video: int) -> np.ndarray:
        """Manifest rows of a video's captions, int64 [captions], ascending."""
        first, end = self._groups[video]
        return self._rows[first:end]

    def clip(self, video: int) -> Clip:
        """A video with the first of its captions."""
        return self.manifest[int(self.rows(video)[0])]

    def split(self, held_out: int, seed: int) -> tuple[Videos, Videos]:
        """(the others, `held_out` videos), each in the manifest's order.

        Which videos are held out follows from the seed and their clip ids: it is the same on every machine, and most of
        them stay the same when the corpus grows.

        Raises:
            ValueError: nothing would be left.
        """
        if not 0 <= held_out < len(self):
            raise ValueError(
                f"{held_out} of the {len(self)} videos of {self.manifest.folder} cannot be held out: lower "
                "validation.videos"
            )
        first_rows = self._rows[self._groups[:, 0]]
        ids = self.manifest.column("clip_id").take(pa.array(first_rows)).to_pylist()
        names = [f"{seed} {clip_id}".encode() for clip_id in ids]
        order = np.argsort([int.from_bytes(hashlib.blake2b(name, digest_size=7).digest()) for name in names])
        return self._subset(np.sort(order[held_out:])), self._subset(np.sort(order[:held_out]))

    def _subset(self, videos: np.ndarray) -> Videos:
        part = object.__new__(Videos)
        part.manifest, part._rows, part._groups = self.manifest, self._rows, self._groups[videos]
        return part
