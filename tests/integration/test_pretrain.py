"""Real runs: what they learn does not depend on ranks, stages or interruptions, and nothing stops them for good."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from simvtp_ds.data.manifest import Manifest, write_manifest
from simvtp_ds.engine.checkpoint import newest_valid, steps_of
from tests.integration.conftest import (
    ROOT,
    TINY,
    Launcher,
    deepspeed_json,
    losses,
    metrics,
    no_process_left,
    processes,
)

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def undisturbed(launcher: Launcher) -> Path:
    """Six steps, checkpoints after 3 and 6, on two ranks under the deepspeed launcher."""
    launch = launcher.deepspeed("undisturbed", deepspeed_json(accumulation=2))
    output = launch.succeed()
    assert "finished at step 6" in output
    return launch.run


def test_a_run_leaves_what_a_person_and_a_tool_need(undisturbed: Path) -> None:
    for name in ("config.yaml", "deepspeed.json", "environment.json", "log.txt", "tokenizer/tokenizer.json"):
        assert (undisturbed / name).stat().st_size > 0
    assert json.loads((undisturbed / "deepspeed.json").read_text()) == deepspeed_json(accumulation=2)
    assert json.loads((undisturbed / "environment.json").read_text())["optimizer"] == "FusedAdam"
    assert list((undisturbed / "tensorboard").glob("events.*"))
    assert sorted(losses(undisturbed)) == [1, 2, 3, 4, 5, 6]
    last = metrics(undisturbed)[-1]
    assert {"lr", "grad_norm", "clips_per_s", "data_wait_share", "memory_gib", "loss_scale"} <= set(last)


def test_a_resumed_run_equals_an_undisturbed_one_bit_for_bit(undisturbed: Path, launcher: Launcher) -> None:
    resumed = launcher.folder / "resumed"
    shutil.copytree(undisturbed, resumed)
    shutil.rmtree(resumed / "checkpoints" / "step_00000006")
    output = launcher.torchrun("resumed", deepspeed_json(accumulation=2)).succeed()
    assert "resumed from" in output
    assert losses(resumed) == losses(undisturbed)
    ours, theirs = (load_file(run / "checkpoints/step_00000006/weights.safetensors") for run in (resumed, undisturbed))
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in ours)


def test_a_damaged_checkpoint_is_passed_over_and_made_again(undisturbed: Path, launcher: Launcher) -> None:
    damaged = launcher.folder / "damaged"
    shutil.copytree(undisturbed, damaged)
    shard = next((damaged / "checkpoints" / "step_00000006").glob("*optim_states.pt"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    assert newest_valid(damaged) == damaged / "checkpoints" / "step_00000003"
    output = launcher.torchrun("damaged", deepspeed_json(accumulation=2)).succeed()
    assert "checkpoint step_00000006 is passed over" in output
    assert losses(damaged) == losses(undisturbed)
    assert newest_valid(damaged) == damaged / "checkpoints" / "step_00000006"


def test_two_ranks_learn_what_one_process_learns(launcher: Launcher) -> None:
    fields: dict[str, Any] = {"model__text_dropout": 0.0}  # dropout differs between ranks by intention
    one = launcher.torchrun("one", deepspeed_json(stage=0, micro=8), ranks=1, **fields)
    one.succeed()
    for stage, recompute in ((0, False), (1, True), (2, False), (3, True)):
        name, fields["compute__recompute"] = f"two_stage_{stage}_{recompute}", recompute
        fields["run__picture_every"] = 2 if stage == 3 else 0  # the ranks hold parts of what the pictures need
        two = launcher.torchrun(name, deepspeed_json(stage=stage, micro=4), ranks=2, **fields)
        two.succeed()
        assert len(list(two.run.glob("pictures/*.png"))) == (3 if stage == 3 else 0)
        for step, expected in losses(one.run).items():
            assert losses(two.run)[step] == pytest.approx(expected, rel=2e-5), f"{name}, step {step}"


def test_pictures_are_taken_and_change_nothing(undisturbed: Path, launcher: Launcher) -> None:
    launch = launcher.torchrun("pictured", deepspeed_json(accumulation=2), run__picture_every=4)
    launch.succeed()
    assert losses(launch.run) == losses(undisturbed)
    ours, theirs = (
        load_file(run / "checkpoints/step_00000006/weights.safetensors") for run in (launch.run, undisturbed)
    )
    assert all(ours[name].equal(theirs[name]) for name in theirs)
    pictures = sorted((launch.run / "pictures").iterdir())
    assert [path.name for path in pictures] == ["step_00000004.png", "step_00000006.png"]
    events = EventAccumulator(str(launch.run / "tensorboard"), {"images": 0}).Reload()
    shown = events.Images("reconstruction")
    assert [image.step for image in shown] == [4, 6]
    for image, path in zip(shown, pictures, strict=True):
        in_board, in_file = Image.open(io.BytesIO(image.encoded_image_string)), Image.open(path)
        assert np.array_equal(np.asarray(in_board), np.asarray(in_file))


def test_bf16_stays_close_to_fp32(launcher: Launcher) -> None:
    runs = {}
    both: dict[str, dict[str, Any]] = {"fp32": {}, "bf16": {"bf16": {"enabled": True}}}
    for dtype, sections in both.items():
        launch = launcher.torchrun(dtype, deepspeed_json(**sections))
        launch.succeed()
        runs[dtype] = losses(launch.run)
    for step, expected in runs["fp32"].items():
        assert runs["bf16"][step] == pytest.approx(expected, rel=0.05), f"step {step}"
    assert runs["bf16"] != runs["fp32"]


def test_a_killed_rank_ends_the_run_and_the_next_start_goes_on(launcher: Launcher) -> None:
    config = deepspeed_json()
    launch = launcher.deepspeed("killed", config, schedule__max_steps=100000, run__save_every=5)
    with no_process_left(str(launch.run)):
        launch.wait_for_step(6)
        ranks = [p for p in processes(str(launch.run)) if b"--local_rank=1" in Path(f"/proc/{p}/cmdline").read_bytes()]
        victims = [p for p in ranks if b"deepspeed.launcher" not in Path(f"/proc/{p}/cmdline").read_bytes()]
        os.kill(victims[0], signal.SIGKILL)
        code, _ = launch.wait(timeout=60)
        assert code != 0
    newest = newest_valid(launch.run)
    assert newest is not None
    steps = int(newest.name.removeprefix("step_")) + 2
    again = launcher.deepspeed("killed", config, schedule__max_steps=steps, run__save_every=5)
    assert f"resumed from {newest}" in again.succeed()
    assert max(losses(launch.run)) == steps


def test_a_signal_to_one_rank_saves_on_all_and_exits_with_0(launcher: Launcher) -> None:
    launch = launcher.torchrun("signalled", deepspeed_json(), schedule__max_steps=100000, run__save_every=100000)
    launch.wait_for_step(2)
    ranks = [
        p for p in processes(str(launch.run)) if b"torch.distributed.run" not in Path(f"/proc/{p}/cmdline").read_bytes()
    ]
    os.kill(ranks[-1], signal.SIGUSR1)
    output = launch.succeed(timeout=60)
    assert "resume me with --resume auto" in output
    newest = newest_valid(launch.run)
    assert newest is not None
    assert int(newest.name.removeprefix("step_")) == max(losses(launch.run))


def test_a_killed_deepspeed_command_leaves_a_checkpoint_and_no_process(launcher: Launcher) -> None:
    launch = launcher.deepspeed("orphaned", deepspeed_json(), schedule__max_steps=100000, run__save_every=100000)
    with no_process_left(str(launch.run)):
        launch.wait_for_step(2)
        launch.process.terminate()
        _, output = launch.wait(timeout=60)
    assert "resume me with --resume auto" in (launch.run / "log.txt").read_text()
    newest = newest_valid(launch.run)
    assert newest is not None, output[-3000:]


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_loss_that_is_not_finite_on_one_rank_is_skipped_on_all(
    launcher: Launcher, monkeypatch: pytest.MonkeyPatch, stage: int
) -> None:
    monkeypatch.setenv("NAN_STEPS", "2")
    driver = "tests/integration/drivers/nan_on_rank_1.py"
    launch = launcher.torchrun(f"nan_{stage}", deepspeed_json(stage=stage), driver=driver)
    output = launch.succeed()
    assert "step 2 skipped: mlm not finite on rank 1" in output
    assert "1 steps skipped" in output
    weights = load_file(launch.run / "checkpoints/step_00000006/weights.safetensors")
    assert all(w.isfinite().all() for w in weights.values())


def test_losses_that_stay_not_finite_end_the_run_and_leave_the_checkpoint(
    launcher: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NAN_STEPS", ",".join(map(str, range(4, 100))))
    driver = "tests/integration/drivers/nan_on_rank_1.py"
    launch = launcher.torchrun("nans", deepspeed_json(), driver=driver, schedule__max_steps=50, run__max_skipped=5)
    code, output = launch.wait()
    assert code != 0
    assert "step 8: 5 skipped steps in a row (mlm not finite on rank 1)" in output
    newest = newest_valid(launch.run)
    assert newest is not None
    assert all(w.isfinite().all() for w in load_file(newest / "weights.safetensors").values())


def test_fp16_scales_the_loss_skips_overflows_and_goes_on(launcher: Launcher) -> None:
    fp16 = {"enabled": True, "initial_scale_power": 32, "hysteresis": 1, "loss_scale_window": 1000}
    driver = "tests/integration/drivers/fp16_on_cpu.py"
    launch = launcher.torchrun(
        "fp16", deepspeed_json(fp16=fp16), driver=driver, schedule__max_steps=40, run__log_every=1, run__max_skipped=3
    )
    output = launch.succeed()
    scales = [m["loss_scale"] for m in metrics(launch.run)]
    assert "skipped: gradient not finite at loss scale" in output
    assert scales[-1] < 2**32
    assert scales[-1] == scales[-5], "the scale has not settled"
    weights = load_file(launch.run / "checkpoints/step_00000040/weights.safetensors")
    assert all(w.isfinite().all() for w in weights.values())


def test_a_disk_that_cannot_take_the_checkpoint_ends_the_run_and_keeps_the_earlier_one(
    undisturbed: Path, launcher: Launcher
) -> None:
    full = launcher.folder / "full"
    shutil.copytree(undisturbed, full)
    shutil.rmtree(full / "checkpoints" / "step_00000006")
    biggest = max(p.stat().st_size for p in (full / "checkpoints").rglob("*") if p.is_file())
    arguments = launcher.arguments("launch/pretrain.py", "full", deepspeed_json(accumulation=2), {})
    # The largest file of a checkpoint is a byte too large; everything else can be written.
    script = f'ulimit -f {(biggest - 1) // 1024}; exec "$@"'
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29777"]
    command = ["bash", "-c", script, "full", *torchrun, "launch/pretrain.py", *arguments]
    code, output = launcher.start(command, "full").wait()
    assert code != 0
    assert "could not be written" in output and "earlier ones are intact" in output
    assert newest_valid(full) == full / "checkpoints" / "step_00000003"
    assert [p.name for p in (full / "checkpoints").iterdir() if p.is_dir()] == ["step_00000003"]


def test_srun_variables_alone_start_a_run(launcher: Launcher) -> None:
    arguments = launcher.arguments("launch/pretrain.py", "slurm", deepspeed_json(), {"schedule.max_steps": 2})
    starts = []
    for rank in (0, 1):
        variables = {
            "SLURM_STEP_ID": "0",
            "SLURM_NTASKS": "2",
            "SLURM_PROCID": str(rank),
            "SLURM_LOCALID": str(rank),
            "SLURM_STEP_NODELIST": "127.0.0.1",
            "SLURM_JOB_ID": str(os.getpid()),
            "SLURM_STEP_TASKS_PER_NODE": "2",
        }
        starts.append(launcher.start([sys.executable, "launch/pretrain.py", *arguments], "slurm", **variables))
    for start in starts:
        start.succeed()
    assert sorted(losses(launcher.folder / "slurm")) == [1, 2]


def test_a_finished_run_leaves_its_process_group(launcher: Launcher) -> None:
    code = (
        "import sys; sys.path.insert(0, '.'); import torch.distributed as dist; from launch.pretrain import main; "
        "main(sys.argv[1:]); print('joined:', dist.is_initialized())"
    )
    fields = {"schedule.max_steps": 1}
    arguments = launcher.arguments("launch/pretrain.py", "left", deepspeed_json(), fields)
    output = launcher.start([sys.executable, "-c", code, *arguments], "left").succeed()
    assert "finished at step 1" in output
    assert "joined: False" in output


def test_only_the_newest_checkpoints_are_kept(launcher: Launcher) -> None:
    launch = launcher.torchrun("kept", deepspeed_json(), ranks=1, run__save_every=1, run__keep=2)
    launch.succeed()
    assert [p.name for p in steps_of(launch.run)] == ["step_00000006", "step_00000005"]
    assert sum(p.is_dir() for p in (launch.run / "checkpoints").iterdir()) == 2


def test_members_of_noise_in_packed_shards_are_replaced_counted_and_named(launcher: Launcher, tmp_path: Path) -> None:
    annotations, packed = launcher.corpus.parent / "videos" / "train.json", tmp_path / "packed"
    prepare = [sys.executable, "launch/prepare.py", str(annotations), "--out", str(tmp_path / "data")]
    subprocess.run([*prepare, "--pack", str(packed), "--vocab-size", "1000"], cwd=ROOT, check=True, timeout=120)
    manifest = Manifest.open(packed)
    noisy = [manifest[row] for row in random.Random(0).sample(range(len(manifest)), 3)]  # 5 % of 64
    for clip in noisy:
        with Path(clip.uri).open("r+b") as file:
            file.seek(clip.offset)
            file.write(random.Random(0).randbytes(clip.length))
    fields = {"data__manifest": packed, "data__max_bad_share": 0.2, "schedule__max_steps": 16}  # an epoch
    launch = launcher.torchrun("noise", deepspeed_json(), ranks=1, **fields)
    output = launch.succeed()
    assert sorted(losses(launch.run)) == list(range(1, 17))
    bad = [json.loads(line) for line in (launch.run / "bad_clips/rank_0.jsonl").read_text().splitlines()]
    assert {line["clip_id"] for line in bad} == {clip.clip_id for clip in noisy}
    assert all(line["uri"] in output for line in bad)
    fields["data__max_bad_share"] = 0.01
    code, output = launcher.torchrun("too_many", deepspeed_json(), ranks=1, **fields).wait()
    assert code != 0
    assert "max_bad_share" in output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--data.manifest", "/nowhere"], "/nowhere"),
        (["--deepspeed_config", "ds_configs/zero2.json"], "zero2_bf16.json"),
        (["--deepspeed_config", "/nowhere.json"], "/nowhere.json"),
        (["--data.image_size", "33"], "data.image_size 33"),
        (["--preset", "nosuch"], "pretrain_webvid"),
        (["--resume", "/nowhere"], "/nowhere"),
        (["--schedule.max_steps", "-1"], "max_steps"),
    ],
)
def test_what_a_user_can_get_wrong_is_one_clear_line(launcher: Launcher, change: list[str], message: str) -> None:
    command = [
        sys.executable,
        "launch/pretrain.py",
        *launcher.arguments("launch/pretrain.py", "refused", deepspeed_json(), {}),
        *change,
    ]
    code, output = launcher.start(command, "refused").wait()
    assert code != 0
    assert message in output
    assert "Traceback" not in output


def test_help_explains_every_field() -> None:
    command = [sys.executable, "launch/pretrain.py", "--help"]
    text = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in TINY:
        assert f"--{name}" in text
    assert "(type: " in text


def test_views_of_a_mixture_resume_exactly_in_the_middle(corpus: Path, launcher: Launcher) -> None:
    parts, rows = launcher.folder / "parts", Manifest.open(corpus)
    for name, of_part in (("few", range(5)), ("many", range(5, len(rows)))):
        (parts / name).mkdir(parents=True)
        write_manifest(parts / name, (rows[row] for row in of_part))
        shutil.copy(corpus / "tokenizer.json", parts / name)
    fields: dict[str, Any] = {
        "data__manifest": None,
        "data__mixture": json.dumps({str(parts / "few"): 1, str(parts / "many"): 2}),
        "data__views": 2,
    }
    config = deepspeed_json(micro=4)
    whole = launcher.torchrun("mixed", config, **fields)
    assert "64 clips, 2 ranks x 4 clips x 1 = 8 a step" in (output := whole.succeed()) and "(16 an epoch)" in output
    assert sorted(losses(whole.run)) == [1, 2, 3, 4, 5, 6]
    resumed = launcher.folder / "mixed_resumed"
    shutil.copytree(whole.run, resumed)
    shutil.rmtree(resumed / "checkpoints" / "step_00000006")
    assert "resumed from" in launcher.torchrun("mixed_resumed", config, **fields).succeed()
    assert losses(resumed) == losses(whole.run)
    ours, theirs = (load_file(run / "checkpoints/step_00000006/weights.safetensors") for run in (resumed, whole.run))
    assert all(ours[name].equal(theirs[name]) for name in theirs)
