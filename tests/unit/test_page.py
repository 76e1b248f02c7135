"""The report as a page: what stands on it, and that nothing a run wrote can do harm there."""

from __future__ import annotations

import base64
import json
import re
import runpy
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from simvtp_ds.evaluation.charts import Line, line_chart, short, thinned
from simvtp_ds.evaluation.history import differing, find_restarts, read_history, runs_within
from simvtp_ds.evaluation.page import render, unique_names

ROOT = Path(__file__).resolve().parents[2]
EVIL = "<script>alert(1)</script><img src=http://evil.example/x onerror=alert(2)>\" & '"
VOID = {"meta", "img", "link", "br"}
LOG = """\
2026-01-01 10:00:00 PretrainTask 1.00 M parameters, 64 clips, 2 ranks x 4 clips x 1 = 8 a step, fp32, ZeRO-2, FusedAdam, steps 0 to 100 (8 an epoch)
2026-01-01 10:00:10 step 10/100 total 1.0 mvm 1.0
2026-01-01 10:00:20 step 20/100 total 1.0 mvm 1.0
2026-01-01 10:00:20 checkpoint runs/x/checkpoints/step_00000020 written in 0.1 s
2026-01-01 10:00:30 step 30/100 total 1.0 mvm 1.0
2026-01-01 10:05:30 PretrainTask 1.00 M parameters, 64 clips, 2 ranks x 4 clips x 1 = 8 a step, fp32, ZeRO-2, FusedAdam, steps 20 to 100 (8 an epoch), resumed from x
2026-01-01 10:05:45 step 30/100 total 1.0 mvm 1.0
2026-01-01 10:05:55 step 40/100 total 1.0 mvm 1.0
2026-01-01 10:06:00 stopped by SIGTERM after step 41: resume me with --resume auto
2026-01-01 10:07:55 PretrainTask 1.00 M parameters, 64 clips, 2 ranks x 4 clips x 1 = 8 a step, fp32, ZeRO-2, FusedAdam, steps 41 to 100 (8 an epoch), resumed from x
2026-01-01 10:08:00 step 50/100 total 1.0 mvm 1.0
2026-01-01 10:08:50 finished at step 100: 3 clips on this rank
"""  # noqa: E501


