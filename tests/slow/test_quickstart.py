"""The whole quickstart, and what its search finds: pytest tests/slow/test_quickstart.py -s (about 20 minutes)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest

from simvtp_ds.data.scenes import DEEDS, DIRECTIONS, make_scenes
from tests.integration.conftest import ROOT, search_page

pytestmark = pytest.mark.slow


def test_a_sentence_finds_the_clip_it_tells_of(tmp_path: Path) -> None:
    run = tmp_path / "run"
    environment = {**os.environ, "VENV": sys.prefix, "RUN": str(run)}
    subprocess.run(["bash", "launch/quickstart.sh"], cwd=ROOT, env=environment, check=True, timeout=3600)
    shown = {
        f"test/{index:05d}.mp4": (scene.shape, scene.colour, scene.motion)
        for index, scene in enumerate(make_scenes(2000, 200, seed=0)[1])
    }
    command = [sys.executable, "launch/search.py", "--checkpoint", f"{run}/finetuned", "--manifest", f"{run}/data/test"]
    with search_page(run, command) as address:

        def first(shape: str, colour: str, motion: str) -> tuple[str, str, str]:
            action = f"moves {motion}" if motion in DIRECTIONS else motion
            asked = urlencode({"query": f"a {colour} {shape} {action}", "limit": 1})
            with urlopen(f"{address}/api/clips?{asked}") as answer:
                (clip,) = json.load(answer)["clips"]
            return shown[clip["id"]]

        right = sum(first(*deed) == deed for deed in DEEDS)
    print(f"{right} of {len(DEEDS)} sentences find a clip of their shape, colour and motion first")
    assert right >= 0.75 * len(DEEDS)
