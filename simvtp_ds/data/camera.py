"""From decoded frames to the RGB pictures of a clip: colours, crop, size, mirror, RandAugment."""

from __future__ import annotations

import cv2
import numpy as np
from av.video.frame import VideoFrame
from av.video.plane import VideoPlane
from av.video.reformatter import Interpolation, VideoReformatter

from simvtp_ds.data.augment import changed
from simvtp_ds.data.sampling import View

SWSCALE = Interpolation.BILINEAR | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND
UNSPECIFIED_SPACE, UNSPECIFIED_RANGE = 2, 0  # AVCOL_SPC_UNSPECIFIED, AVCOL_RANGE_UNSPECIFIED
HALF_CHROMA = ("yuv420p", "yuvj420p")  # 8 bit, chroma of half the width and height
MARGIN = 8  # pixels around a crop: its chroma is interpolated as in the whole picture (not so in parts of 6 pixels)


class Camera:
    """Takes the pictures of one clip.

    The colours are DALI's: BT.601 with centred chroma, whatever matrix, range, chroma place or interlacing the file is
    marked with. A new frame carries no such marks, so every picture is copied to one before swscale sees it.
    Memory is used again from picture to picture: fresh pages cost more than the work done on them.

    Args:
        out: Where the pictures go, uint8 [T, H, W, 3], contiguous.
        view: What they show; T frames.
    """

    def __init__(self, out: np.ndarray, view: View) -> None:
        self._out, self._view = out, view
        self._reformatter = VideoReformatter()
        self._part: VideoFrame | None = None
        self._crop = np.empty((view.box.height, view.box.width, 3), np.uint8)
        self._picture = np.empty(out.shape[1:], np.uint8)

    def shoot(self, index: int, frame: VideoFrame) -> None:
        """Puts frame number `index` of the file wherever the view shows it.

        Raises:
            ValueError: The view's box is not within the picture.
        """
        box = self._view.box
        if box.top + box.height > frame.height or box.left + box.width > frame.width:
            raise ValueError(
                f"a picture of {frame.width} x {frame.height} does not hold {box}; prepare the manifest again"
            )
        if frame.format.name in HALF_CHROMA and frame.width % 2 == 0 and frame.height % 2 == 0:
            crop = self._converted_crop(frame)
        else:
            crop = self._converted(frame)[box.top : box.top + box.height, box.left : box.left + box.width]
        first, *others = np.flatnonzero(self._view.indices == index)
        target, size = self._out[first], self._picture.shape[1::-1]
        if self._view.flip:
            cv2.resize(crop, size, dst=self._picture, interpolation=cv2.INTER_LINEAR)
            cv2.flip(self._picture, 1, dst=target)
        else:
            cv2.resize(crop, size, dst=target, interpolation=cv2.INTER_LINEAR)
        if self._view.augmentation.operations:
            np.copyto(target, changed(target, self._view.augmentation.operations))
        for place in others:
            np.copyto(self._out[place], target)

    def _converted_crop(self, frame: VideoFrame) -> np.ndarray:
        """RGB of the box alone, uint8 [box.height, box.width, 3], the same values as in the whole picture.

        Planar output has vector code in swscale, packed output has not: a third of the time for the same values.
        """
        box = self._view.box
        top, left = max(0, box.top - MARGIN) & ~1, max(0, box.left - MARGIN) & ~1
        bottom = min(frame.height, (box.top + box.height + MARGIN + 1) & ~1)
        right = min(frame.width, (box.left + box.width + MARGIN + 1) & ~1)
        part = self._part
        if part is None or (part.width, part.height, part.format.name) != (
            right - left,
            bottom - top,
            frame.format.name,
        ):
            part = self._part = VideoFrame(right - left, bottom - top, frame.format.name)
        for number, (source, target) in enumerate(zip(frame.planes, part.planes, strict=True)):
            step = 2 if number else 1
            pixels = _rows(source)[top // step : bottom // step, left // step : right // step]
            np.copyto(_rows(target)[: pixels.shape[0], : pixels.shape[1]], pixels)
        planes = self._reformatted(part, "gbrp").planes
        y, x = box.top - top, box.left - left
        green, blue, red = (_rows(plane)[y : y + box.height, x : x + box.width] for plane in planes)
        return cv2.merge((red, green, blue), dst=self._crop)

    def _converted(self, frame: VideoFrame) -> np.ndarray:
        """RGB of the whole picture, uint8 [H, W, 3], of any format."""
        return self._reformatted(_unmarked(frame), "rgb24").to_ndarray()

    def _reformatted(self, frame: VideoFrame, format: str) -> VideoFrame:
        frame.colorspace, frame.color_range = UNSPECIFIED_SPACE, UNSPECIFIED_RANGE
        return self._reformatter.reformat(frame, format=format, interpolation=SWSCALE, threads=1)


def _unmarked(frame: VideoFrame) -> VideoFrame:
    """The frame without the marks of its chroma's place and of interlacing; swscale honours them, DALI does not."""
    if frame.format.is_rgb or frame.format.has_palette or min(plane.line_size for plane in frame.planes) <= 0:
        return frame
    plain = VideoFrame(frame.width, frame.height, frame.format.name)
    for source, target in zip(frame.planes, plain.planes, strict=True):
        size = min(source.line_size, target.line_size)
        np.copyto(_rows(target)[: target.height, :size], _rows(source)[: target.height, :size])
    return plain


def _rows(plane: VideoPlane) -> np.ndarray:
    """The bytes of a plane, uint8 [rows, bytes of a row with its padding]; shares the plane's memory."""
    return np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
