"""One DALI pipeline at work: clips in, their pixels copied to their places."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from simvtp_ds.data.dali_graph import clip_graph, graph_inputs
from simvtp_ds.data.decode import DecodeError
from simvtp_ds.data.storage import read_source
from simvtp_ds.data.worker import Task
from simvtp_ds.data_config import StorageConfig

if TYPE_CHECKING:
    from nvidia.dali.pipeline import Pipeline

THREADS = 2  # CPU threads of a pipeline; beside a GPU they only take files apart and feed its decoder


class ClipPipeline:
    """A pipeline on a device, replaced by a new one after an error. Made and used by one thread.

    Args:
        device: Where it decodes.
        group: Most clips of a run.
        size: Height and width of the clips.
        storage: How the clips' bytes are read.
    """

    def __init__(self, device: torch.device, group: int, size: tuple[int, int], storage: StorageConfig) -> None:
        self._device, self._group, self._size, self._storage = device, group, size, storage
        self._stream = None
        if device.type == "cuda":
            torch.cuda.set_device(device)  # of this thread
            self._stream = torch.cuda.Stream(device)
        self._pipeline = self._build()

    def _build(self) -> Pipeline:
        device = "gpu" if self._device.type == "cuda" else "cpu"
        pipeline = clip_graph(device, self._group, self._size, self._device.index, THREADS)
        pipeline.build()
        return pipeline

    def decode(self, tasks: Sequence[Task]) -> Sequence[Any]:
        """The clips of some tasks, DALI's tensors of uint8 [T, H, W, 3]; valid until the next call.

        Raises:
            Exception: At least one of them cannot be read or decoded, or shows pictures of another size.
        """
        files = [read_source(task.source, self._storage) for task in tasks]
        try:
            outputs: Any = self._pipeline.run(**graph_inputs([task.view for task in tasks], files))
        except Exception:
            self._pipeline = self._build()  # DALI says "Current pipeline object is no longer valid"
            raise
        clips, shapes = outputs
        for task, shape in zip(tasks, shapes, strict=True):
            if (found := tuple(np.array(shape)[1:3])) != task.size:
                # Of several video streams FFmpeg's "best" is decoded, the manifest counts the first.
                raise DecodeError(f"pictures of {found} pixels (height, width), {task.size} in the manifest")
        return clips

    def deliver(self, clips: Sequence[Any], places: Sequence[Tensor]) -> None:
        """Copies what `decode` returned into uint8 [T, H, W, 3] on the device, and waits until it is there."""
        from nvidia.dali.plugin.pytorch.torch_utils import feed_ndarray

        with torch.cuda.stream(self._stream) if self._stream else nullcontext():
            for clip, place in zip(clips, places, strict=True):
                feed_ndarray(clip, place, cuda_stream=self._stream)
        if self._stream:
            self._stream.synchronize()
