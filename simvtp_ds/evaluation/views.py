"""Which views of a video are looked at: K segments in time times C crops in space. Nothing is drawn."""

from __future__ import annotations

from typing import NamedTuple

from simvtp_ds.data.manifest import Clip
from simvtp_ds.data.sampling import Box, View, centre_box, centre_indices, spaced_indices
from simvtp_ds.data_config import DataConfig

CROPS = (1, 3)


class PlannedView(NamedTuple):
    """A view to decode and how often it counts in the average of all views."""

    view: View
    count: int


def plan_views(clip: Clip, data: DataConfig, segments: int, crops: int) -> list[PlannedView]:
    """The different views of a clip; the first is the middle of time and space, the single view.

    Segments start evenly between frame 0 and the last start that fits the file (rounded down; one segment: the middle
    one). One crop is the central square of the short side, three are those at the start, middle and end of the long
    side. Views that come out equal (a square picture, a short file) are one view that counts several times; the middle
    view counts 0 where it is none of the segments x crops.

    Raises:
        ValueError: `segments` is below 1 or `crops` neither 1 nor 3.
    """
    if segments < 1 or crops not in CROPS:
        raise ValueError(f"{segments} segments x {crops} crops: give at least 1 segment, and 1 or 3 crops")
    middle = View(
        centre_indices(clip.frames, data.num_frames, data.frame_stride), centre_box(clip.width, clip.height), flip=False
    )
    counts: dict[tuple[int, Box], int] = {(int(middle.indices[0]), middle.box): 0}
    for start in _starts(clip.frames, data, segments):
        for box in _boxes(clip, crops):
            counts[start, box] = counts.get((start, box), 0) + 1
    return [
        PlannedView(
            View(spaced_indices(start, clip.frames, data.num_frames, data.frame_stride), box, flip=False), count
        )
        for (start, box), count in counts.items()
    ]


def _starts(frames: int, data: DataConfig, segments: int) -> list[int]:
    last = max(0, frames - 1 - (data.num_frames - 1) * data.frame_stride)
    return [last // 2] if segments == 1 else [last * k // (segments - 1) for k in range(segments)]


def _boxes(clip: Clip, crops: int) -> list[Box]:
    middle = centre_box(clip.width, clip.height)
    if crops == 1:
        return [middle]
    end = middle._replace(top=clip.height - middle.height, left=clip.width - middle.width)
    return [middle._replace(top=0, left=0), middle, end]
