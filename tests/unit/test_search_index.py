"""The index of the search: what it finds, what it keeps, and what it does about videos that are broken."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from colours import RGB, Colours, clip, colour_retriever, draw, set_of

from simvtp_ds.data.manifest import Manifest
from simvtp_ds.data.videos import Videos
from simvtp_ds.evaluation.retriever import Retriever
from simvtp_ds.progress import silence
from simvtp_ds.search.folder import find_files, prepare_folder
from simvtp_ds.search.index import Index, build_index
from simvtp_ds.search.searcher import Question, Searcher, SearchError
from simvtp_ds.search.store import Store


@pytest.fixture(scope="module")
def retriever(tmp_path_factory: pytest.TempPathFactory) -> Retriever:
    return colour_retriever(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video a colour, one of two colours, one broken."""
    folder = tmp_path_factory.mktemp("videos")
    for name in RGB:
        draw(folder / f"{name}.mp4", [name])
    draw(folder / "both.mp4", ["blue", "red"])
    (folder / "broken.mp4").write_bytes(b"not a video")
    return folder


@pytest.fixture(scope="module")
def videos(folder: Path) -> Videos:
    names = [*RGB, "both", "broken"]
    rows = [clip(folder / f"{name}.mp4", f"{name}.mp4", f"a {name} clip") for name in names]
    return set_of(folder / "set", [*rows, clip(folder / "red.mp4", "red.mp4", "a Clip, NOT so short"), rows[0]])


def index_of(retriever: Retriever, videos: Videos, path: Path, segments: int = 1) -> Index:
    with Store(path) as store:
        return build_index(retriever, videos, store, segments, True, silence)


@pytest.fixture(scope="module")
def index(retriever: Retriever, videos: Videos, tmp_path_factory: pytest.TempPathFactory) -> Index:
    return index_of(retriever, videos, tmp_path_factory.mktemp("index") / "a.sqlite")


@pytest.fixture(scope="module")
def searcher(retriever: Retriever, index: Index) -> Searcher:
    return Searcher(retriever, index)


def ids(found: dict) -> list[str]:
    return [each["id"] for each in found["clips"]]


def test_a_sentence_finds_the_clips_that_show_it_first(searcher: Searcher) -> None:
    for name in RGB:
        assert ids(searcher.find(Question(name)))[0] == f"{name}.mp4"
    found = searcher.find(Question("red"))
    assert ids(found)[1] == "orange.mp4"
    scores = [each["score"] for each in found["clips"]]
    # The order and the cosines of a slow plain search.
    target = searcher.index.vectors @ (np.array(RGB["red"]) / np.linalg.norm(RGB["red"]))
    assert [each["clip"] for each in found["clips"]] == list(np.argsort(-target))
    assert scores == pytest.approx(np.sort(target)[::-1], abs=0.02)  # [CLS] and [SEP] count a little


def test_a_clip_finds_those_like_it_and_not_itself(searcher: Searcher) -> None:
    red = next(n for n, each in enumerate(searcher.index.entries) if each.clip.clip_id == "red.mp4")
    found = searcher.find(Question(like=red))
    assert ids(found)[0] == "orange.mp4" and "red.mp4" not in ids(found)
    assert found["total"] == len(searcher.index.entries) - 1
    with pytest.raises(SearchError, match="There is no clip 99: this index has 5 clips"):
        searcher.find(Question(like=99))


def test_a_filter_keeps_the_clips_whose_captions_or_name_hold_all_its_words(searcher: Searcher) -> None:
    assert ids(searcher.find(Question("blue", only="short not"))) == ["red.mp4"]
    assert ids(searcher.find(Question("blue", only="ORANGE.mp4"))) == ["orange.mp4"]
    assert searcher.find(Question("blue", only="short nowhere")) == {"clips": [], "total": 0, "notes": []}
    # As the whole list without the others.
    held = [name for name in ids(searcher.find(Question("blue"))) if "r" in f"a {name} clip".removesuffix(".mp4 clip")]
    assert ids(searcher.find(Question("blue", only="r"))) == held


def test_nothing_asked_gives_all_clips_in_their_order_page_by_page(searcher: Searcher) -> None:
    pages = [searcher.find(Question(start=start, limit=2)) for start in (0, 2, 4, 6)]
    assert [ids(page) for page in pages] == [["red.mp4", "green.mp4"], ["blue.mp4", "orange.mp4"], ["both.mp4"], []]
    assert {each["score"] for page in pages for each in page["clips"]} == {None}
    by_score = [name for start in (0, 2, 4) for name in ids(searcher.find(Question("green", start=start, limit=2)))]
    assert by_score == ids(searcher.find(Question("green")))
    assert pages[0]["clips"][0]["captions"] == ["a red clip", "a Clip, NOT so short"]


