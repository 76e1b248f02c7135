"""A still picture of a clip, for videos that a browser cannot play."""

from __future__ import annotations

from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np

from simvtp_ds.data.manifest import Clip
from simvtp_ds.data.sampling import Box, View
from simvtp_ds.data.worker import DecoderPool, Task, failure
from simvtp_ds.data_config import StorageConfig

SIDE = 320  # pixels of the longer side
KEPT = 256  # pictures in memory, about 10 kB each


class Posters:
    """The middle frames of clips as JPEG, decoded by one process that may hang or die. From any thread.

    Args:
        timeout: Seconds a picture may take.
        storage: How the clips' bytes are read.
    """

    def __init__(self, timeout: float, storage: StorageConfig) -> None:
        self._timeout, self._storage = timeout, storage
        # The decoder lives and dies with the thread that started it: one thread does all pictures.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="posters")
        self._pool: DecoderPool | None = None
        self._kept: OrderedDict[Clip, bytes] = OrderedDict()

    def picture(self, clip: Clip) -> bytes:
        """JPEG of the whole picture.

        Raises:
            ValueError: it cannot be decoded; says why.
        """
        return self._thread.submit(self._picture, clip).result()

    def close(self) -> None:
        """End the process."""
        self._thread.submit(lambda: self._pool and self._pool.close()).result()
        self._thread.shutdown()

    def _picture(self, clip: Clip) -> bytes:
        if clip in self._kept:
            self._kept.move_to_end(clip)
            return self._kept[clip]
        if self._pool is None:
            self._pool = DecoderPool(1, (1, 1, 1, SIDE, SIDE, 3), self._timeout, self._storage)
        view = View(np.array([clip.frames // 2]), Box(0, 0, clip.height, clip.width), flip=False)
        self._pool.submit([Task(0, 0, clip.source, view)])
        for outcome in self._pool.drain():
            if (reason := failure(outcome)) is not None:
                raise ValueError(reason.removeprefix(f"{clip.uri}: "))
        scale = SIDE / max(clip.width, clip.height)
        size = max(1, round(clip.width * scale)), max(1, round(clip.height * scale))
        # The decoder gave a square.
        frame = cv2.resize(self._pool.frames[0, 0, 0], size, interpolation=cv2.INTER_AREA)
        _, data = cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        self._kept[clip] = data.tobytes()
        if len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return self._kept[clip]
