"""The search page's server over real HTTP: answers, ranges, and all that it refuses."""

from __future__ import annotations

import http.client
import json
import os
import runpy
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
from colours import HEIGHT, RGB, WIDTH, clip, colour_retriever, draw, set_of

from simvtp_ds.progress import silence
from simvtp_ds.search import server
from simvtp_ds.search.index import build_index
from simvtp_ds.search.posters import Posters
from simvtp_ds.search.searcher import Searcher
from simvtp_ds.search.store import Store

ROOT = Path(__file__).resolve().parents[2]
BEFORE = 512  # bytes that stand before a video inside a shard


class Answer(NamedTuple):
    """Of the server."""

    code: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> dict:
        return json.loads(self.body)


class Site(NamedTuple):
    """A server at work, and the bytes of its clips: a file, a part of a shard, MPEG-4 Part 2, a file, a URL."""

    port: int
    folder: Path
    bytes: list[bytes]

    def ask(self, path: str, method: str = "GET", body: bytes = b"", **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(
                method, path, body or None, {name.replace("_", "-"): value for name, value in headers.items()}
            )
            answer = connection.getresponse()
            return Answer(answer.status, answer.headers, answer.read())
        finally:
            connection.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    red, green = draw(folder / "red.mp4", ["red"]), draw(folder / "green.mp4", ["green"]).read_bytes()
    blue = draw(folder / "blue.avi", ["blue"], "mpeg4")
    shard = folder / "shard.tar"
    shard.write_bytes(os.urandom(BEFORE) + green + os.urandom(700))
    changes, remote = draw(folder / "changes.mp4", ["orange"]), draw(folder / "remote.mp4", ["blue"])
    rows = [
        clip(red, "red", "a red clip"),
        clip(shard, "green", "a green clip", BEFORE, len(green)),
        clip(blue, "blue", "a blue clip"),
        clip(changes, "changes", "an orange clip"),
        replace(clip(remote, "remote", "another blue clip"), uri=f"file://{remote}"),
    ]
    retriever = colour_retriever(folder)
    with Store(folder / "a.sqlite") as store:
        index = build_index(retriever, set_of(folder / "set", rows), store, 1, True, silence)
    posters = Posters(20.0, retriever.data.storage)
    running = server.make_server(server.make_app(Searcher(retriever, index), posters, {"clips": 4, "bad": []}))
    with server.listen(0) as listening:
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
        thread.start()
        while not running.started:
            time.sleep(0.01)
        yield Site(
            listening.getsockname()[1],
            folder,
            [path.read_bytes() if isinstance(path, Path) else path for path in (red, green, blue, changes, remote)],
        )
        running.should_exit = True
        thread.join(20)
    posters.close()
    assert not thread.is_alive()


def test_a_sentence_is_answered_and_the_page_names_nothing_of_other_sites(site: Site) -> None:
    found = site.ask("/api/clips?query=green&limit=2").json
    assert [each["id"] for each in found["clips"]] == ["green", "changes"]
    assert site.ask("/api/clips?like=0&limit=1").json["like"]["id"] == "red"
    for path in server.PAGE:
        answer = site.ask(path)
        assert answer.code == 200 and b"://" not in answer.body and b"innerHTML" not in answer.body
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
        assert (answer.headers["x-content-type-options"], answer.headers["server"]) == ("nosniff", None)


@pytest.mark.parametrize("number", [0, 1, 2, 4])
def test_ranges_are_the_bytes_of_that_clip_and_no_others(site: Site, number: int) -> None:
    data, path = site.bytes[number], f"/clips/{number}/video"
    size = len(data)
    whole = site.ask(path)
    assert (whole.code, whole.body, whole.headers["accept-ranges"]) == (200, data, "bytes")
    for given, (first, end) in {
        "bytes=0-": (0, size),
        "bytes=0-0": (0, 1),
        "bytes=10-29": (10, 30),
        f"bytes={size - 1}-{size + 999}": (size - 1, size),
        "bytes=-5": (size - 5, size),
        f"bytes=-{size + 5}": (0, size),
    }.items():
        part = site.ask(path, range=given)
        assert (part.code, part.body) == (206, data[first:end]), given
        assert part.headers["content-range"] == f"bytes {first}-{end - 1}/{size}"
    for given in (f"bytes={size}-", f"bytes={size + 1}-{size + 600}", "bytes=-0"):
        part = site.ask(path, range=given)
        assert (part.code, part.headers["content-range"]) == (416, f"bytes */{size}"), given
    for given in (
        "bytes=-",
        "bytes=5-2",
        "bytes=0-1,4-5",
        "bytes=x-y",
        "lines=0-1",
        "bytes=٣-٤".encode().decode("latin-1"),
    ):
        assert site.ask(path, range=given).body == data, given
    head = site.ask(path, "HEAD", range="bytes=0-9")
    assert (head.code, head.body, head.headers["content-length"]) == (206, b"", "10")
    kind = "application/octet-stream" if number == 2 else "video/mp4"
    assert whole.headers["content-type"] == kind


@pytest.mark.parametrize(
    "path",
    [
        "/clips/5/video",
        "/clips/-1/video",
        "/clips/99999999999999999999/video",
        "/clips/0/video/../../../../etc/passwd",
        "/clips/../../etc/passwd",
        "/clips/%2e%2e%2f%2e%2e%2fetc%2fpasswd/video",
        "/clips/0%00/video",
        "/clips//etc/passwd",
        "//etc/passwd",
        "/../page.py",
        "/server.py",
        "/clips/0.5/poster",
        "/clips/red.mp4",
    ],
)
def test_a_clip_is_reached_by_its_number_alone(site: Site, path: str) -> None:
    answer = site.ask(path)
    assert answer.code == 404 and answer.json["error"] and b"root:" not in answer.body


def test_a_file_that_was_replaced_since_is_not_served(site: Site) -> None:
    path, address = site.folder / "changes.mp4", "/clips/3/video"
    kept, info = path.read_bytes(), path.stat()
    assert site.ask(address).body == kept

    def refused(reason: str) -> None:
        for asked in (address, "/clips/3/poster"):
            answer = site.ask(asked)
            assert answer.code == 410 and reason in answer.json["error"], answer

    secret = site.folder / "secret"  # of the same size and time
    secret.write_bytes(b"s" * info.st_size)
    os.utime(secret, ns=(info.st_atime_ns, info.st_mtime_ns))
    path.unlink()
    path.symlink_to(secret)
    refused("has changed since it was indexed")
    path.unlink()
    os.mkfifo(path)
    refused("has changed")
    path.unlink()
    path.mkdir()
    refused("Is a directory")
    path.rmdir()
    refused("cannot be opened any more: No such file")


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil.example", ""]
)
def test_a_foreign_name_for_this_machine_is_refused(site: Site, host: str) -> None:
    for path in ("/", "/api/clips?query=red", "/clips/0/video"):
        answer = site.ask(path, host=host)
        assert answer.code in (400, 403) and b"red" not in answer.body
    assert site.ask("/api/clips", host=f"localhost:{site.port}").code == 200


