"""Packing: what the shards and the manifest hold, what is refused, and how it goes on after it was stopped."""

from __future__ import annotations

import hashlib
import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from test_probe import write_video
from webdataset.compat import WebDataset

from simvtp_ds.data.manifest import Clip, Manifest
from simvtp_ds.data.pack import PackConfig, PackError, check_settings, pack
from simvtp_ds.data.pack_result import PackSummary
from simvtp_ds.data.prepare import prepare
from simvtp_ds.data.probe import probe_file
from simvtp_ds.data.storage import read_source
from simvtp_ds.data.text import Tokenizer
from simvtp_ds.data.transcode import Encoding
from simvtp_ds.progress import silence

PLAIN = PackConfig(shard_mib=0.05)
SMALL = PackConfig(Encoding(short_side=32, gop=8), shard_mib=0.02)
CAPTIONS = {
    "0.mp4": ["a red ball", "a ball, red"],
    "dir/1.v2.mkv": ["zwei Bälle"],
    "2.mp4": ["a square"],
    "gone.mp4": ["a ghost"],
    "3": ["no extension"],
    "./0.mp4": ["the same ball"],
}


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    """A prepared folder: 4 videos, 6 captions of them, one refused row."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "dir").mkdir()
    for number, name in enumerate(("0.mp4", "dir/1.v2.mkv", "2.mp4", "3.mp4")):
        write_video(folder / name, 30 + number)
    (folder / "3.mp4").rename(folder / "3")
    (folder / "captions.json").write_text(json.dumps(CAPTIONS))
    prepare(folder / "captions.json", folder / "out", workers=2)
    return folder / "out"


@pytest.fixture(scope="module")
def plain(out) -> Path:
    """The files as they are, in shards."""
    packed(out, out.parent / "plain", PLAIN)
    return out.parent / "plain"


def packed(out: Path, folder: Path, config: PackConfig) -> PackSummary:
    return pack(out, folder, config, workers=2, timeout=60.0, show=silence)


def rows(folder: Path) -> list[Clip]:
    manifest = Manifest.open(folder)
    return [manifest[i] for i in range(len(manifest))]


def samples(folder: Path) -> list[dict]:
    """The members of all shards as the webdataset library groups them."""
    shards = sorted(str(path) for path in (folder / "shards").iterdir())
    return list(WebDataset(shards, shardshuffle=False, empty_check=False))


def content(folder: Path) -> dict[str, str]:
    """sha256 of every file."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_webdataset_reads_each_video_once_with_its_captions(out, plain):
    before = {clip.clip_id: clip for clip in rows(out)}
    found = samples(plain)
    assert [sample["__key__"] for sample in found] == [f"{i:09d}" for i in range(4)]
    for sample, (clip_id, suffix) in zip(
        found, [("0.mp4", "mp4"), ("dir/1.v2.mkv", "mkv"), ("2.mp4", "mp4"), ("3", "video")], strict=True
    ):
        assert sample[suffix] == Path(before[clip_id].uri).read_bytes()
        facts = json.loads(sample["json"])
        captions = [clip.caption for clip in rows(out) if clip.clip_id == clip_id]
        assert (facts["clip_id"], facts["captions"]) == (clip_id, captions)
        assert sample["txt"].decode() == captions[0]
        assert (facts["frames"], facts["width"]) == (before[clip_id].frames, 64)


def test_the_manifest_keeps_its_rows_and_points_into_the_shards(out, plain):
    assert len({path.name for path in (plain / "shards").iterdir()}) > 1
    assert max(path.stat().st_size for path in (plain / "shards").iterdir()) < 0.05 * 2**20 + 10240
    assert len(rows(plain)) == len(rows(out)) == 6
    for old, new in zip(rows(out), rows(plain), strict=True):
        assert read_source(new.source) == Path(old.uri).read_bytes()
        assert replace(new, uri=old.uri, offset=0) == old
        assert Path(new.uri).parent == plain / "shards"
    assert Tokenizer.load(plain).vocab_size == Tokenizer.load(out).vocab_size
    assert (plain / "refused.jsonl").read_bytes() == (out / "refused.jsonl").read_bytes()
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=plain, check=True, capture_output=True)


def test_a_packed_set_may_be_moved(plain, tmp_path):
    (tmp_path / "elsewhere").symlink_to(plain)
    assert [clip.uri for clip in rows(tmp_path / "elsewhere")] == [
        str(tmp_path / "elsewhere/shards" / Path(clip.uri).name) for clip in rows(plain)
    ]


def test_transcoded_videos_are_described_as_they_are_in_the_shard(out, tmp_path):
    summary = packed(out, tmp_path / "small", SMALL)
    for old, new in zip(rows(out), rows(tmp_path / "small"), strict=True):
        (tmp_path / "a.mp4").write_bytes(read_source(new.source))
        probe = probe_file(str(tmp_path / "a.mp4"))
        assert (new.frames, new.fps, new.width, new.height, new.codec) == (old.frames, probe.fps, 32, 32, "h264")
        assert (probe.frames, probe.width, probe.reason) == (old.frames, 32, "")
    assert (summary.videos, summary.captions, summary.refused) == (4, 6, {})
    assert summary.shards == len(list((tmp_path / "small/shards").iterdir())) > 1
    assert not (tmp_path / "small/work").exists()


def test_what_is_finished_is_not_done_again_and_what_is_missing_is(out, plain, tmp_path):
    before = content(plain)
    stamp = (plain / "shards/000000.tar").stat().st_mtime_ns
    packed(out, plain, PLAIN)
    assert content(plain) == before
    (plain / "manifest.arrow").unlink()
    (plain / "shards/000001.tar").write_bytes(b"cut short")
    packed(out, plain, PLAIN)
    assert content(plain) == before
    assert (plain / "shards/000000.tar").stat().st_mtime_ns == stamp


def test_damage_since_an_earlier_run_is_found_before_the_manifest_is_written(out, plain):
    before = content(plain)
    (plain / "manifest.arrow").unlink()
    with (plain / "shards/000000.tar").open("r+b") as file:
        file.seek(3000)
        file.write(b"noise")
    with pytest.raises(PackError, match=r"the bytes of shards/000000.tar are no longer those written"):
        packed(out, plain, PLAIN)
    assert not (plain / "manifest.arrow").exists()
    packed(out, plain, PLAIN)
    assert content(plain) == before


def test_other_settings_and_other_folders_are_refused_with_both_values(out, plain, tmp_path):
    with pytest.raises(PackError, match=r"was packed with shard_mib 0\.05, asked for is 512\.0"):
        check_settings(out, plain, PackConfig())
    with pytest.raises(PackError, match=r"with videos .*as they are.*, asked for is .*'short_side': 32, 'gop': 8"):
        check_settings(out, plain, replace(PLAIN, encoding=SMALL.encoding))
    with pytest.raises(PackError, match=r"with manifest [0-9a-f]{64}, asked for is other"):
        check_settings(out, plain, PLAIN, "other")
    with pytest.raises(PackError, match="are both"):
        check_settings(out, out, PLAIN)
    with pytest.raises(PackError, match="holds a manifest that was not packed"):
        check_settings(tmp_path, out, PLAIN)
    check_settings(out, plain, PLAIN)
    check_settings(out, tmp_path / "new", PLAIN)
