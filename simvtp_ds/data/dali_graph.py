"""What DALI does with a group of encoded clips, as one graph for the GPU and for the CPU.

On the GPU the decoder is NVDEC. The CPU's graph differs in the operators' device and in nothing else; it decodes VP8,
VP9 and MJPEG only (DALI 2.1.0, the last version that could, H.264 and HEVC too).
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from nvidia.dali.pipeline import Pipeline

    from simvtp_ds.data.sampling import View

Device = Literal["gpu", "cpu"]

# FFmpeg's names of the codecs that DALI 2.4.0 says it decodes; the others are left to the worker processes.
CODECS: dict[Device, frozenset[str]] = {
    "gpu": frozenset({"h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "mjpeg"}),
    "cpu": frozenset({"vp8", "vp9", "mjpeg"}),
}


def clip_graph(device: Device, group: int, size: tuple[int, int], device_id: int | None, threads: int) -> Pipeline:
    """A pipeline, not built yet, from encoded files to clips of uint8 [T, H, W, 3], RGB (BT.601).

    The second output, int64 [4] on the CPU, is the shape that each clip was decoded in: frames, height, width, colours.
    It runs on `graph_inputs`; a run fails as a whole if one clip cannot be decoded or lacks a frame.

    Args:
        device: Where it decodes and where its output lies.
        group: Most clips of a run.
        size: Height and width of the output, in pixels.
        device_id: Number of the GPU; None on the CPU, and where the graph is defined only, not built.
        threads: CPU threads of the pipeline.
    """
    dali: Any = importlib.import_module("nvidia.dali")  # its stubs lack its own constants
    fn, types = dali.fn, dali.types
    # A depth of 1: a run takes its inputs and returns their clips, nothing is read ahead.
    pipeline: Pipeline = dali.Pipeline(
        batch_size=group, num_threads=threads, device_id=device_id, prefetch_queue_depth=1
    )
    with pipeline:
        encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
        frames = fn.external_source(name="frames", dtype=types.INT32, ndim=1)
        corner = fn.external_source(name="corner", dtype=types.INT32, ndim=1)
        extent = fn.external_source(name="extent", dtype=types.INT32, ndim=1)
        flip = fn.external_source(name="flip", dtype=types.INT32, ndim=0)
        decoder = "mixed" if device == "gpu" else "cpu"
        # Without pad_mode "none" a frame that the file lacks is black and no error.
        video = fn.decoders.video(encoded, device=decoder, frames=frames, pad_mode="none", affine=False)
        shape = video.shape()
        # Cropped before it is resized: resize(roi_*) reads outside the box when it enlarges.
        video = fn.slice(video, corner, extent, axis_names="HW")
        video = fn.resize(video, size=list(size), interp_type=types.INTERP_LINEAR, antialias=False)
        pipeline.set_outputs(fn.flip(video, horizontal=flip), shape)
    return pipeline


def graph_inputs(views: Sequence[View], files: Sequence[bytes]) -> dict[str, list[np.ndarray]]:
    """What the pipeline of `clip_graph` runs on: some views (their augmentation is not applied) and their files.

    One array a clip: `encoded` uint8 [bytes], `frames` int32 [T], `corner` int32 [2] (top, left), `extent` int32 [2]
    (height, width), `flip` int32 [].
    """
    return {
        "encoded": [np.frombuffer(data, dtype=np.uint8) for data in files],
        "frames": [view.indices.astype(np.int32) for view in views],
        "corner": [np.array([view.box.top, view.box.left], dtype=np.int32) for view in views],
        "extent": [np.array([view.box.height, view.box.width], dtype=np.int32) for view in views],
        "flip": [np.array(view.flip, dtype=np.int32) for view in views],
    }