def test_pages_of_other_sites_are_refused(site: Site) -> None:
    foreigners: list[dict[str, Any]] = [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": f"http://localhost:{site.port}"},  # another origin than 127.0.0.1
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
        {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"},
    ]
    for foreign in foreigners:
        assert site.ask("/api/clips", **foreign).code == 403, foreign
        assert site.ask("/api/captions", "POST", site.bytes[0], **foreign).code == 403, foreign
    assert site.ask("/clips/0/video", sec_fetch_site="cross-site", sec_fetch_mode="no-cors").code == 403
    link: dict[str, Any] = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"}
    assert site.ask("/?query=red", **link).code == 200
    assert site.ask("/api/clips", origin=f"http://127.0.0.1:{site.port}", sec_fetch_site="same-origin").code == 200


def test_a_file_is_described_and_a_broken_or_large_one_is_a_sentence(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = site.ask("/api/captions", "POST", site.bytes[1]).json
    assert found["captions"][0]["caption"] == "a green clip" and found["clips"][0]["id"] == "green"
    broken = [b"", b"nonsense", site.bytes[0][: len(site.bytes[0]) // 2], b"\x89PNG\r\n\x1a\n" + bytes(100)]
    for body in broken:
        answer = site.ask("/api/captions", "POST", body)
        assert answer.code == 400 and answer.json["error"].startswith("The file cannot be used: "), answer
        assert "/tmp" not in answer.json["error"]
    monkeypatch.setattr(server, "LARGEST_UPLOAD", 1000)
    answer = site.ask("/api/captions", "POST", bytes(1001))
    assert (answer.code, answer.json["error"]) == (413, "The file is too large: 0 MiB are the most.")
    assert site.ask("/api/captions").code == 405


def test_one_file_is_looked_at_at_a_time(site: Site) -> None:
    with socket.create_connection(("127.0.0.1", site.port)) as slow:
        head = f"POST /api/captions HTTP/1.1\r\nHost: 127.0.0.1:{site.port}\r\nContent-Length: 100\r\n\r\nx"
        slow.sendall(head.encode())
        deadline = time.monotonic() + 10
        while (answer := site.ask("/api/captions", "POST", b"x")).code != 429:
            assert time.monotonic() < deadline
        assert "try again" in answer.json["error"]
    deadline = time.monotonic() + 10
    while site.ask("/api/captions", "POST", b"x").code == 429:  # the first has gone
        assert time.monotonic() < deadline


@pytest.mark.parametrize("asked", ["like=-1", "like=x", "like=5", "start=-1", "limit=0", "limit=101", "like=%D9%A3"])
def test_a_question_out_of_range_is_a_sentence(site: Site, asked: str) -> None:
    answer = site.ask(f"/api/clips?{asked}")
    assert answer.code == 400 and answer.json["error"].endswith(".")


def test_a_poster_shows_the_clip(site: Site) -> None:
    for number, name in ((1, "green"), (2, "blue")):
        answer = site.ask(f"/clips/{number}/poster")
        picture = cv2.imdecode(np.frombuffer(answer.body, np.uint8), cv2.IMREAD_COLOR)
        assert picture is not None and answer.headers["content-type"] == "image/jpeg"
        height, width, _ = picture.shape
        assert width / height == pytest.approx(WIDTH / HEIGHT, rel=0.02)
        assert picture.mean(axis=(0, 1))[::-1] == pytest.approx(RGB[name], abs=12)


def test_a_url_that_fails_is_a_sentence(site: Site) -> None:
    remote = site.folder / "remote.mp4"
    remote.rename(remote.with_suffix(".away"))
    answer = site.ask("/clips/4/video")
    remote.with_suffix(".away").rename(remote)
    assert answer.code == 502 and answer.json["error"].startswith("remote cannot be fetched: ")


def test_a_port_that_is_taken_is_told(site: Site) -> None:
    with pytest.raises(ValueError, match=f"--port {site.port} cannot be listened on"):
        server.listen(site.port)


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--checkpoint", "/nowhere", "--port", "0"], "/nowhere is neither a run"),
        (["--top", "0", "--query", "x"], "--top is 0; give a number from 1 to 100"),
        (["--segments", "0"], "--segments is 0; give a number from 1"),
        (["--file", "/nowhere.mp4"], "--file /nowhere.mp4: no such file"),
        (["--file", __file__, "--filter", "x"], "a filter goes with --query or --like"),
        (["--port", "70000"], "--port is 70000; give a number from 0 to 65535"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(
    more: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main = runpy.run_path(str(ROOT / "launch" / "search.py"))["main"]
    with pytest.raises(SystemExit, match=r"^1$"):
        main(["--checkpoint", "runs/x", "--manifest", "data/x", *more])
    told = capsys.readouterr()
    assert told.err.startswith("error on ") and reason in told.err and told.err.count("\n") == 1 and told.out == ""
