"""The search as a person uses it: JSON from the command line, and the page in a real Chromium."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.integration.conftest import ROOT, Launcher, deepspeed_json, search_page
from tests.unit.colours import draw

pytestmark = pytest.mark.integration

QUERY = "a red circle moves left"
MARKUP = '<img src="x" onerror="document.title=1"> & "quotes"'
CHROMIUM = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
CHROMIUM += [
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,900",
]

T = TypeVar("T")


class Place(NamedTuple):
    """What is searched: a run's folder, a manifest, and the folder of the manifest's videos."""

    run: Path
    manifest: Path
    videos: Path


@pytest.fixture(scope="module")
def place(launcher: Launcher, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A model of two steps, and 27 clips: one with markup for a caption, one that no browser plays, one broken."""
    run = launcher.torchrun("run", deepspeed_json(), ranks=1, schedule__max_steps=2)
    folder = tmp_path_factory.mktemp("place")
    drawn = json.loads((corpus.parent / "videos" / "train.json").read_text())
    captions = dict(list(drawn.items())[:25])
    for name in captions:
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(corpus.parent / "videos" / name, folder / name)
    captions[next(iter(captions))] = MARKUP
    draw(folder / "old.avi", ["red", "blue"], "mpeg4")
    shutil.copy(folder / next(iter(captions)), folder / "broken.mp4")
    captions |= {"old.avi": "red turns into blue", "broken.mp4": "it was whole when it was prepared"}
    (folder / "captions.json").write_text(json.dumps(captions))
    prepare = ["launch/prepare.py", f"{folder}/captions.json", "--out", f"{folder}/set", "--tokenizer", str(corpus)]
    subprocess.run([sys.executable, *prepare], cwd=ROOT, check=True, timeout=120, capture_output=True)
    size = (folder / "broken.mp4").stat().st_size
    (folder / "broken.mp4").write_bytes(bytes(size))
    run.succeed()
    return Place(run.run, folder / "set", folder)


def command(place: Place, *more: str) -> list[str]:
    script = ["launch/search.py", "--checkpoint", str(place.run), "--workers", "1", *more]
    return [sys.executable, *script, *(() if "--videos" in more else ("--manifest", str(place.manifest)))]


def ask(place: Place, *more: str) -> tuple[dict[str, Any], str]:
    """The answer, and what was said meanwhile."""
    ended = subprocess.run(command(place, *more), cwd=ROOT, timeout=240, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout), ended.stderr


@pytest.fixture(scope="module")
def answer(place: Place) -> dict[str, Any]:
    """Of the first call, which embeds all clips."""
    found, told = ask(place, "--query", QUERY, "--top", "24")
    assert "26 videos in the index, 26 of them embedded now" in told
    assert "left out: broken.mp4: " in told
    return found


class Page:
    """The page in a browser."""

    def __init__(self, driver: webdriver.Chrome, address: str) -> None:
        self.driver, self.address = driver, address

    def open(self, path: str = "/") -> None:
        self.driver.get(self.address + path)
        self.until(lambda: self.status not in ("", "Searching"))

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> Any:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(f"return {script}", *arguments)

    def press(self, *keys: str) -> None:
        """Keys to what has the focus."""
        self.driver.switch_to.active_element.send_keys(*keys)

    @property
    def status(self) -> str:
        return self.one("#status").text

    @property
    def clips(self) -> list[int]:
        """Numbers of the clips, as they stand on the screen: rows from above, each from the left."""
        cards = self.run(
            "[...document.querySelectorAll('.clip')].map((c) => [c.getBoundingClientRect().y, "
            "c.getBoundingClientRect().x, Number(c.dataset.clip)])"
        )
        return [number for _, _, number in sorted(cards)]

    def until(self, holds: Callable[[], T], patience: float = 60) -> T:
        deadline = time.monotonic() + patience
        while not (found := holds()):
            assert time.monotonic() < deadline, f"not within {patience} s; the page says {self.status!r}"
            time.sleep(0.05)
        return found