def test_copies_of_a_video_stand_once_each_over_all_pages(retriever: Retriever, folder: Path, tmp_path: Path) -> None:
    rows = [clip(folder / "red.mp4", f"{number}", "a red clip") for number in range(9)]
    searcher = Searcher(retriever, index_of(retriever, set_of(tmp_path / "set", rows), tmp_path / "a.sqlite"))
    for only in ("", "red"):
        pages = [searcher.find(Question("blue", only=only, start=start, limit=2)) for start in range(0, 9, 2)]
        assert [name for page in pages for name in ids(page)] == [str(number) for number in range(9)]


def test_a_sentence_that_says_nothing_to_the_model_is_told(searcher: Searcher) -> None:
    with pytest.raises(SearchError, match="knows no word of"):
        searcher.find(Question("漢字"))
    assert searcher.find(Question("red 漢字"))["notes"] == [
        "The model does not know some of these words; it reads the others."
    ]
    (note,) = searcher.find(Question("red " * 9))["notes"]
    assert "reads its first 6" in note
    with pytest.raises(SearchError, match="2001 characters"):
        searcher.find(Question("r" * 2001))


def test_what_cannot_be_decoded_is_left_out_and_told(index: Index) -> None:
    assert [each.clip_id for each in index.bad] == ["broken.mp4"]
    assert [each.clip.clip_id for each in index.entries] == [f"{name}.mp4" for name in [*RGB, "both"]]
    assert index.embedded == 5


def test_segments_see_what_the_middle_does_not(retriever: Retriever, videos: Videos, tmp_path: Path) -> None:
    both = index_of(retriever, videos, tmp_path / "b.sqlite", segments=2).vectors[4]
    mean = sum(np.array(RGB[name]) / np.linalg.norm(RGB[name]) for name in ("blue", "red"))
    assert both == pytest.approx(mean / np.linalg.norm(mean), abs=0.03)


def test_only_what_is_new_or_changed_is_embedded_again(retriever: Retriever, folder: Path, tmp_path: Path) -> None:
    for name in ("red", "green", "blue"):
        (tmp_path / f"{name}.mp4").write_bytes((folder / f"{name}.mp4").read_bytes())

    def count(*names: str) -> tuple[int, int, int]:
        rows = [clip(tmp_path / f"{name}.mp4", name, f"a {name} clip") for name in names]
        model = Colours(retriever.tokenizer)
        index = index_of(replace(retriever, model=model), set_of(tmp_path / "set", rows), tmp_path / "a.sqlite")
        assert len(index.entries) == len(names)
        return index.embedded, model.clips, model.captions

    assert count("red", "green") == (2, 2, 2)
    assert count("red", "green") == (0, 0, 0)
    assert count("green", "blue", "red") == (1, 1, 1)
    draw(tmp_path / "red.mp4", ["orange"])
    os.utime(tmp_path / "red.mp4", ns=(1, 1))
    assert count("red", "green") == (1, 1, 0)


def test_a_kept_vector_that_changed_on_disk_is_not_used(tmp_path: Path) -> None:
    vectors = {bytes([n]) * 16: np.full(64, n, dtype=np.float32) for n in range(3)}
    path = tmp_path / "a.sqlite"
    with Store(path) as store:
        store.put(vectors)
        assert all((store.get(vectors)[key] == vectors[key]).all() for key in vectors)
    content = path.read_bytes()
    place = content.index(vectors[b"\1" * 16].tobytes())
    path.write_bytes(content[:place] + b"\xff" + content[place + 1 :])
    with Store(path) as store:
        assert set(store.get(vectors)) == {b"\0" * 16, b"\2" * 16}
    for damaged in (b"nonsense" * 1000, content[:5000]):
        path.write_bytes(damaged)
        with Store(path) as store:
            assert store.get(vectors) == {}
            store.put(vectors)
            assert len(store.get(vectors)) == 3


