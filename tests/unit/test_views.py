"""Where evaluation looks: places in time and space, worked out by hand."""

from __future__ import annotations

import pytest

from simvtp_ds.data.manifest import Clip
from simvtp_ds.data.sampling import Box
from simvtp_ds.data_config import DataConfig
from simvtp_ds.evaluation.views import plan_views

DATA = DataConfig(num_frames=4, frame_stride=3, image_size=32)  # a clip spans 10 frames


def clip(frames: int, width: int = 60, height: int = 40) -> Clip:
    return Clip("a", "a.mp4", 0, 1, "a caption", frames, 25.0, width, height, "h264")


def test_the_first_view_is_the_middle_of_time_and_space() -> None:
    (only,) = plan_views(clip(31), DATA, 1, 1)
    assert only.view.indices.tolist() == [10, 13, 16, 19]  # starts 0 .. 21
    assert only.view.box == Box(0, 10, 40, 40)
    assert (only.count, only.view.flip) == (1, False)


def test_segments_and_crops_cover_the_file_from_end_to_end() -> None:
    views = plan_views(clip(31), DATA, 3, 3)
    found = {(int(each.view.indices[0]), each.view.box.left) for each in views}
    assert found == {(start, left) for start in (0, 10, 21) for left in (0, 10, 20)}
    assert [each.count for each in views] == [1] * 9
    assert max(int(each.view.indices[-1]) for each in views) == 30
    tall = {each.view.box for each in plan_views(clip(31, 40, 70), DATA, 1, 3)}
    assert tall == {Box(top, 0, 40, 40) for top in (0, 15, 30)}


def test_the_middle_view_is_decoded_also_where_it_is_none_of_the_segments() -> None:
    views = plan_views(clip(31), DATA, 2, 1)
    assert [(int(each.view.indices[0]), each.count) for each in views] == [(10, 0), (0, 1), (21, 1)]


def test_equal_views_are_decoded_once_and_count_several_times() -> None:
    square = plan_views(clip(31, 50, 50), DATA, 3, 3)
    assert [(int(each.view.indices[0]), each.count) for each in square] == [(10, 3), (0, 3), (21, 3)]
    (short,) = plan_views(clip(4, 50, 50), DATA, 15, 3)
    assert short.view.indices.tolist() == [0, 3, 3, 3]
    assert short.count == 45


@pytest.mark.parametrize(("segments", "crops"), [(0, 1), (1, 2)])
def test_impossible_views_are_refused(segments: int, crops: int) -> None:
    with pytest.raises(ValueError, match="segments x"):
        plan_views(clip(31), DATA, segments, crops)
