"""The manifest: what is written comes back, and opening it is cheap."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pyarrow as pa
import pytest

from simvtp_ds.data import manifest as module
from simvtp_ds.data.manifest import Clip, Manifest, ManifestError, write_manifest


def _clip(i: int) -> Clip:
    return Clip(f"v{i}.mp4", f"/data/v{i}.mp4", i * 3, 10**10 + i, f"caption {i} 犬", i + 1, 24.5, 320, 240, "h264")


def test_every_row_comes_back_as_written_across_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_ROWS_PER_BATCH", 4)
    clips = [_clip(i) for i in range(11)]
    write_manifest(tmp_path, iter(clips))
    read = Manifest.open(tmp_path)
    assert len(read) == 11
    assert [read[i] for i in range(11)] == clips


@pytest.mark.parametrize("row", [-1, 3])
def test_a_row_outside_is_an_index_error(tmp_path, row):
    write_manifest(tmp_path, map(_clip, range(3)))
    with pytest.raises(IndexError, match="3 rows"):
        Manifest.open(tmp_path)[row]


def test_the_same_clips_give_the_same_bytes_and_another_clip_another_fingerprint(tmp_path):
    files, prints = [], []
    for name, clips in {
        "a": [_clip(0), _clip(1)],
        "b": [_clip(0), _clip(1)],
        "moved": [replace(_clip(i), uri=f"/elsewhere/{i}") for i in range(2)],
        "changed": [_clip(0), replace(_clip(1), caption="x")],
        "swapped": [_clip(1), _clip(0)],
    }.items():
        (tmp_path / name).mkdir()
        write_manifest(tmp_path / name, clips)
        files.append((tmp_path / name / "manifest.arrow").read_bytes())
        prints.append(Manifest.open(tmp_path / name).fingerprint)
    assert files[0] == files[1]
    assert prints[0] == prints[1] == prints[2]
    assert len(set(prints)) == 3
    assert all(len(bytes.fromhex(fingerprint)) == 32 for fingerprint in prints)


def test_a_failed_write_leaves_the_old_manifest_and_no_litter(tmp_path):
    write_manifest(tmp_path, [_clip(0)])

    def broken():
        yield _clip(1)
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        write_manifest(tmp_path, broken())
    assert Manifest.open(tmp_path)[0] == _clip(0)
    assert os.listdir(tmp_path) == ["manifest.arrow"]  # noqa: PTH208


def test_what_is_not_a_manifest_is_named_with_the_command_that_writes_one(tmp_path):
    def message() -> str:
        with pytest.raises(ManifestError) as caught:
            Manifest.open(tmp_path / "m")
        assert "launch/prepare.py" in str(caught.value)
        return str(caught.value)

    assert "no such folder" in message()
    (tmp_path / "m").mkdir()
    assert "holds no manifest.arrow" in message()
    path = tmp_path / "m" / "manifest.arrow"
    path.write_bytes(b"")
    assert "not a whole manifest" in message()
    write_manifest(tmp_path / "m", [])
    assert "no rows" in message()
    write_manifest(tmp_path / "m", map(_clip, range(100)))
    path.write_bytes(path.read_bytes()[:-100])
    assert "not a whole manifest" in message()
    table = pa.table({"clip": ["a"]})
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)
    assert "columns are ['clip']" in message()
    with pa.ipc.new_file(str(path), module._SCHEMA) as writer:
        writer.write_batch(pa.record_batch([[] for _ in module._SCHEMA], schema=module._SCHEMA))
    assert "not a whole manifest" in message()


def test_reading_takes_private_memory_for_no_more_than_a_few_rows(tmp_path):
    rows = 200_000
    caption = "x" * 500
    write_manifest(tmp_path, (replace(_clip(i), caption=caption) for i in range(rows)))
    assert (tmp_path / "manifest.arrow").stat().st_size > 100_000_000
    code = f"""
import sys
from pathlib import Path
from simvtp_ds.data.manifest import Manifest
def private():
    return next(int(line.split()[1]) for line in Path("/proc/self/status").open() if line.startswith("RssAnon"))
before = private()
manifest = Manifest.open({str(tmp_path)!r})
assert sum(len(manifest[i].caption) for i in range(0, {rows}, 20)) == {rows // 20 * 500}
print(private() - before, "torch" in sys.modules)
"""
    if not os.path.exists("/proc/self/status"):  # noqa: PTH110
        pytest.skip("needs Linux's /proc")
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert int(out[0]) < 20_000  # KiB; the file is over 100,000
    assert out[1] == "False"
