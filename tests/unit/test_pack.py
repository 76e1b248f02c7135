"""Packing: what the shards and the manifest hold, what is refused, and how it goes on after it was stopped."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from test_probe import write_video
from webdataset.compat import WebDataset

from simvtp_ds.data.manifest import Clip, Manifest
from simvtp_ds.data.pack import PackConfig, PackError, check_out, check_settings, pack
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
    check_out(out)
    with pytest.raises(PackError, match="is a packed set; give --out another folder"):
        check_out(plain)


@pytest.mark.parametrize("settings", ["", "{", "[]", "\x00\xff"])
def test_damaged_settings_are_refused_by_name(out, tmp_path, settings):
    (tmp_path / "pack.json").write_bytes(settings.encode("latin-1"))
    with pytest.raises(PackError, match=r"pack\.json: not the settings of a packed set"):
        check_settings(out, tmp_path, PLAIN)


@pytest.mark.parametrize("shard_mib", [0.0, -1.0, float("nan"), float("inf")])
def test_a_size_of_shards_that_is_none_is_refused(shard_mib):
    with pytest.raises(ValueError, match="--shard-mib is"):
        PackConfig(shard_mib=shard_mib)


@pytest.mark.parametrize("gop", [0, 2**31])
def test_a_gop_that_x264_would_take_for_another_is_refused(gop):
    with pytest.raises(ValueError, match="--gop is"):
        Encoding(gop=gop)


@pytest.mark.parametrize("damage", ["emptied", "another object", "a line short", "a line too many"])
def test_a_damaged_index_has_its_shard_written_again(out, plain, tmp_path, damage):
    before = content(plain)
    shutil.copytree(plain, tmp_path / "set")
    (tmp_path / "set/work").mkdir()
    (tmp_path / "set/work/notes.json").touch()  # somebody else's
    index = tmp_path / "set/index/000001.jsonl"
    lines = index.read_text().splitlines(keepends=True)
    changed = {"emptied": [], "another object": ["{}\n", *lines[1:]], "a line short": lines[:-1]}
    index.write_text("".join(changed.get(damage, [*lines, lines[-1]])))
    packed(out, tmp_path / "set", PLAIN)
    assert content(tmp_path / "set") == before


def test_a_file_with_a_very_long_extension_is_packed(tmp_path):
    name = "x." + "a" * 120
    write_video(tmp_path / "0.mp4", 8)
    (tmp_path / "0.mp4").rename(tmp_path / name)
    (tmp_path / "captions.json").write_text(json.dumps({name: "a ball"}))
    prepare(tmp_path / "captions.json", tmp_path / "out")
    packed(tmp_path / "out", tmp_path / "set", PLAIN)
    (clip,) = rows(tmp_path / "set")
    assert read_source(clip.source) == (tmp_path / name).read_bytes()


@pytest.mark.parametrize("config", [PLAIN, SMALL])
def test_a_file_server_that_is_away_stops_the_packing_and_costs_no_video(tmp_path, config):
    videos = tmp_path / "videos"
    videos.mkdir()
    for number in range(2):
        write_video(videos / f"{number}.mp4", 8)
    (tmp_path / "captions.json").write_text(json.dumps({f"{number}.mp4": "a ball" for number in range(2)}))
    prepare(tmp_path / "captions.json", tmp_path / "out", videos)
    videos.rename(tmp_path / "away")
    with pytest.raises(PackError, match=r"gone or empty: mount it again; the same command goes on"):
        packed(tmp_path / "out", tmp_path / "set", config)
    (tmp_path / "away").rename(videos)
    assert packed(tmp_path / "out", tmp_path / "set", config).videos == 2
