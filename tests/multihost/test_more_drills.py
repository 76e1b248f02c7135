"""More drills, by name only: `pytest tests/multihost -m slow`."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from simvtp_ds.engine.checkpoint import newest_valid
from tests.integration.conftest import deepspeed_json, losses
from tests.multihost.drills import CONFIG, DRIVER, FIELDS, GRACE, LAST, TIMEOUT, Drill, kill, stop_at

pytestmark = [pytest.mark.multihost, pytest.mark.slow]


def test_a_rank_killed_at_the_start_ends_the_run(drill: Drill) -> None:
    launch = drill.start("start", run__step_timeout=15)
    deadline = time.monotonic() + 100
    while not (ranks := drill.cluster.hosts.ranks("worker-2", DRIVER)):
        assert time.monotonic() < deadline and launch.process.poll() is None
        time.sleep(0.05)
    kill(ranks[0])
    since = drill.begins(launch)
    drill.ends(launch, "rank killed at the start", "rank 0: .*rank 1 never came", since, 15 + GRACE)


def test_the_first_rank_killed_is_named_by_the_others(drill: Drill, undisturbed: Path) -> None:
    launch = drill.start("first", "0:end:7:SIGKILL")
    drill.ends(launch, "rank 0 killed", "rank 1: rank 0 on .* (is gone|does not answer)")
    drill.resumes_exactly(launch, undisturbed)


def test_a_host_whose_ssh_connection_is_gone_makes_the_run_save_and_end(drill: Drill, undisturbed: Path) -> None:
    launch = drill.start("sshd")
    launch.wait_for_step(6)
    drill.cluster.hosts.stop_sshd("worker-2")
    since = time.monotonic()
    try:
        code, output = launch.wait(timeout=GRACE)
    finally:
        drill.cluster.hosts.start_sshd("worker-2")
    assert code != 0
    assert "stopped by the end of the process that started the launcher" in output
    assert drill.cluster.hosts.leftovers() == {}
    told = [line for line in output.splitlines() if "stopped by" in line or "ssh exited" in line]
    drill.note("sshd of a host gone", code, time.monotonic() - since, launch, told)
    newest = newest_valid(launch.run)
    assert newest is not None and int(newest.name.removeprefix("step_")) == max(losses(launch.run))


def test_an_sshd_that_is_missing_at_the_start_ends_the_run(drill: Drill) -> None:
    drill.cluster.hosts.stop_sshd("worker-2")
    try:
        launch = drill.start("no_sshd", run__step_timeout=15)
        drill.ends(launch, "sshd gone at the start", "rank 0: .*rank 1 never came", drill.begins(launch), 15 + GRACE)
    finally:
        drill.cluster.hosts.start_sshd("worker-2")


def test_decoders_that_die_or_hang_cost_their_clips_only(drill: Drill) -> None:
    launch = drill.start("decoders", data__decode_timeout=5, data__max_bad_share=0.9)
    for number in (signal.SIGKILL, signal.SIGSTOP):
        launch.wait_for_step(max(losses(launch.run), default=0) + 3)
        found = [p for p, words in drill.cluster.hosts.processes("worker-2").items() if "spawn_main" in words]
        kill(found[0], number)
        since = time.monotonic()
        launch.wait_for_step(max(losses(launch.run)) + 6)
        drill.note(f"decoder {number.name}", 0, time.monotonic() - since, launch, [])
    kill(drill.cluster.hosts.ranks("worker-1", DRIVER)[0], signal.SIGTERM)
    output = launch.succeed(timeout=GRACE)
    assert "not decoded after 5 s" in output  # one that was killed while it had no clip costs nothing
    assert drill.cluster.hosts.leftovers() == {}


def test_a_disk_that_fills_up_while_the_run_logs_ends_it(drill: Drill) -> None:
    hosts, run = drill.cluster.hosts, drill.cluster.launcher.folder / "logging"
    run.mkdir()
    hosts.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(run)], "worker-1")
    inside = hosts.inside("worker-1", run)
    fields = {**FIELDS, "fault": "0:end:0:SIGTERM", "run__save_every": 100000}
    arguments = drill.cluster.launcher.arguments(DRIVER, "logging", CONFIG, fields)
    command = ["torchrun", "--nproc_per_node=2", "--master_port=29777", DRIVER, *arguments]
    launch = drill.cluster.start("logging", command, "worker-1")
    launch.run = inside
    launch.wait_for_step(3)
    with (inside / "filler").open("wb", buffering=0) as filler, pytest.raises(OSError, match="No space left"):
        while True:
            filler.write(bytes(1 << 16))
    told = r"rank 0: .*cannot be written \(.*No space left on device\); checkpoints are intact"
    drill.ends(launch, "disk full while logging", told, time.monotonic())
    hosts.run(["umount", str(run)], "worker-1")


def test_damaged_checkpoints_are_passed_over_whatever_the_latest_file_says(drill: Drill, undisturbed: Path) -> None:
    run = drill.cluster.launcher.folder / "damaged"
    shutil.copytree(undisturbed, run)
    root = run / "checkpoints"
    truncated, missing = root / f"step_{LAST:08d}", root / "step_00000012"
    shard = next(truncated.glob("*optim_states.pt"))
    os.truncate(shard, 1000)
    next(missing.glob("*model_states.pt")).unlink()
    for folder, target in ((root, "nowhere"), (root / "step_00000008", "")):
        (folder / "latest").symlink_to(target) if target else (folder / "latest").write_text("")
    began = time.monotonic()
    output = drill.cluster.launcher.torchrun("damaged", CONFIG, driver=DRIVER, **stop_at(LAST)).succeed()
    assert f"checkpoint {truncated.name} is passed over: " in output
    assert f"checkpoint {missing.name} is passed over: " in output
    assert f"resumed from {root / 'step_00000008'}" in output
    assert losses(run) == losses(undisturbed)
    print(f"resumed and made {LAST - 8} steps in {time.monotonic() - began:.0f} s")


def test_a_checkpoint_of_another_model_is_refused_in_one_line(drill: Drill, undisturbed: Path) -> None:
    run = drill.cluster.launcher.folder / "other"
    shutil.copytree(undisturbed, run)
    fields = {**stop_at(LAST), "model__width": 48, "model__heads": 3}
    code, output = drill.cluster.launcher.torchrun("other", CONFIG, driver=DRIVER, **fields).wait()
    assert code != 0
    assert re.search(r"error on .*cannot go on from .*: model was ", output)
    assert "Traceback" not in output.split("error on")[0]


def test_gradients_that_overflow_at_the_lowest_scale_end_the_run(drill: Drill) -> None:
    config = deepspeed_json(fp16={"enabled": True, "initial_scale_power": 1, "min_loss_scale": 1, "hysteresis": 1})
    config["optimizer"]["params"]["lr"] = 1e6
    driver = "tests/integration/drivers/fp16_on_cpu.py"
    launch = drill.cluster.launcher.torchrun(
        "floor", config, driver=driver, schedule__max_steps=1000, run__max_skipped=5, run__save_every=1
    )
    code, output = launch.wait()
    assert code != 0
    assert "5 skipped steps in a row" in output and "error on" in output
    assert newest_valid(launch.run) is not None
    drill.note("loss scale at its floor", code, 0, launch, [line for line in output.splitlines() if "error on" in line])


def test_sigterm_to_the_deepspeed_command_saves_on_all_hosts(drill: Drill) -> None:
    launch = drill.start("sigterm", run__save_every=100000)
    launch.wait_for_step(6)
    runner = [p for p, words in drill.cluster.hosts.processes("head").items() if "bin/deepspeed" in words]
    since = kill(min(runner), signal.SIGTERM)
    code, output = launch.wait(timeout=GRACE)
    assert code != 0
    assert drill.cluster.hosts.leftovers(patience=35) == {}
    seconds = time.monotonic() - since
    assert "stopped by" in (launch.run / "log.txt").read_text(), output[-3000:]
    drill.note("SIGTERM to the deepspeed command", code, seconds, launch, [])
    newest = newest_valid(launch.run)
    assert newest is not None and int(newest.name.removeprefix("step_")) == max(losses(launch.run))


def test_a_host_whose_clock_is_a_day_ahead_changes_nothing(drill: Drill, undisturbed: Path, tmp_path: Path) -> None:
    source, library = Path(__file__).parent / "drivers" / "clock_ahead.c", tmp_path / "clock_ahead.so"
    # (libfaketime 0.9.10 fails in Python's sleep.)
    subprocess.run(["gcc", "-shared", "-fPIC", "-O2", "-DAHEAD=86400", "-o", library, source, "-ldl"], check=True)
    names = drill.cluster.hosts.names[:2]
    arguments = drill.cluster.launcher.arguments(DRIVER, "clocks", CONFIG, stop_at(LAST))
    launches = []
    for number, host in enumerate(names):
        places = {
            "RANK": str(number),
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "2",
            "MASTER_ADDR": names[0],
            "MASTER_PORT": "29778",
        }
        ahead = {"LD_PRELOAD": str(library)} if number else {}
        launches.append(drill.cluster.start("clocks", ["python", DRIVER, *arguments], host, {**places, **ahead}))
    for launch in launches:
        launch.succeed()
    assert losses(launches[0].run) == losses(undisturbed)
    log = (launches[0].run / "ranks").glob("*.log")
    days = {path.read_text()[:10] for path in log}
    assert len(days) == 2, "the clocks did not differ"


def test_two_runs_from_two_hosts_on_one_folder_are_not_possible(drill: Drill) -> None:
    first = drill.start("shared")
    first.wait_for_step(2)
    arguments = drill.cluster.launcher.arguments(DRIVER, "shared", CONFIG, {**FIELDS, "fault": "0:end:0:SIGTERM"})
    hostfile = str(drill.cluster.hosts.hostfile(1, drill.cluster.hosts.names[2:4]))
    words = ["deepspeed", "--master_port=29779", "--hostfile", hostfile, DRIVER, *arguments]
    second = drill.cluster.start("shared", words, "head")
    began = drill.begins(second, "worker-4")
    code, output = second.wait(timeout=GRACE + TIMEOUT)
    assert code != 0
    assert re.search(r"error on worker-3: rank 0: .*shared is in use by process \d+ on worker-1", output)
    seconds = time.monotonic() - began
    assert seconds < 20, "the second run waited for its time-out"
    drill.note("a second run on the folder", code, seconds, second, [])
    first.wait_for_step(max(losses(first.run)) + 2)
    kill(drill.cluster.hosts.ranks("worker-1", DRIVER)[0], signal.SIGTERM)
    first.succeed(timeout=GRACE)


@pytest.mark.parametrize("fault", ["changed", "gone"])
def test_videos_that_change_or_vanish_under_the_run_are_told(drill: Drill, fault: str) -> None:
    videos, data = drill.cluster.launcher.folder / f"videos_{fault}", drill.cluster.launcher.folder / f"data_{fault}"
    shutil.copytree(drill.cluster.launcher.corpus.parent / "videos", videos)
    prepare = ["python", "launch/prepare.py", str(videos / "train.json"), "--out", str(data), "--vocab-size", "1000"]
    drill.cluster.hosts.run(prepare)
    share = 0.9 if fault == "changed" else 0.05
    launch = drill.start(fault, data__manifest=data, data__max_bad_share=share)
    launch.wait_for_step(3)
    files = sorted((videos / "train").rglob("*.mp4"))
    if fault == "gone":
        since = time.monotonic()
        for file in files:
            file.unlink()
        told = "rank [01]: .*clips cannot be decoded|rank [01]: .*replacements in a row cannot be decoded"
        drill.ends(launch, "videos vanish", told, since)
        return
    for file in files[:4]:
        file.write_bytes(file.read_bytes() * 2)
    launch.wait_for_step(max(losses(launch.run)) + 20)
    kill(drill.cluster.hosts.ranks("worker-1", DRIVER)[0], signal.SIGTERM)
    assert "when it was prepared; prepare it again" in launch.succeed(timeout=GRACE)
