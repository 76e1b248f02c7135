"""Where bytes come from: relative names, parts of files, URLs that fail, and the cache that keeps them."""

from __future__ import annotations

import logging
import multiprocessing
import os
import time
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest

from simvtp_ds.data import storage_remote
from simvtp_ds.data.manifest import Clip, Manifest, write_manifest
from simvtp_ds.data.storage import ByteRange, Source, open_source, read_source, resolve
from simvtp_ds.data.storage_cache import PARTS, Cache
from simvtp_ds.data.storage_remote import longest_read
from simvtp_ds.data_config import StorageConfig
from simvtp_ds.urls import without_secrets

BYTES = bytes(range(256)) * 8
QUICK = StorageConfig(timeout=0.2, retries=2)


@pytest.fixture
def uri():
    """A file of 2048 bytes in fsspec's memory."""
    fsspec.filesystem("memory").pipe_file("/set/a.tar", BYTES)
    yield "memory://set/a.tar"
    fsspec.filesystem("memory").rm("/set", recursive=True)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(storage_remote, "FIRST_PAUSE", 0.001)


@pytest.mark.parametrize(
    ("uri", "root", "found"),
    [
        ("/data/a.mp4", "", "/data/a.mp4"),
        ("/data/a.mp4", "/root", "/data/a.mp4"),
        ("s3://bucket/a.tar", "/root", "s3://bucket/a.tar"),
        ("shards/000000.tar", "", "/set/shards/000000.tar"),
        ("shards/000000.tar", "/root", "/root/shards/000000.tar"),
        ("shards/000000.tar", "s3://bucket/set/", "s3://bucket/set/shards/000000.tar"),
        ("shards/000000.tar", "s3://bucket/set", "s3://bucket/set/shards/000000.tar"),
        ("shards/000000.tar", "memory://", "memory://shards/000000.tar"),
    ],
)
def test_relative_names_start_from_the_root_else_from_the_manifests_folder(uri, root, found):
    assert resolve(uri, "/set", root) == found


def test_a_manifest_gives_absolute_places_wherever_it_lies(tmp_path, monkeypatch):
    clip = Clip("a", "shards/000000.tar", 512, 100, "a ball", 20, 25.0, 64, 64, "h264")
    write_manifest(tmp_path, [clip])
    monkeypatch.chdir(tmp_path.parent)
    for folder in (tmp_path, tmp_path.name):
        assert Manifest.open(folder)[0] == replace(clip, uri=str(tmp_path / clip.uri))
    assert Manifest.open(tmp_path, "hf://datasets/a")[0].source == ("hf://datasets/a/shards/000000.tar", 512, 100)


def test_a_whole_local_file_is_its_path_and_a_part_is_read_in_place(tmp_path):
    (tmp_path / "a").write_bytes(BYTES)
    path = str(tmp_path / "a")
    with open_source(Source(path, 0, len(BYTES))) as file:
        assert file == path
    with open_source(Source(path, 100, 50)) as file:
        assert isinstance(file, ByteRange)
        assert file.read(1000) == BYTES[100:150]
    assert read_source(Source(path, 100, 50)) == BYTES[100:150]


def test_bytes_that_are_not_there_are_an_error_that_names_file_and_numbers(tmp_path):
    (tmp_path / "a").write_bytes(BYTES)
    with pytest.raises(OSError, match=r"/a: 48 of the 50 bytes from 2000 on are there"):
        read_source(Source(str(tmp_path / "a"), 2000, 50))
    with pytest.raises(FileNotFoundError, match="/b"), open_source(Source(str(tmp_path / "b"), 0, 50)):
        pass


def test_exactly_the_range_of_a_url_is_read(uri):
    assert read_source(Source(uri, 300, 70)) == BYTES[300:370]
    with open_source(Source(uri, 300, 70)) as file:
        assert not isinstance(file, str)
        assert file.seek(10) == 10 and file.read(100) == BYTES[310:370]


class Flaky:
    """In the place of fsspec: each call takes the next answer."""

    def __init__(self, *answers: bytes | Exception | float) -> None:
        self.answers, self.calls = list(answers), 0

    def __call__(self, uri: str, start: int, end: int) -> bytes:
        self.calls += 1
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, int | float):
            time.sleep(answer)
            return b""
        return answer


def test_failures_short_answers_and_silence_are_tried_again_and_told(monkeypatch, caplog):
    flaky = Flaky(ConnectionError("reset"), b"short", b"1234567")
    monkeypatch.setattr(storage_remote, "_cat", flaky)
    with caplog.at_level(logging.WARNING):
        assert read_source(Source("s3://b/a.tar", 5, 7), QUICK) == b"1234567"
    first, second = (record.getMessage() for record in caplog.records)
    assert first == "s3://b/a.tar: bytes 5 to 12: ConnectionError: reset; try 2 of 3 follows"
    assert "the answer has 5 bytes, expected 7; try 3 of 3" in second


def test_what_fails_every_time_is_an_error_that_names_the_last_reason(monkeypatch):
    flaky = Flaky(b"", ConnectionError("reset"), 5.0)
    monkeypatch.setattr(storage_remote, "_cat", flaky)
    began = time.monotonic()
    with pytest.raises(OSError, match=r"s3://b/a.tar: bytes 5 to 12 not read in 3 tries.*no answer after 0.2 s"):
        read_source(Source("s3://b/a.tar", 5, 7), QUICK)
    assert flaky.calls == 3 and time.monotonic() - began < 4


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("memory://nowhere", "FileNotFoundError"),
        ("odd://x", "Protocol not known: odd"),
        ("dropbox://b/k", "ImportError"),
    ],
)
def test_what_another_try_cannot_mend_is_not_tried_again(uri, reason, caplog):
    with pytest.raises(OSError, match=f"^{uri}: .*{reason}"):
        read_source(Source(uri, 0, 5))
    assert not caplog.records