def test_what_was_kept_before_a_kill_is_there_after_it(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys, numpy as np; from pathlib import Path; from simvtp_ds.search.store import Store\n"
        "store = Store(Path(sys.argv[1])); store.put({b'a' * 16: np.ones(3, dtype=np.float32)})\n"
        "def halves():\n"
        "    yield b'b' * 16, np.ones(3, dtype=np.float32)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "store._file.executemany('INSERT INTO vectors VALUES (?, ?, NULL)', halves())\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.sqlite")], timeout=60)
    assert ended.returncode == -signal.SIGKILL
    with Store(tmp_path / "a.sqlite") as store:
        assert list(store.get([b"a" * 16, b"b" * 16])) == [b"a" * 16]


def test_another_faiss_index_finds_the_same_and_nonsense_is_told(retriever: Retriever, index: Index) -> None:
    exact, quick = Searcher(retriever, index), Searcher(retriever, index, "HNSW8")
    assert quick.find(Question("red")) == exact.find(Question("red"))
    for wrong in ("nonsense", "IVF100,Flat"):
        with pytest.raises(ValueError, match=f"--faiss {wrong}: faiss makes no index of that for 5 vectors"):
            Searcher(retriever, index, wrong)


def test_a_file_finds_its_captions_and_a_broken_one_is_a_sentence(
    searcher: Searcher, folder: Path, tmp_path: Path
) -> None:
    found = searcher.describe(draw(tmp_path / "x.mp4", ["green"]), "x.mp4", limit=3)
    assert found["captions"][0]["caption"] == "a green clip"
    assert ids(found)[0] == "green.mp4" and len(found["clips"]) == 3
    (tmp_path / "list.m3u8").write_text(f"#EXTM3U\n#EXTINF:1,\n{folder / 'red.mp4'}\n#EXT-X-ENDLIST\n")
    for path in (folder / "broken.mp4", tmp_path / "list.m3u8"):
        with pytest.raises(SearchError, match=f"^{path.name} cannot be used: not a") as told:
            searcher.describe(path, path.name)
        assert str(path) not in str(told.value)


def test_damaged_weights_are_told_and_nothing_is_kept(retriever: Retriever, videos: Videos, tmp_path: Path) -> None:
    model = Colours(retriever.tokenizer)
    model.embed_video = lambda frames: frames.float().mean(dim=(1, 2, 3)) * float("nan")
    with pytest.raises(ValueError, match="not finite"):
        index_of(replace(retriever, model=model), videos, tmp_path / "a.sqlite")
    assert index_of(retriever, videos, tmp_path / "a.sqlite").embedded == 5


def test_a_folder_is_searched_without_captions_and_odd_names_are_text(
    retriever: Retriever, folder: Path, tmp_path: Path
) -> None:
    place = tmp_path / "a b"
    (place / "deep").mkdir(parents=True)
    (place / ".hidden").mkdir()
    odd = '<img src=x onerror="alert(1)"> &amp;\n.MP4'
    for name in (odd, "deep/ü.mp4", ".hidden/no.mp4", "notes.txt"):
        (place / name).write_bytes((folder / "red.mp4").read_bytes())
    (place / "link.mp4").symlink_to(folder / "blue.mp4")
    (place / "secret.mp4").symlink_to("/etc/passwd")
    (place / "gone.mp4").symlink_to(tmp_path / "nowhere")
    (place / "loop").symlink_to(place)
    Path(os.fsdecode(os.fsencode(place) + b"/\xff.mp4")).write_bytes(b"")
    names, strange = find_files(place)
    assert names == [odd, "gone.mp4", "link.mp4", "secret.mp4", "deep/ü.mp4"]
    assert [each.clip_id for each in strange] == ["\\udcff.mp4"]
    refused = prepare_folder(place, tmp_path / "out", retriever.tokenizer, 1, silence)
    assert {each.clip_id for each in refused} == {"\\udcff.mp4", "gone.mp4", "secret.mp4"}
    with Store(tmp_path / "a.sqlite") as store:
        index = build_index(retriever, Videos(Manifest.open(tmp_path / "out")), store, 1, False, silence)
    searcher = Searcher(retriever, index)
    assert ids(searcher.find(Question("blue"))) == ["link.mp4", odd, "deep/ü.mp4"]
    assert searcher.describe(folder / "red.mp4", "red.mp4")["captions"] == []
    with pytest.raises(ValueError, match="holds no video files"):
        prepare_folder(tmp_path / "out", tmp_path / "none", retriever.tokenizer, 1, silence)
    with pytest.raises(ValueError, match="no such folder"):
        prepare_folder(tmp_path / "nowhere", tmp_path / "none", retriever.tokenizer, 1, silence)
