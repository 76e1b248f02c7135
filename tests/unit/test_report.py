"""The report is read off the files of the run, not remembered."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from simvtp_ds.evaluation.report import build_report, summary


def write_evaluation(path: Path, recall: float, **others: object) -> None:
    way = {
        **{"R@1": recall, "R@5": 40.0, "R@10": 60.0, "MdR": 8.0, "MnR": 9.5},
        "interval": {"R@1": [recall - 2.1, recall + 2.2], "R@5": [30.0, 50.0], "R@10": [50.0, 70.0]},
    }
    about = {"queries": 200, "videos": 100, "chance_R@1": 1.0, "fingerprint": "abc", "protocol": "honest"}
    path.write_text(json.dumps({**about, "t2v": way, "v2t": way, **others}))


def write_run(run: Path) -> None:
    environment = {"world_size": 2, "zero_stage": 2, "optimizer": "FusedAdam", "dtype": "fp32"}
    (run / "environment.json").write_text(json.dumps(environment))
    lines = []
    for step in range(1, 21):
        line: dict = {"step": step, "total": 4.0 * step, **dict.fromkeys(("mvm", "mlm", "vtc", "vtm"), float(step))}
        if step % 10 == 0 or step == 1:
            line |= {"clips_per_s": 1.0 if step == 1 else 10.0 * step, "data_wait_share": 0.01 * step}
        lines.append(json.dumps(line))
    (run / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 21, "to')
    write_evaluation(run / "zero_shot.json", 12.5)


def test_the_figures_are_the_runs_own(tmp_path: Path) -> None:
    write_run(tmp_path)
    report = build_report(tmp_path)
    assert report["steps"] == 20
    assert report["clips_per_s"] == pytest.approx(150.0), "the first line pays for starting and is left out"
    assert report["data_wait_share"] == pytest.approx(0.15)
    assert report["loss_first"] == dict.fromkeys(("mvm", "mlm", "vtc", "vtm"), 1.0)
    assert report["loss_last"]["mlm"] == pytest.approx(15.5), "mean of steps 11 to 20"
    assert report["retrieval"]["zero_shot"]["t2v"]["R@1"] == 12.5
    page = summary(report, tmp_path)
    assert "12.5 [ 10.4, 14.7]" in page and "FusedAdam" in page


def test_zero_shot_scratch_and_finetuned_stand_side_by_side(tmp_path: Path) -> None:
    write_run(tmp_path)
    write_evaluation(tmp_path / "scratch.json", 33.0)
    write_evaluation(tmp_path / "finetuned.json", 66.0)
    report = build_report(tmp_path)
    found = report["retrieval"]
    assert (found["queries"], found["videos"], found["chance_R@1"]) == (200, 100, 1.0)
    recalls = {
        name: found[name][way]["R@1"] for name in ("zero_shot", "scratch", "finetuned") for way in ("t2v", "v2t")
    }
    assert recalls == {"zero_shot": 12.5, "scratch": 33.0, "finetuned": 66.0}
    assert found["finetuned"]["v2t"]["interval"]["R@1"] == [63.9, 68.2]
    page = summary(report, tmp_path)
    assert [page.count(f"{recall} [") for recall in (12.5, 33.0, 66.0)] == [2, 2, 2]


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"fingerprint": "other"}, "different sets"),
        ({"queries": 199}, "different sets"),
        ({"protocol": "authors"}, "--protocol honest"),
    ],
)
def test_evaluations_that_cannot_be_compared_are_refused(tmp_path: Path, others: dict, message: str) -> None:
    write_run(tmp_path)
    write_evaluation(tmp_path / "finetuned.json", 66.0, **others)
    with pytest.raises(ValueError, match=message):
        build_report(tmp_path)


def test_a_run_that_was_not_evaluated_has_no_retrieval_block(tmp_path: Path) -> None:
    write_run(tmp_path)
    (tmp_path / "zero_shot.json").unlink()
    assert "retrieval" not in build_report(tmp_path)


@pytest.mark.parametrize(("name", "made_by"), [("environment.json", "pretrain"), ("metrics.jsonl", "training run")])
def test_what_is_missing_is_named(tmp_path: Path, name: str, made_by: str) -> None:
    write_run(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=f"{name} is missing.*{made_by}"):
        build_report(tmp_path)


def test_a_fine_tuning_run_is_sent_to_the_run_that_it_started_from(tmp_path: Path) -> None:
    write_run(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "total": 1.0, "vtc": 1.0, "vtm": 0.0}\n')
    with pytest.raises(ValueError, match=r"is not a run of launch/pretrain\.py"):
        build_report(tmp_path)