def test_the_longest_read_counts_all_tries_and_pauses(monkeypatch):
    monkeypatch.setattr(storage_remote, "FIRST_PAUSE", 1.0)
    assert longest_read(StorageConfig(timeout=10.0, retries=6)) == 7 * 10.0 + 1 + 2 + 4 + 8 + 8 + 8
    assert longest_read(StorageConfig(timeout=10.0, retries=0)) == 10.0


def test_a_range_is_fetched_once_and_again_where_the_kept_copy_is_damaged(tmp_path, monkeypatch):
    storage = StorageConfig(cache_dir=str(tmp_path / "cache"))
    source = Source("s3://b/a.tar", 5, 7)
    flaky = Flaky(b"1234567", b"1234567", b"1234567")
    monkeypatch.setattr(storage_remote, "_cat", flaky)
    for damage in (None, lambda content: content[:-1], lambda content: b"x" + content[1:]):
        if damage:
            (kept,) = (path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.name != ".lock")
            kept.write_bytes(damage(kept.read_bytes()))
        assert read_source(source, storage) == read_source(source, storage) == b"1234567"
    assert flaky.calls == 3


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _one_part(cache: Cache, count: int) -> list[tuple[str, int, int]]:
    """Ranges of 1000 bytes that share a part of the cache."""
    keys = [("s3://b/a.tar", 1000 * i, 1000) for i in range(40 * PARTS)]
    part = cache._path(keys[0]).parent
    return [key for key in keys if cache._path(key).parent == part][:count]


def test_a_full_cache_forgets_what_was_used_longest_ago(tmp_path):
    cache = Cache(tmp_path, PARTS * 3500 / 2**30)
    keys = _one_part(cache, 5)
    for age, key in enumerate(keys[:3]):
        cache.put(key, bytes(1000))
        os.utime(cache._path(key), (1000 + age, 1000 + age))
    assert cache.get(keys[0]) == bytes(1000)  # the oldest, used now
    cache.put(keys[3], bytes(1000))
    assert [cache.get(key) is not None for key in keys[:4]] == [True, False, True, True]
    cache.put(keys[4], bytes(5000)[:1000])
    cache.put(("s3://b/large", 0, 4000), bytes(4000))  # larger than a part may be
    assert cache.get(("s3://b/large", 0, 4000)) is None
    assert _size(tmp_path) <= 3500


def test_a_cache_that_cannot_be_written_costs_nothing_but_speed(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(storage_remote, "_cat", Flaky(b"1234567", b"1234567"))
    storage = StorageConfig(cache_dir=str(tmp_path / "file"))
    for _ in range(2):
        assert read_source(Source("s3://b/a.tar", 5, 7), storage) == b"1234567"
    assert "not kept in the cache" in caplog.text


def _hammer(folder: str, seed: int, errors: multiprocessing.SimpleQueue) -> None:
    cache = Cache(folder, PARTS * 20_000 / 2**30)
    for i in range(300):
        number = (seed * 7 + i * i) % 40
        key = (f"s3://b/{number}", 0, 1000)
        if (data := cache.get(key)) is None:
            cache.put(key, bytes([number]) * 1000)
        elif data != bytes([number]) * 1000:
            errors.put(f"{number}: other bytes")


def test_many_processes_share_a_cache(tmp_path):
    context = multiprocessing.get_context("fork")
    errors = context.SimpleQueue()
    processes = [context.Process(target=_hammer, args=(str(tmp_path), seed, errors)) for seed in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert errors.empty()
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("uri", ["../a.mp4", "shards/../../a.tar", ".."])
def test_a_relative_name_cannot_lead_out_of_its_folder(uri):
    for root in ("", "/root", "s3://bucket/set"):
        with pytest.raises(ValueError, match="leads out of its folder"):
            resolve(uri, "/set", root)
    assert resolve("a..b/..c.mp4", "/set") == "/set/a..b/..c.mp4"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://user:pa55@host/a.mp4: no answer", "https://***@host/a.mp4: no answer"),
        ("s3://KEY:SECRET@bucket/set", "s3://***@bucket/set"),
        ("https://host/a.mp4?sig=SE%2FCRET&sp=r: HTTP 403", "https://host/a.mp4?***: HTTP 403"),
        ("url='https://host/a?token=SECRET', b", "url='https://host/a?***', b"),
        ("/local/what?.mp4 and me@host", "/local/what?.mp4 and me@host"),
        ("memory://set/a.tar", "memory://set/a.tar"),
    ],
)
def test_passwords_and_tokens_of_urls_are_not_shown(text, shown):
    assert without_secrets(text) == shown


def test_errors_and_warnings_of_a_store_do_not_show_its_tokens(monkeypatch, caplog):
    uri = "memory://set/a.tar?sig=SECRET"

    def refused(*_):
        raise ConnectionError(f"403 for {uri}")

    monkeypatch.setattr(storage_remote, "_cat", refused)
    with caplog.at_level(logging.WARNING), pytest.raises(OSError, match="403 for memory") as error:
        read_source(Source(uri, 0, 10), QUICK)
    assert len(caplog.records) == QUICK.retries
    assert "SECRET" not in caplog.text + str(error.value)


@pytest.mark.parametrize("root", ["s3://KEY:SECRET@bucket/set", "https://host/set?sig=SECRET"])
def test_a_root_with_a_token_is_refused_since_the_run_saves_it(root):
    with pytest.raises(ValueError, match=r"data\.storage\.root") as error:
        StorageConfig(root=root)
    assert "SECRET" not in str(error.value)
