"""The autotuner's search and verdicts, and which runs the scaling bench makes. Nothing is launched here."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import pytest

from simvtp_ds.bench.autotune import advice
from simvtp_ds.bench.cases import BenchError
from simvtp_ds.bench.launched import Ranks, launch_command
from simvtp_ds.bench.options import training_fields
from simvtp_ds.bench.scaling import rank_counts, shared, with_efficiency
from simvtp_ds.bench.throughput import main as throughput
from simvtp_ds.bench.trials import (
    OUT_OF_MEMORY,
    Trial,
    fastest,
    judge,
    keeping,
    largest_that_fits,
    worker_counts,
)


@pytest.mark.parametrize("limit", [2, 3, 7, 16, 40, 100])
@pytest.mark.parametrize("unit", [1, 2])
def test_the_search_ends_within_an_eighth_of_what_fits_and_never_above_it(limit: int, unit: int) -> None:
    tried: list[int] = []

    def fits(size: int) -> bool:
        tried.append(size)
        return size <= limit

    found = largest_that_fits(fits, unit, 2, 64)
    most = min(limit, 64)
    assert found <= most and found % unit == 0 and most - found <= max(unit, most / 7)
    assert len(tried) == len(set(tried)) <= 12 and max(tried) <= 64
    assert largest_that_fits(lambda size: False, unit, 2, 64) == 0


def test_the_global_batch_is_kept_where_a_micro_batch_divides_it() -> None:
    assert keeping(1024, 64, 24, 1) == (16, 1)
    assert keeping(1024, 8, 24, 1) == (16, 8)
    assert keeping(96, 4, 24, 2) == (24, 1)
    assert keeping(100, 64, 24, 1) is None
    assert keeping(7, 1, 6, 1) is None  # a micro batch of one cannot match


def test_a_probe_that_died_of_memory_does_not_fit_and_one_that_failed_otherwise_is_told() -> None:
    setting = {"micro_batch": 4}
    assert judge(0, 'loading\n{"clips_per_s": 2.0}', setting) == Trial(setting, {"clips_per_s": 2.0})
    assert judge(-9, "", setting).found is None
    assert judge(247, "", setting).found is None
    assert judge(1, "torch.OutOfMemoryError: CUDA out of memory.", setting).found is None
    assert judge(OUT_OF_MEMORY, "", setting).found is None
    with pytest.raises(BenchError, match="No such file"):
        judge(1, "Traceback\nNo such file", setting)


def test_fewer_workers_are_taken_where_they_feed_as_much() -> None:
    rates = {1: 10.0, 2: 19.8, 4: 20.0}
    trials = [Trial({"backend": "cpu", "workers": n}, {"clips_per_s": rate}) for n, rate in rates.items()]
    found = fastest(trials)
    assert found is not None and found.setting["workers"] == 2
    assert fastest([]) is None
    assert worker_counts(6) == [1, 2, 4, 6] and worker_counts(0) == [1]


def test_the_advice_is_lines_of_the_json_and_options() -> None:
    report = {"largest_micro_batch": 24, "deepspeed_config": "a.json", "same_global_batch": (16, 2), "global_batch": 64}
    said = advice({**report, "feed": {"backend": "cpu", "workers": 2}})
    assert '"train_micro_batch_size_per_gpu": 16,' in said and "--data.backend cpu --data.workers 2" in said
    assert "scale the lr" in advice({**report, "same_global_batch": None, "feed": None})


def test_ranks_double_within_a_host_and_then_hosts_do() -> None:
    assert rank_counts([2]) == [Ranks(1, 1), Ranks(1, 2)]
    assert [ranks.total for ranks in rank_counts([8] * 6)] == [1, 2, 4, 8, 16, 32, 48]
    assert (shared(16, 8), shared(16, 3), shared(16, 16)) == (2, None, None)


def test_efficiency_is_over_as_many_single_ranks() -> None:
    rows = [{"ranks": 1, "clips_per_s": 10.0}, {"ranks": 4, "clips_per_s": 30.0}]
    assert [row["efficiency"] for row in with_efficiency(rows)] == [1.0, 0.75]


def test_the_launcher_gets_the_hosts_and_the_training_the_fields() -> None:
    command = launch_command(Ranks(2, 8), "hosts", ["launch/pretrain.py"])
    assert command[-3:] == ["--num_accelerators", "8", "launch/pretrain.py"] and "--force_multi" not in command
    assert command[command.index("--num_nodes") + 1] == "2"
    given = ["--deepspeed_config", "a.json", "--steps=3", "--preset", "quickstart", "--data.workers", "1"]
    assert training_fields(given, ("steps",)) == ["--preset", "quickstart", "--data.workers", "1"]


def test_the_reports_of_a_folder_become_one_table_and_one_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="no report of a bench is there"):
        throughput([str(tmp_path)])
    row = {"kind": "weak", "ranks": 2, "micro_batch": 4, "clips_per_s": 3.0, "efficiency": 0.75}
    (tmp_path / "scaling.json").write_text(json.dumps({"rows": [row]}))
    (tmp_path / "train.json").write_text("")  # a bench that was interrupted
    throughput([str(tmp_path)])
    *lines, last = capsys.readouterr().out.splitlines()
    assert "| training, 2 ranks, weak | 3.00 | 4 clips a rank, 75% of linear |" in lines
    assert json.loads(last)["not_run"] == ["step", "data", "train"]
    assert cv2.imread(str(tmp_path / "throughput.png")) is not None
    (tmp_path / "step.json").write_text("{")
    with pytest.raises(SystemExit, match=r"step\.json is no report"):
        throughput([str(tmp_path)])
