"""Packing as a program that is killed, interrupted and short of space, and training from what it wrote."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from simvtp_ds.config import MaskConfig
from simvtp_ds.data.decode import BadClip
from simvtp_ds.data.examples import PretrainExamples
from simvtp_ds.data.loader import Loader
from simvtp_ds.data.manifest import Clip, Manifest
from simvtp_ds.data.pack import PackConfig, pack
from simvtp_ds.data.prepare import prepare
from simvtp_ds.data.storage import read_source
from simvtp_ds.data.text import Tokenizer
from simvtp_ds.data.transcode import Encoding
from simvtp_ds.data_config import DataConfig, StorageConfig
from simvtp_ds.progress import silence

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

SCRIPT = Path(__file__).resolve().parents[2] / "launch/prepare.py"
SMALL = Encoding(short_side=96, gop=8)
VIDEOS, DISTINCT = 40, 8


def render(path: Path, seed: int, frames: int, side: int) -> None:
    """A pattern of noise that moves."""
    pattern = np.random.default_rng(seed).integers(0, 255, (side, side + frames, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"threads": "1", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = side, side, "yuv420p"
        for i in range(frames):
            picture = np.ascontiguousarray(pattern[:, i : i + side])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 videos, each of 8 under five names, one of the names with two captions, and two rows that are refused."""
    folder = tmp_path_factory.mktemp("corpus")
    captions: dict[str, list[str]] = {}
    for number in range(VIDEOS):
        name = f"{number}.mp4"
        if number < DISTINCT:
            render(folder / name, number, 60 + number, 160)
        else:
            (folder / name).hardlink_to(folder / f"{number % DISTINCT}.mp4")
        captions[name] = [f"video number {number}"]
    captions["7.mp4"].append("the seventh")
    captions |= {"gone.mp4": ["a ghost"], "empty.mp4": ["nothing"]}
    (folder / "empty.mp4").touch()
    (folder / "captions.json").write_text(json.dumps(captions))
    return folder


def command(corpus: Path, out: Path, folder: Path) -> list[str]:
    options = ["--short-side", "96", "--gop", "8", "--shard-mib", "1", "--workers", "2"]
    return [
        sys.executable,
        str(SCRIPT),
        str(corpus / "captions.json"),
        "--out",
        str(out),
        "--pack",
        str(folder),
        *options,
    ]


def content(folder: Path) -> dict[str, str]:
    """sha256 of every file."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def undisturbed(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus packed by one run."""
    folder = tmp_path_factory.mktemp("undisturbed")
    subprocess.run(command(corpus, folder / "out", folder / "set"), check=True, timeout=300, capture_output=True)
    return folder / "set"


def state(folder: Path) -> int:
    """How many videos a packing has transcoded so far, in shards or not yet: a number that never falls."""
    videos = {int(path.stem) for path in (folder / "work").glob("*.json")}
    for path in (folder / "index").glob("[0-9]*.jsonl"):  # written before the work files of its videos go
        shard = json.loads(path.read_text().splitlines()[0])
        videos.update(range(shard["first"], shard["end"]))
    return len(videos)


