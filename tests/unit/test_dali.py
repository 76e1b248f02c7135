"""DALI beside the worker processes, without a GPU: its CPU operators through the whole loader, and the GPU's graph.

VP9 is what both can decode; H.264 shows what goes to the worker processes. What NVDEC itself gives: test_gpu.py.
"""

from __future__ import annotations

import importlib
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import av
import deepspeed.accelerator
import numpy as np
import pytest
import torch
from av.video.stream import VideoStream

from simvtp_ds.config import MaskConfig
from simvtp_ds.data.augment import Augmentation, Erasing
from simvtp_ds.data.backend import choose_backend
from simvtp_ds.data.dali_clips import ClipPipeline
from simvtp_ds.data.dali_decoder import DaliDecoder
from simvtp_ds.data.dali_graph import CODECS, clip_graph
from simvtp_ds.data.decode import BadClip
from simvtp_ds.data.examples import PretrainExamples
from simvtp_ds.data.loader import Loader
from simvtp_ds.data.manifest import Clip, Manifest, write_manifest
from simvtp_ds.data.sampling import Box, View
from simvtp_ds.data.storage import Source
from simvtp_ds.data.text import Tokenizer, train_wordpiece
from simvtp_ds.data.worker import Task, failure
from simvtp_ds.data_config import DataConfig
from simvtp_ds.types import Batch

# The box is as large as the clip: nothing is resized.
CROPPED = DataConfig(
    num_frames=4,
    frame_stride=3,
    image_size=32,
    crop_scales=(0.5,),
    flip=True,
    workers=1,
    prefetch=2,
    max_words=8,
    max_bad_share=1.0,
    host_share=0.0,
)
RESIZED = replace(CROPPED, crop_scales=(1.0, 0.875, 0.75, 0.66))
DALI = partial(DaliDecoder, device=torch.device("cpu"))
BATCH = 4


def render(path: Path, shade: int, codec: str = "libvpx-vp9") -> Path:
    """20 frames of 64 x 64, every clip and every frame different; the longest strides reach past the last one."""
    options = {"libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "g": "6"}, "libx264": {"preset": "ultrafast"}}
    with av.open(str(path), mode="w") as container:
        stream = container.add_stream(codec, rate=25, options=options[codec])
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        ramp = np.arange(64)
        for t in range(20):
            picture = np.stack(np.broadcast_arrays(ramp[:, None] * 3, ramp[None] * 2 + 6 * t, 20 * shade), -1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture.astype(np.uint8), format="rgb24")))
        container.mux(stream.encode())
    return path


def clip(path: Path, codec: str = "vp9", frames: int = 20) -> Clip:
    return Clip(path.stem, str(path), 0, path.stat().st_size, "red dog", frames, 25.0, 64, 64, codec)