@pytest.fixture(scope="module")
def page(place: Place, answer: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    programs = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    if not all(programs.values()):
        told = "no chromium and chromedriver here (Debian: apt install chromium chromium-driver)"
        pytest.fail(told) if os.environ.get("CI") else pytest.skip(told)
    with search_page(place.run, command(place)) as address:
        options = webdriver.ChromeOptions()
        options.binary_location = str(programs["chromium"])
        profile = f"--user-data-dir={tmp_path_factory.mktemp('profile')}"
        for argument in (*CHROMIUM, profile):
            options.add_argument(argument)
        driver = webdriver.Chrome(options, webdriver.ChromeService(str(programs["chromedriver"])))
        try:
            yield Page(driver, address)
        finally:
            driver.quit()


def test_an_answer_is_json_with_the_nearest_first_and_says_where_each_clip_lies(answer: dict[str, Any]) -> None:
    scores = [each["score"] for each in answer["clips"]]
    assert len(scores) == 24 and scores == sorted(scores, reverse=True) and answer["total"] == 26
    assert [each["rank"] for each in answer["clips"]] == list(range(1, 25))
    assert all(Path(each["uri"]).stat().st_size == each["length"] for each in answer["clips"])
    assert [each["clip_id"] for each in answer["bad"]] == ["broken.mp4"]


def test_a_sentence_typed_shows_the_clips_of_the_command_line_in_its_order_and_they_play(
    page: Page, answer: dict[str, Any]
) -> None:
    page.open()
    assert page.status.startswith("24 of 26 clips. Type what they show")
    page.press("a red circle moves left", Keys.ENTER)
    page.until(lambda: QUERY in page.status)
    assert page.status == f"24 of 26 clips, those nearest to “{QUERY}” first."
    assert page.clips == [each["clip"] for each in answer["clips"]]
    shown = [[part.text for part in page.all(f".clip .{name}")] for name in ("rank", "score", "caption")]
    expected = [(str(each["rank"]), f"{each['score']:.3f}", each["captions"][0]) for each in answer["clips"]]
    assert list(zip(*shown, strict=True)) == expected
    page.until(
        lambda: page.run("[...document.querySelectorAll('.clip video')].filter((v) => v.currentTime > 0).length > 3")
    )
    page.one("#more").click()
    page.until(lambda: len(page.clips) == 26)
    assert len(set(page.clips)) == 26 and page.status.startswith("26 of 26")


def test_nothing_comes_from_elsewhere_and_captions_are_text(page: Page) -> None:
    page.open("/?filter=onerror")
    assert [each.text for each in page.all(".clip .caption")] == [MARKUP]
    assert page.driver.title == "Clip search" and not page.all("main img")
    names = page.run("performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert names and all(name.startswith((page.address, "blob:", "data:")) for name in names)
    assert "broken.mp4" in page.run("document.getElementById('bad').textContent")


def test_a_video_that_no_browser_plays_is_a_picture_with_the_reason(page: Page) -> None:
    page.open("/?filter=old.avi")
    page.until(lambda: any("One frame" in note.text for note in page.all(".clip .note")))
    assert page.one(".clip .note").text == "One frame: this browser cannot play the file (mpeg4)."
    page.until(lambda: page.run("document.querySelector('.clip img').naturalWidth === 320"))


def test_the_keyboard_goes_from_clip_to_clips_like_it_and_back(page: Page) -> None:
    page.open()
    page.press(Keys.ARROW_DOWN)
    page.press(Keys.ARROW_RIGHT)
    columns = len(page.run("getComputedStyle(document.getElementById('clips')).gridTemplateColumns.split(' ')"))
    page.press(Keys.ARROW_DOWN)
    chosen = page.run("document.activeElement.dataset.clip")
    assert chosen == str(1 + columns)
    page.press(Keys.ENTER)
    page.until(lambda: page.status == "24 of 25 clips, the most alike first.")
    assert page.driver.current_url == f"{page.address}/?like={chosen}"
    assert int(chosen) not in page.clips and page.all("#captions button")
    # A long video is seekable: the server gives ranges.
    page.until(lambda: page.run("document.querySelector('#player video').readyState >= 1"))
    page.run("void (document.querySelector('#player video').currentTime = 1.5)")
    page.until(lambda: page.run("document.querySelector('#player video').currentTime >= 1.5"))
    page.run("document.activeElement.blur()")
    page.one("body").send_keys(Keys.ESCAPE)
    page.until(lambda: page.status.startswith("24 of 26 clips. Type"))
    page.driver.back()
    page.until(lambda: "the most alike" in page.status)
    page.one("body").send_keys("/")
    assert page.run("document.activeElement.id") == "query"


def test_no_result_and_what_the_model_does_not_know_are_told(page: Page) -> None:
    page.open("/?query=circle&filter=zebra")
    assert page.status == "No clip with “zebra” in a caption or the name." and page.clips == []
    page.open("/?query=%E6%BC%A2")
    assert page.status.startswith("This model knows no word of") and page.all("#status.wrong")
    page.open("/?like=99")
    assert page.status == "There is no clip 99: this index has 26 clips, from 0 on."


def test_a_file_finds_its_captions_and_a_broken_one_is_a_sentence(page: Page, place: Place, tmp_path: Path) -> None:
    page.open()
    file = next((place.videos / "train").glob("*.mp4"))
    page.one("#file").send_keys(str(file))
    page.until(lambda: page.status.startswith("Its nearest captions"))
    captions = [each.text for each in page.all("#captions button span:last-child")]
    scores = [float(each.text) for each in page.all("#captions .score")]
    assert len(captions) == 10 and scores == sorted(scores, reverse=True)
    # The file is itself in the index.
    nearest = page.all(".clip")[0]
    assert nearest.find_element(By.CSS_SELECTOR, ".score").text == "1.000"
    page.until(lambda: page.run("document.querySelector('#player video').readyState >= 1"))
    page.all("#captions button")[0].click()
    page.until(lambda: captions[0] in page.status)
    broken = tmp_path / "holiday <b>.mp4"
    broken.write_bytes(b"nonsense")
    page.one("#file").send_keys(str(broken))
    page.until(lambda: page.status.startswith("holiday <b>.mp4 cannot be used: not a readable video"))


def test_a_phone_shows_two_columns_and_nothing_beyond_its_width(page: Page) -> None:
    phone = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    try:
        for path in ("/?query=circle", "/?like=0"):
            page.open(path)
            assert page.run("document.documentElement.scrollWidth <= 360 && innerWidth === 360")
            lefts = page.run("[...document.querySelectorAll('.clip')].map((c) => c.getBoundingClientRect().x)")
            assert len(set(lefts)) == 2
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_folder_is_searched_without_captions_and_for_what_is_like_a_file(
    place: Place, answer: dict[str, Any]
) -> None:
    file = place.videos / "train" / "00003.mp4"
    found, told = ask(place, "--videos", str(file.parent), "--file", str(file), "--top", "3")
    # They were embedded for the first answer: the same files, under whatever list they come.
    assert "25 videos in the index, 0 of them embedded now" in told and answer["total"] == 26
    assert (found["clips"][0]["id"], len(found["clips"])) == (file.name, 3)
    assert found["clips"][0]["score"] == pytest.approx(1) and found["captions"] == []


def test_a_converted_model_searches_a_folder_with_its_own_words(place: Place, tmp_path: Path) -> None:
    exported, videos = tmp_path / "exported", tmp_path / "videos"
    convert = [sys.executable, "launch/convert.py", str(place.run), "--out", str(exported)]
    subprocess.run(convert, cwd=ROOT, check=True, timeout=120, capture_output=True)
    videos.mkdir()
    draw(videos / "one.mp4", ["red"])
    found, _ = ask(place._replace(run=exported), "--videos", str(videos), "--query", QUERY)
    assert [clip["id"] for clip in found["clips"]] == ["one.mp4"]