class Page(HTMLParser):
    """Tags, attributes and text of a page; fails where tags do not close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def write_run(run: Path, lr: float = 1e-3, finetuning: bool = False) -> Path:
    run.mkdir(parents=True)
    parts = ("vtc", "vtm") if finetuning else ("mvm", "mlm", "vtc", "vtm")
    told = {"lr": lr, "clips_per_s": 7.0, "data_wait_share": 0.25, "grad_norm": 1.5, "loss_scale": 1.0}
    lines = [{"step": step, "total": 4.0, **dict.fromkeys(parts, 1.0 / step), **told} for step in range(1, 31)]
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 31, "to')
    about = {"world_size": 2, "zero_stage": 2, "optimizer": "FusedAdam", "dtype": "fp32", "hosts": [EVIL, "b"]}
    packages = {"torch": "2.14"}
    (run / "environment.json").write_text(json.dumps({**about, "packages": packages, "commit": "abc123"}))
    (run / "config.yaml").write_text(f"run:\n  dir: {run}\n  seed: 5\ndata:\n  manifest: {json.dumps(EVIL)}\n")
    (run / "deepspeed.json").write_text(json.dumps({"optimizer": {"params": {"lr": lr}}}))
    (run / "log.txt").write_text(LOG + EVIL)
    (run / "bad_clips").mkdir()
    bad = {"uri": "/x.mp4", "clip_id": "x", "reason": f"/x.mp4: {EVIL}", "epoch": 0, "step": 3}
    (run / "bad_clips" / "rank_1.jsonl").write_text((json.dumps(bad) + "\n") * 2)
    (run / "supervise.jsonl").write_text(json.dumps({"time": "10:03", "event": "exit", "code": -9, "reason": EVIL}))
    (run / "pictures").mkdir()
    Image.new("RGB", (4, 4), "red").save(run / "pictures" / f"000_{'x' * 5}.png")
    return run


def test_a_page_loads_nothing_runs_nothing_and_shows_what_a_run_wrote_as_text(tmp_path: Path) -> None:
    run = write_run(tmp_path / "<b>run")
    (run / f"pictures/{EVIL.replace('/', '')}.png").write_bytes((run / "pictures/000_xxxxx.png").read_bytes())
    page = Page(render([read_history(run)]))
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "embed", "form", "base", "b"}
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("src", "href", "srcset", "xlink:href", "data", "action"):
            assert (attributes.get(name) or "data:image/png;base64,").startswith("data:image/png;base64,")
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and "default-src 'none'" in policy
    assert page.text.count(EVIL) >= 3, "host, bad clip and supervisor"
    assert "abc123" in page.text and "seed: 5" in page.text
    assert any(attributes.get("name") == "viewport" for _, attributes in page.tags)


def test_a_picture_is_in_the_file_byte_for_byte(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (source,) = re.findall(r"data:image/png;base64,([^\"]+)", render([read_history(run)]))
    assert base64.b64decode(source) == (run / "pictures" / "000_xxxxx.png").read_bytes()


def test_runs_are_compared_by_what_differs(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", lr=5e-4), write_run(tmp_path / "c", finetuning=True)]
    histories = [read_history(run) for run in runs]
    assert [history.kind for history in histories] == ["pre-training", "pre-training", "fine-tuning"]
    assert differing(histories) == {"deepspeed.optimizer.params.lr": [1e-3, 5e-4, 1e-3]}
    page = Page(render(histories))
    assert unique_names(runs) == ["a", "b", "c"]
    titles = [attributes["aria-label"] for tag, attributes in page.tags if tag == "svg"]
    assert sum(str(title).startswith("vtc: contrast, at the end: a") for title in titles) == 1
    assert sum(str(title).startswith("vtc: contrast, at the end: c") for title in titles) == 1
    assert sum(str(title).startswith("mlm") for title in titles) == 1
    assert "deepspeed.optimizer.params.lr" in page.text


def test_the_fine_tuned_runs_inside_a_run_are_on_its_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    write_run(run / "finetuned", finetuning=True)
    assert runs_within(run) == [run, run / "finetuned"]


def test_time_lost_is_counted_from_the_last_logged_step_until_it_is_reached_again() -> None:
    killed, stopped = find_restarts(LOG)
    # 10:00:30 step 30; killed; started at 10:05:30 from step 20; step 30 again at 10:05:45
    assert (killed.step, killed.reached, killed.why, killed.lost) == (20, 30, "", 315.0)
    # 10:05:55 step 40; stopped; 10:08:00 is the first line at or beyond step 40
    assert (stopped.step, stopped.reached, stopped.lost) == (41, 40, 125.0)
    assert "stopped by SIGTERM" in stopped.why


def test_a_run_that_dies_twice_before_it_gets_further_loses_the_time_once() -> None:
    start = " PretrainTask 1.00 M parameters, x, steps {} to 100 (8 an epoch)"
    log = "\n".join(
        [
            "2026-01-01 10:00:00" + start.format(0),
            "2026-01-01 10:01:00 step 50/100 total 1",
            "2026-01-01 10:02:00" + start.format(20),
            "2026-01-01 10:02:30 step 30/100 total 1",
            "2026-01-01 10:04:00" + start.format(20),
            "2026-01-01 10:05:00 step 50/100 total 1",
            "2026-01-01 10:06:00 step 60/100 total 1",
        ]
    )
    assert sum(restart.lost for restart in find_restarts(log)) == 240.0


def test_a_run_made_longer_after_its_end_has_lost_nothing() -> None:
    later = LOG + "2026-01-02 10:00:00 PretrainTask 1.00 M parameters, x, steps 100 to 200 (8 an epoch)\n"
    assert find_restarts(later)[-1].lost == 0.0


def test_a_chart_puts_values_where_they_belong_and_breaks_at_missing_ones() -> None:
    svg = line_chart("loss", [Line("a", [(0, 0.0), (50, 10.0), (75, None), (100, 5.0)])], [0])
    (points,) = re.findall(r'<polyline class="c0" points="([^"]+)"', svg)
    assert points == "54.0,214.0 261.0,12.0"  # bottom left to the top in the middle of a plot of 414 x 202
    (last,) = re.findall(r'<circle class="c0" cx="([\d.]+)" cy="([\d.]+)"', svg)
    assert last == ("468.0", "113.0")
    assert line_chart("nothing", [Line("a", [(1, None)])], [0]) == ""
    assert "polyline" in line_chart("flat", [Line("a", [(1, 2.0), (2, 2.0)])], [0])


def test_a_long_curve_is_thinned_to_means_and_keeps_its_area() -> None:
    points = [(float(x), float(x % 7)) for x in range(10_000)]
    few = thinned(points, 100)
    assert len(few) == 100
    assert sum(y for _, y in few if y is not None) / 100 == pytest.approx(sum(y for _, y in points) / 10_000)
    assert thinned([(1, None), (2, 4.0)], 1) == [(1.5, 4.0)]
    assert [short(v) for v in (0, 12000, 0.95, 1.5e-4)] == ["0", "12k", "0.95", "1.5e-04"]


def test_one_run_gets_a_page_beside_it_and_several_need_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b", finetuning=True)

    def report(*arguments: object) -> None:
        monkeypatch.setattr(sys, "argv", ["launch/report.py", *map(str, arguments)])
        runpy.run_path(str(ROOT / "launch" / "report.py"), run_name="__main__")

    report(a)
    assert (a / "report.json").exists() and "<title>a</title>" in (a / "report.html").read_text()
    assert "FusedAdam" in capsys.readouterr().out
    with pytest.raises(SystemExit) as refused:
        report(a, b)
    assert refused.value.code == 1 and "--out comparison.html" in capsys.readouterr().err
    report(a, b, "--out", tmp_path / "new" / "page.html")
    assert "<title>a, b</title>" in (tmp_path / "new" / "page.html").read_text()
