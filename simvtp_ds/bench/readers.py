"""Ways to decode a clip on the CPU with one thread, ours and others; each gives the view's frames, cropped and resized.

A reader is opened once a process. Opening raises where its library is not installed or does not load.
"""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import Any, TypeAlias

import av
import cv2
import numpy as np
from av.codec.context import ThreadType

from simvtp_ds.bench.cases import Case
from simvtp_ds.data.decode import decode_into
from simvtp_ds.data.storage import Source, open_source, read_source

Reader: TypeAlias = Callable[[Case], np.ndarray | None]  # uint8 [T, size, size, 3] in RGB; None: makes no pictures

OURS, BARE = "ours", "FFmpeg, bare"


def open_reader(name: str, size: int) -> Reader:
    """A reader by its name in `READERS`.

    Raises:
        ImportError, OSError, RuntimeError: Its library is missing or does not load.
    """
    cv2.setNumThreads(1)
    return READERS[name](size)


def _ours(size: int) -> Reader:
    def read(case: Case) -> np.ndarray:
        out = np.empty((len(case.view.indices), size, size, 3), np.uint8)
        decode_into(out, case.clip.source, case.view)
        return out

    return read


def _bare(size: int) -> Reader:
    """The yardstick: every frame from the key frame to the last wanted one is decoded, and nothing is done with it.

    Where to start and to end is looked up once a clip, outside the time.
    """
    spans: dict[Source, tuple[int, int]] = {}

    def read(case: Case) -> None:
        source = case.clip.source
        start, end = spans.get(source) or spans.setdefault(source, _span(case))
        with open_source(source) as file, av.open(file, mode="r") as container:
            stream = container.streams.video[0]
            stream.thread_type = ThreadType.NONE
            stream.codec_context.thread_count = 1
            container.seek(start, stream=stream)
            for frame in container.decode(stream):
                if frame.pts is not None and frame.pts >= end:
                    return

    return read


def _span(case: Case) -> tuple[int, int]:
    """Times of the key frame before the first wanted frame and of the last wanted frame."""
    with open_source(case.clip.source) as file, av.open(file, mode="r") as container:
        packets = [(p.pts, p.is_keyframe) for p in container.demux(video=0) if p.size and not p.is_discard]
    times = sorted(pts for pts, _ in packets if pts is not None)
    first, last = times[case.view.indices[0]], times[case.view.indices[-1]]
    return max((pts for pts, key in packets if key and pts is not None and pts <= first), default=times[0]), last


def _decord(size: int) -> Reader:
    from decord import VideoReader, cpu

    def read(case: Case) -> np.ndarray:
        with open_source(case.clip.source) as file:
            source = file if isinstance(file, str) else BytesIO(read_source(case.clip.source))
            frames = VideoReader(source, ctx=cpu(0), num_threads=1).get_batch(case.view.indices).asnumpy()
        return _cropped(frames, case, size)

    return read


def _torchcodec(size: int) -> Reader:
    # Optional; its manual says to import it from there.
    from torchcodec.decoders import VideoDecoder  # pyright: ignore[reportMissingImports, reportPrivateImportUsage]

    def read(case: Case) -> np.ndarray:
        with open_source(case.clip.source) as file:
            source = file if isinstance(file, str) else read_source(case.clip.source)
            try:
                decoder = VideoDecoder(source, dimension_order="NHWC", num_ffmpeg_threads=1)
            except RuntimeError as error:
                if "libtorchcodec" not in str(error):
                    raise
                raise RuntimeError("needs FFmpeg's shared libraries, which are not installed here") from error
            frames = decoder.get_frames_at(case.view.indices.tolist()).data.numpy()
        return _cropped(frames, case, size)

    return read


def _opencv(size: int) -> Reader:
    def read(case: Case) -> np.ndarray:
        one_thread = [cv2.CAP_PROP_N_THREADS, 1]
        with open_source(case.clip.source) as file:
            source: Any = file if isinstance(file, str) else BytesIO(read_source(case.clip.source))
            video = cv2.VideoCapture(source, cv2.CAP_FFMPEG, one_thread)
            video.set(cv2.CAP_PROP_ORIENTATION_AUTO, 0)
            frames, number = [], int(case.view.indices[0])
            video.set(cv2.CAP_PROP_POS_FRAMES, number)
            for index in case.view.indices:
                while number <= index:  # a repeated index repeats the frame
                    if not video.grab():
                        raise RuntimeError(f"OpenCV gives no frame {number} of {case.clip.uri}")
                    number += 1
                picture = video.retrieve()[1]
                frames.append(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))
        return _cropped(np.stack(frames), case, size)

    return read


def _dali(size: int) -> Reader:
    """DALI's CPU decoder through the graph of our DALI backend."""
    from simvtp_ds.data.dali_graph import CODECS, clip_graph, graph_inputs

    pipeline = clip_graph("cpu", group=1, size=(size, size), device_id=None, threads=1)
    pipeline.build()

    def read(case: Case) -> np.ndarray:
        if case.clip.codec not in CODECS["cpu"]:
            raise RuntimeError(f"decodes no {case.clip.codec} on the CPU, only {', '.join(sorted(CODECS['cpu']))}")
        clips, _ = pipeline.run(**graph_inputs([case.view], [read_source(case.clip.source)]))
        return np.array(clips[0])

    return read


def _cropped(frames: np.ndarray, case: Case, size: int) -> np.ndarray:
    """Crop and resize as ours: what a training script would do with another decoder's frames [T, H, W, 3]."""
    top, left, height, width = case.view.box
    crops = frames[:, top : top + height, left : left + width]
    return np.stack([cv2.resize(crop, (size, size), interpolation=cv2.INTER_LINEAR) for crop in crops])


READERS: dict[str, Callable[[int], Reader]] = {
    OURS: _ours,
    "decord2": _decord,
    "torchcodec": _torchcodec,
    "OpenCV": _opencv,
    "DALI, CPU": _dali,
    BARE: _bare,
}