def test_ten_kills_at_random_points_leave_the_same_shards_and_manifest(corpus, undisturbed, tmp_path):
    random = np.random.default_rng(11)
    run = command(corpus, tmp_path / "out", tmp_path / "set")
    progress = []
    # The first two are killed wherever they are, the others at counts of videos that leave the run work to do however
    # fast the machine is.
    for results in [0, 0, *range(3, VIDEOS * 2 // 3, 3)]:
        process = subprocess.Popen(run, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 120
        while results and state(tmp_path / "set") < results and process.poll() is None and time.monotonic() < end:
            time.sleep(0.002)
        time.sleep(random.uniform(0.0, 1.0 if results == 0 else 0.05))
        assert process.poll() is None, "the run was over before it was killed: give it more to do"
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        progress.append(state(tmp_path / "set"))
    assert not (tmp_path / "set/manifest.arrow").exists()
    assert len(set(progress)) > 3, "most of the kills came before anything was done"
    done = subprocess.run(run, capture_output=True, text=True, timeout=300, check=True)
    assert done.stderr == ""
    assert int(done.stdout.partition("packing: 0 of ")[2].split()[0]) < VIDEOS  # it went on from what was there
    assert content(tmp_path / "set") == content(undisturbed)
    assert sum(name.startswith("shards/") for name in content(undisturbed)) >= 3


def test_ctrl_c_ends_in_one_line_and_the_next_run_goes_on(corpus, undisturbed, tmp_path):
    run = command(corpus, tmp_path / "out", tmp_path / "set")
    process = subprocess.Popen(run, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 120
    while state(tmp_path / "set") < 4 and time.monotonic() < end:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "interrupted; the same command goes on where this one stopped\n")
    subprocess.run(run, check=True, timeout=300, capture_output=True)
    assert content(tmp_path / "set") == content(undisturbed)


def is_one_error(done: subprocess.CompletedProcess[str], reason: str, folder: Path) -> None:
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert reason in done.stderr and str(folder) in done.stderr
    assert not (folder / "manifest.arrow").exists()


def test_a_full_disk_ends_in_one_line_and_the_next_run_goes_on(corpus, undisturbed, tmp_path):
    # A limit on file sizes stands in for the full disk: 500 kB do not hold a shard.
    run = command(corpus, tmp_path / "out", tmp_path / "set")
    code = (
        f"import resource, sys; sys.argv = {run[1:]!r}; sys.path.insert(0, {str(SCRIPT.parent)!r}); import prepare\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000)); sys.exit(prepare.main())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    is_one_error(done, "File too large", tmp_path / "set")
    subprocess.run(run, check=True, timeout=300, capture_output=True)
    assert content(tmp_path / "set") == content(undisturbed)


def test_a_video_that_cannot_be_written_ends_in_one_line_and_the_next_run_goes_on(corpus, undisturbed, tmp_path):
    run = command(corpus, tmp_path / "out", tmp_path / "set")
    (tmp_path / "set/work/000000009.mp4").mkdir(parents=True)  # in the way
    is_one_error(
        subprocess.run(run, capture_output=True, text=True, timeout=300, check=False),
        "Is a directory",
        tmp_path / "set",
    )
    (tmp_path / "set/work/000000009.mp4").rmdir()
    subprocess.run(run, check=True, timeout=300, capture_output=True)
    assert content(tmp_path / "set") == content(undisturbed)


def test_a_folder_that_cannot_be_written_or_has_other_settings_is_one_line(corpus, undisturbed, tmp_path):
    (tmp_path / "file").touch()
    for folder, more, reason in (
        (tmp_path / "file/set", [], "Not a directory"),
        (undisturbed, ["--gop", "4"], "'gop': 8"),
    ):
        run = [*command(corpus, tmp_path / "out", folder), *more]
        done = subprocess.run(run, capture_output=True, text=True, timeout=300, check=False)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
        assert str(folder) in done.stderr and reason in done.stderr


def test_a_video_that_hangs_or_is_gone_costs_that_video_only(corpus, tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in ("0.mp4", "1.mp4", "2.mp4", "3.mp4"):
        (videos / name).write_bytes((corpus / name).read_bytes())
    (videos / "captions.json").write_text(json.dumps({f"{i}.mp4": f"number {i}" for i in range(4)}))
    prepare(videos / "captions.json", tmp_path / "out", workers=2)
    (videos / "1.mp4").unlink()
    os.mkfifo(videos / "1.mp4")  # opening it waits for ever
    (videos / "2.mp4").unlink()
    summary = pack(tmp_path / "out", tmp_path / "set", PackConfig(SMALL), workers=2, timeout=4.0, show=silence)
    assert (summary.videos, summary.refused) == (2, {"hung": 1, "not transcoded": 1})
    refused = [json.loads(line) for line in (tmp_path / "set/refused.jsonl").read_text().splitlines()]
    assert [row["video"] for row in refused] == ["1.mp4", "2.mp4"]
    (videos / "1.mp4").unlink()
    (videos / "2.mp4").write_bytes(b"another")
    summary = pack(tmp_path / "out", tmp_path / "plain", PackConfig(), workers=2, timeout=4.0, show=silence)
    assert summary.refused == {"file unreadable": 1, "file changed": 1}
    assert [clip.clip_id for clip in rows(tmp_path / "plain")] == ["0.mp4", "3.mp4"]


def rows(folder: Path) -> list[Clip]:
    manifest = Manifest.open(folder)
    return [manifest[i] for i in range(len(manifest))]


def load(folder: Path, bad: list[BadClip], storage: StorageConfig | None = None) -> list[torch.Tensor]:
    """Frames of an epoch's batches."""
    storage = storage or StorageConfig()
    data = DataConfig(
        num_frames=4, frame_stride=4, image_size=48, workers=2, prefetch=2, backend="cpu", storage=storage
    )
    manifest = Manifest.open(folder, storage.root)
    examples = PretrainExamples(manifest, Tokenizer.load(folder), data, MaskConfig(), (2, 3, 3), seed=5)
    loader = Loader(examples, data, 4, 1, 0, 1, end_step=len(manifest) // 4, on_bad=bad.append)
    return [batch.frames for batch in loader]


def test_a_loader_finishes_over_members_of_noise_and_reports_exactly_those(undisturbed, tmp_path):
    subprocess.run(["cp", "-r", str(undisturbed), str(tmp_path / "set")], check=True)
    clips = rows(tmp_path / "set")
    noisy = {"3.mp4", "25.mp4"}  # 5 % of 40
    for clip in clips:
        if clip.clip_id in noisy:
            with Path(clip.uri).open("r+b") as file:
                file.seek(clip.offset)
                file.write(np.random.default_rng(1).bytes(clip.length))
    bad: list[BadClip] = []
    batches = load(tmp_path / "set", bad)
    assert len(batches) == len(clips) // 4 == 10
    assert {clip.clip_id for clip in bad} == noisy
    clean = load(undisturbed, [])
    same = sum(int(torch.equal(a, b)) for x, y in zip(batches, clean, strict=True) for a, b in zip(x, y, strict=True))
    assert same == 4 * 10 - len(bad)


class _Handler(BaseHTTPRequestHandler):
    """Ranges of the files of a folder; the first answer to every third range is at fault, each time in another way."""

    root: Path
    seen: Counter[str]
    lock = threading.Lock()

    def do_GET(self) -> None:
        wanted = self.headers["Range"].removeprefix("bytes=").split("-")
        first, last = int(wanted[0]), int(wanted[1])
        with self.lock:
            name = f"{self.path} {first} {last}"
            fault = len(self.seen) % 9 if name not in self.seen else -1
            self.seen[name] += 1
        with (self.root / self.path[1:]).open("rb") as file:
            file.seek(first)
            data = file.read(last - first + 1)
        if fault == 0:
            self.send_error(503)
            return
        if fault == 3:
            time.sleep(2.0)  # the client has gone by then
        self.send_response(206)
        self.send_header("Content-Length", str(len(data) // 2 if fault == 6 else len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if fault == 6 else data)

    def log_message(self, format: str, *args: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Nothing: the client did not wait."""


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, Counter[str]]]:
    """The address of a server of a folder's files, and how often each range was asked for."""
    handler = type("Handler", (_Handler,), {"root": folder, "seen": Counter()})
    server = _Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", handler.seen
    finally:
        server.shutdown()
        server.server_close()


def test_batches_over_http_are_those_of_the_local_disk_whatever_fails_at_first(undisturbed, tmp_path):
    local = load(undisturbed, [])
    bad: list[BadClip] = []
    with served(undisturbed) as (address, seen):
        storage = StorageConfig(root=address, cache_dir=str(tmp_path / "cache"), timeout=1.0, retries=3)
        remote = load(undisturbed, bad, storage)
        asked = seen.copy()
        again = load(undisturbed, bad, storage)
    assert not bad
    assert seen == asked, "the cache asked again"
    assert len(asked) >= 38 and asked.total() - len(asked) >= 8
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(local, remote, again, strict=True))


def test_a_server_that_stays_away_costs_the_clip_and_says_why(undisturbed):
    clip = rows(undisturbed)[0]
    storage = StorageConfig(timeout=1.0, retries=1)
    with served(undisturbed) as (address, _):
        pass
    with pytest.raises(OSError, match=rf"{address}/shards/000000.tar: bytes \d+ to \d+ not read in 2 tries.*connect"):
        read_source(clip.source._replace(uri=f"{address}/shards/000000.tar"), storage)


@pytest.mark.parametrize("encoding", [None, Encoding(short_side=64, frames_per_second=5.0)])
def test_every_odd_file_and_every_clip_is_packed_or_refused_with_a_reason(shared, tmp_path, encoding):
    odd = [path.name for path in sorted((shared / "data/odd").iterdir()) if path.suffix not in (".jsonl", ".txt")]
    (tmp_path / "odd.json").write_text(json.dumps({name: f"what {name} shows" for name in odd}))
    prepare(tmp_path / "odd.json", tmp_path / "out", shared / "data/odd", workers=2)
    summary = pack(tmp_path / "out", tmp_path / "set", PackConfig(encoding, 1), workers=2, timeout=120.0, show=silence)
    refused = [json.loads(line) for line in (tmp_path / "set/refused.jsonl").read_text().splitlines()]
    assert summary.videos == 22 and summary.refused == {}
    assert sorted([row["video"] for row in refused] + [clip.clip_id for clip in rows(tmp_path / "set")]) == odd
    assert all(": " in row["reason"] for row in refused)