@pytest.fixture(scope="session")
def vp9(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    folder = tmp_path_factory.mktemp("vp9")
    return [clip(render(folder / f"vp9-{i}.webm", i)) for i in range(7)]


@pytest.fixture(scope="session")
def h264(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    return clip(render(tmp_path_factory.mktemp("h264") / "h264.mp4", 9, "libx264"), "h264")


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_wordpiece(["red", "dog"], 50)


@pytest.fixture
def by_dali(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that DALI was given."""
    seen: list[str] = []
    decode = ClipPipeline.decode

    def noted(self: ClipPipeline, tasks: Sequence[Task]) -> object:
        seen.extend(Path(task.source.uri).stem for task in tasks)
        return decode(self, tasks)

    monkeypatch.setattr(ClipPipeline, "decode", noted)
    return seen


Batches = Callable[..., list[Batch]]


@pytest.fixture
def batches(tokenizer: Tokenizer, tmp_path: Path) -> Batches:
    """The micro batches of some clips, steps 0 and 1 unless told so."""

    def make(rows: list[Clip], data: DataConfig, **more: object) -> list[Batch]:
        write_manifest(tmp_path, rows)
        examples = PretrainExamples(Manifest.open(tmp_path), tokenizer, data, MaskConfig(), (2, 2, 2), seed=3)
        place: dict = {"accumulation": 1, "rank": 0, "world_size": 1, "end_step": 2} | more
        return list(Loader(examples, data, BATCH, **place))

    return make


def assert_same(ours: list[Batch], theirs: list[Batch]) -> None:
    for first, second in zip(ours, theirs, strict=True):
        for name, a, b in zip(first._fields, first, second, strict=True):
            assert a.dtype == b.dtype and torch.equal(a, b), name


def test_dali_equals_the_worker_processes_to_the_pixel_and_leaves_h264_to_them(
    batches: Batches, vp9: list[Clip], h264: Clip, by_dali: list[str]
) -> None:
    rows = [*vp9, h264]
    ours = batches(rows, CROPPED, decoder=DALI)
    assert sorted(by_dali) == sorted(row.clip_id for row in vp9)
    assert_same(ours, batches(rows, replace(CROPPED, backend="cpu")))
    assert len({frames.numpy().tobytes() for batch in ours for frames in batch.frames}) == 8


def test_a_resized_clip_differs_by_one_level_at_most(batches: Batches, vp9: list[Clip], by_dali: list[str]) -> None:
    rows = [*vp9, replace(vp9[0], clip_id="again")]
    ours, theirs = (batches(rows, RESIZED, decoder=decoder) for decoder in (DALI, None))
    assert len(by_dali) == 8
    differences = torch.cat([abs(a.frames.int() - b.frames.int()) for a, b in zip(ours, theirs, strict=True)])
    assert differences.max() <= 1 and differences.double().mean() < 0.2


def test_a_broken_clip_costs_itself_only_and_is_replaced_as_without_dali(
    batches: Batches, vp9: list[Clip], by_dali: list[str], tmp_path: Path
) -> None:
    noise, short = tmp_path / "noise.webm", tmp_path / "short.webm"
    noise.write_bytes(np.random.default_rng(0).bytes(3000))
    short.write_bytes(Path(vp9[0].uri).read_bytes())
    rows = [*vp9[:6], clip(noise), clip(short, frames=500)]  # 20 frames are there
    bad: dict[bool, list[BadClip]] = {True: [], False: []}
    with pytest.warns(UserWarning, match=r"DALI did not decode .*; worker processes try"):
        ours = batches(rows, CROPPED, on_bad=bad[True].append, decoder=DALI)
    assert {"noise", "short"} < set(by_dali)
    assert_same(ours, batches(rows, CROPPED, on_bad=bad[False].append))
    assert bad[True] == bad[False] and {found.clip_id for found in bad[True]} == {"noise", "short"}


def test_batches_are_the_same_after_a_resume_and_with_a_shared_load(
    batches: Batches, vp9: list[Clip], by_dali: list[str]
) -> None:
    whole = batches(vp9, CROPPED, end_step=6, decoder=DALI)
    by_dali.clear()
    shared = replace(CROPPED, host_share=0.5)
    assert_same(batches(vp9, shared, start_step=2, end_step=6, decoder=DALI), whole[2:])
    assert 0 < len(by_dali) < 4 * BATCH
    first = sorted(by_dali)
    by_dali.clear()
    assert_same(batches(vp9, replace(shared, host_share="auto"), start_step=2, end_step=6, decoder=DALI), whole[2:])
    by_dali.clear()
    batches(vp9, shared, start_step=2, end_step=6, decoder=DALI)
    assert sorted(by_dali) == first  # a share is drawn by lot, and the lot is the same every time


@pytest.fixture
def decoder() -> Iterator[DaliDecoder]:
    with DALI(CROPPED, (1, BATCH, 4, 32, 32, 3)) as opened:
        yield opened


def task_of(clip: Clip, position: int, **view: object) -> Task:
    shown = View(np.arange(4), Box(0, 0, 32, 32), False)._replace(**view)  # pyright: ignore[reportArgumentType]
    return Task(0, position, Source(clip.uri, clip.offset, clip.length), shown, clip.codec, (clip.height, clip.width))


def finish(decoder: DaliDecoder, count: int) -> torch.Tensor:
    """The slot, once all that was submitted is in its place."""
    reader, _writer = multiprocessing.Pipe(duplex=False)
    done: list[int] = []
    while len(done) < count:
        for outcome in decoder.poll(reader):
            assert failure(outcome) is None
            done.append(outcome.task.position)
    assert sorted(done) == list(range(count))
    return decoder.take(0)


def test_what_a_hanging_run_should_decode_is_decoded_by_worker_processes(
    decoder: DaliDecoder, vp9: list[Clip], monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = [task_of(vp9[i], i) for i in range(BATCH)]
    decoder.submit(tasks)
    expected = finish(decoder, BATCH)
    released = threading.Event()
    monkeypatch.setattr(ClipPipeline, "decode", lambda self, tasks: released.wait(60))
    decoder.submit(tasks)
    while decoder._waiting:
        time.sleep(0.01)
    for lane in decoder._lanes:
        lane.deadline = 0.0 if lane.group else lane.deadline  # as if the time were over
    with pytest.warns(UserWarning, match=r"a DALI run hangs.*vp9-"):
        found = finish(decoder, BATCH)
    assert torch.equal(found, expected)
    released.set()


def test_a_codec_that_never_works_is_soon_left_to_the_worker_processes(
    monkeypatch: pytest.MonkeyPatch, h264: Clip, by_dali: list[str]
) -> None:
    monkeypatch.setitem(CODECS, "cpu", CODECS["cpu"] | {"h264"})  # as a GPU that lacks it
    tasks = [task_of(h264, i) for i in range(BATCH)]
    with DaliDecoder(CROPPED, (1, BATCH, 4, 32, 32, 3), torch.device("cpu")) as decoder, pytest.warns(UserWarning):
        for _ in range(3):
            decoder.submit(tasks)
            finish(decoder, BATCH)
        tried = len(by_dali)
        decoder.submit(tasks)
        finish(decoder, BATCH)
    assert len(by_dali) == tried >= 3


def test_augmented_clips_are_left_to_the_worker_processes(
    decoder: DaliDecoder, vp9: list[Clip], by_dali: list[str]
) -> None:
    erased = Augmentation(erasing=Erasing(0, 0, 32, 32, 7))
    decoder.submit([task_of(vp9[0], 0), task_of(vp9[1], 1, augmentation=erased)])
    finish(decoder, 2)
    assert by_dali == ["vp9-0"]


def test_pictures_of_another_size_than_the_manifests_are_left_to_the_worker_processes(
    decoder: DaliDecoder, vp9: list[Clip]
) -> None:
    decoder.submit([task_of(replace(vp9[0], height=63), 0)])
    with pytest.warns(UserWarning, match=r"vp9-0.*64.*63.*in the manifest"):
        finish(decoder, 1)


def test_a_dali_that_does_not_start_ends_the_run_with_the_remedy(
    batches: Batches, vp9: list[Clip], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: ClipPipeline) -> None:
        raise RuntimeError("no decoder on this device")

    monkeypatch.setattr(ClipPipeline, "_build", fail)
    with pytest.raises(RuntimeError, match=r"no decoder on this device.*data\.backend to cpu"):
        batches(vp9, CROPPED, decoder=DALI)


def test_every_operator_of_the_gpus_graph_exists_there_and_is_not_deprecated() -> None:
    backend: Any = importlib.import_module("nvidia.dali.backend")
    graph: Any = clip_graph("gpu", 4, (224, 224), None, 2)
    assert b"decoders__Video" in graph.serialize()
    found = {}
    for operator in graph._ops:  # no public way to ask a graph for its operators
        name, device = operator._op.schema.Name(), operator._op.device
        schema = backend.TryGetSchema(name)
        assert schema is not None and not schema.IsDeprecated(), name
        assert device in schema.GetSupportedBackends(), f"{name} on {device}"
        found[name] = device
    assert found == {
        "ExternalSource": "cpu",
        "decoders__Video": "mixed",
        "Slice": "gpu",
        "Resize": "gpu",
        "Flip": "gpu",
        "_Shape": "cpu",  # of what a clip was decoded to; reads no pixels
    }


def test_the_backend_follows_the_machine_and_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = replace(CROPPED, backend="dali")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_backend(replace(CROPPED, backend="auto")) == choose_backend(replace(CROPPED, backend="cpu")) == "cpu"
    with pytest.raises(ValueError, match=r"data\.backend is dali.*no NVIDIA GPU.*data\.backend to cpu"):
        choose_backend(asked)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match="DeepSpeed trains on cpu: unset DS_ACCELERATOR"):
        choose_backend(asked)

    class Cuda:
        def device_name(self) -> str:
            return "cuda"

    monkeypatch.setattr(deepspeed.accelerator, "get_accelerator", Cuda)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    assert choose_backend(replace(CROPPED, backend="auto")) == choose_backend(asked) == "dali"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla V100")
    with pytest.raises(ValueError, match="Tesla V100: replace nvidia-dali-cuda130 by nvidia-dali-cuda120"):
        choose_backend(asked)
