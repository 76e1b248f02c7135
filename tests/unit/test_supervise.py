"""What is started again, on which hosts, with which accumulation, and when the supervisor gives up.

A small script plays the run here; tests/integration/test_supervise.py supervises real ones.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from simvtp_ds.engine.checkpoint import RECORD, Position
from simvtp_ds.supervise.child import reason_in
from simvtp_ds.supervise.command import Command, read_command, replaced, value_of
from simvtp_ds.supervise.loop import COME_BACK, DONE, GAVE_UP, MUST_CHANGE
from simvtp_ds.supervise.plan import NotEnoughHostsError, plan

ROOT = Path(__file__).resolve().parents[2]
POSITION = Position(10, 2, 2, "fp32", 16, 0, "abc", "{}")
# Words of a run: each start takes the next of them.
PLAYED = """
import json, os, sys, time
from pathlib import Path
run = Path(sys.argv[sys.argv.index("--run.dir") + 1])
plan = json.loads((run / "played.json").read_text())
now, rest = plan[0], plan[1:] or plan
(run / "played.json").write_text(json.dumps(rest))
for step in now.get("checkpoints", []):
    folder = run / "checkpoints" / f"step_{step:08d}"
    folder.mkdir(parents=True)
    position = dict(json.loads((run / "position.json").read_text()), step=step)
    (folder / "checkpoint.json").write_text(json.dumps({"position": position, "files": {}}))
if "outcome" in now:
    (run / "outcome.json").write_text(json.dumps({"outcome": now["outcome"], "reason": now.get("reason", "")}))
print(now.get("says", "nothing"), flush=True)
if now.get("sleep") and not os.fork():
    time.sleep(now["sleep"])  # outlives its parent
    os._exit(0)
time.sleep(now.get("busy", 0))
if now.get("signal"):
    os.kill(os.getpid(), now["signal"])
sys.exit(now.get("code", 0))
"""


@pytest.fixture(scope="module")
def parsed(tmp_path_factory: pytest.TempPathFactory) -> Command:
    """The parsed command of a run (parsing takes a second)."""
    folder = tmp_path_factory.mktemp("command")
    words = ["deepspeed", "--hostfile", str(folder / "hosts"), "--num_gpus=2", "launch/pretrain.py"]
    words += ["--deepspeed_config", str(folder / "ds.json"), "--run.dir", str(folder / "run"), "--run.step_timeout=9"]
    return read_command(words)


def settings(path: Path, **values: int) -> Path:
    path.write_text(json.dumps({"train_micro_batch_size_per_gpu": 4, **values}))
    return path


def with_files(parsed: Command, folder: Path, hosts: list[str], **values: int) -> Command:
    """The command with a hostfile and a DeepSpeed JSON in `folder`."""
    (folder / "hosts").write_text("# ours\n" + "".join(f"{host} slots=8\n" for host in hosts))
    json_file = settings(folder / "ds.json", **values)
    words = replaced(replaced(parsed.words, ("--hostfile",), str(folder / "hosts")), ("--deepspeed_config",), "")
    config = replace(parsed.config, run=replace(parsed.config.run, dir=str(folder / "run")))
    return replace(parsed, words=tuple(words), config=config, deepspeed_config=str(json_file))


def add_checkpoint(run: Path, position: Position) -> None:
    folder = run / "checkpoints" / f"step_{position.step:08d}"
    folder.mkdir(parents=True)
    (folder / RECORD).write_text(json.dumps({"position": asdict(position), "files": {}}))


def test_a_command_is_read_as_deepspeed_and_the_script_read_it(parsed: Command) -> None:
    assert parsed.config.run.step_timeout == 9
    assert parsed.by_deepspeed
    assert parsed.ranks({"a": 2, "b": 2}) == 4
    assert parsed.ranks(None) == 2
    torchrun = ("torchrun", "--nproc_per_node=4", "--nnodes", "2")
    assert replace(parsed, words=(*torchrun, *parsed.words[parsed.script :]), script=4).ranks(None) == 8
    assert replace(parsed, words=("srun", *parsed.words[parsed.script :]), script=1).ranks(None) is None
    assert value_of(["--a=1", "--a", "2"], ("--a",)) == "2"
    assert replaced(["x", "-H", "old", "--hostfile=old", "y"], ("-H", "--hostfile"), "new") == (
        ["x", "-H", "new", "--hostfile", "new", "y"]
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "nothing to supervise in 'an empty command'"),
        (["deepspeed", "train.py"], "nothing to supervise in 'deepspeed train.py'"),
        (["deepspeed", "launch/pretrain.py", "--run.dir", "x"], "--deepspeed_config is missing"),
        (["deepspeed", "launch/pretrain.py", "--deepspeed_config", "x", "--resume", "none"], "--resume none"),
    ],
)
def test_what_cannot_be_supervised_is_refused_in_one_line_with_exit_code_2(
    words: list[str], told: str, capfd: pytest.CaptureFixture[str]
) -> None:
    from launch.supervise import main

    assert main(["--", *words]) == MUST_CHANGE
    assert told in capfd.readouterr().err


def test_nothing_is_changed_where_the_hosts_make_the_batch(parsed: Command, tmp_path: Path) -> None:
    command = with_files(parsed, tmp_path, ["a", "b"], gradient_accumulation_steps=1)
    start = plan(command, tmp_path, None)
    assert start.words == list(command.words)
    assert start.ranks == 4 and not start.told


def test_fewer_hosts_keep_the_global_batch_with_more_accumulation(
    parsed: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = with_files(parsed, tmp_path, list("abcd"), gradient_accumulation_steps=1)  # 4 hosts x 2 x 4 = 32 clips
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    changed = tmp_path / "changed"
    changed.mkdir()
    # Three hosts make 24 clips a micro step, no divisor of 32; two make 16.
    monkeypatch.setattr("simvtp_ds.supervise.plan.ask_all", lambda hosts, port: {h: "gone" * (h == "a") for h in hosts})
    start = plan(command, changed, 1)
    assert (start.ranks, start.dropped) == (4, ("a", "d"))
    assert (changed / "hostfile").read_text() == "b slots=2\nc slots=2\n"
    assert json.loads((changed / "ds.json").read_text())["gradient_accumulation_steps"] == 2
    assert value_of(start.words, ("--hostfile",)) == str(changed / "hostfile")
    assert value_of(start.words, ("--deepspeed_config",)) == str(changed / "ds.json")
    assert {path: path.read_bytes() for path in before} == before
    monkeypatch.setattr("simvtp_ds.supervise.plan.ask_all", lambda hosts, port: {h: "gone" * (h != "d") for h in hosts})
    assert "--force_multi" in plan(command, changed, 1).words  # else DeepSpeed starts it here, not there
    with pytest.raises(NotEnoughHostsError, match=r"1 of 4 hosts answer, --min-hosts is 2 .a: gone; b: gone; c: gone"):
        plan(command, changed, 2)


def test_a_checkpoint_decides_the_global_batch(parsed: Command, tmp_path: Path) -> None:
    command = with_files(parsed, tmp_path, ["a"], gradient_accumulation_steps=1)
    add_checkpoint(tmp_path / "run", replace(POSITION, global_batch=48))
    plan(command, tmp_path / "run", None)
    assert json.loads((tmp_path / "run" / "ds.json").read_text())["gradient_accumulation_steps"] == 6


def test_a_batch_that_the_ranks_do_not_divide_is_refused_with_the_numbers(parsed: Command, tmp_path: Path) -> None:
    command = with_files(parsed, tmp_path, ["a", "b", "c"])
    add_checkpoint(tmp_path / "run", POSITION)
    with pytest.raises(ValueError, match=r"6 ranks x .* 4 = 24 clips, and the run's 16 clips"):
        plan(command, tmp_path, None)


def test_a_batch_that_is_no_number_is_refused(parsed: Command, tmp_path: Path) -> None:
    command = with_files(parsed, tmp_path, ["a"])
    (tmp_path / "ds.json").write_text('{"train_micro_batch_size_per_gpu": "auto"}')
    with pytest.raises(ValueError, match=r'ds\.json: train_micro_batch_size_per_gpu is "auto"'):
        plan(command, tmp_path, None)


def test_the_reason_is_the_line_that_says_most() -> None:
    noise = ["step 3/9 total 1.0", "Traceback (most recent call last):", "RuntimeError: Connection closed by peer"]
    ended = "[launch.py:259] [ERROR] ['python', 'x'] exits with return code = -9"
    told = "worker-2: error on worker-2: the checkpoint could not be written"
    assert reason_in([*noise, ended, "bye"]) == "a process ended with code -9 (SIGKILL)"
    assert reason_in([told, *noise, ended]) == told
    assert reason_in(noise) == noise[2]
    assert reason_in(["one", "two", " "]) == "two"
    assert reason_in([]) == "no output"


class Played:
    """A supervised run that a script plays, without the second that parsing its command takes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.run = folder, folder / "run"
        self.run.mkdir()
        (folder / "pretrain.py").write_text(PLAYED)
        (self.run / "position.json").write_text(json.dumps(asdict(POSITION)))
        settings(folder / "ds.json")

    def supervise(self, *starts: dict, stop_after: float = 0, step_timeout: float = 600, **options: float) -> int:
        """Exit code of the supervisor, in a process of its own: it buries what that process started."""
        (self.run / "played.json").write_text(json.dumps(starts))
        words = [sys.executable, str(self.folder / "pretrain.py"), "--run.dir", str(self.run)]
        config = {"dir": str(self.run), "mirror": "", "log_every": 1, "step_timeout": step_timeout}
        given = {"wait": 0.01, "failures": 3, **options}
        code = (
            "import sys; from types import SimpleNamespace as Any\n"
            "from simvtp_ds.supervise.loop import Command, Options, Supervisor\n"
            f"command = Command({words}, 1, Any(run=Any(**{config})), {str(self.folder / 'ds.json')!r})\n"
            f"sys.exit(Supervisor(command, Options(**{given})).run())"
        )
        process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
        if stop_after:
            time.sleep(stop_after)
            process.terminate()
        return process.wait(60)

    def told(self, event: str) -> list[dict]:
        lines = [json.loads(line) for line in (self.run / "supervise.jsonl").read_text().splitlines()]
        return [line for line in lines if line["event"] == event]


@pytest.fixture
def played(tmp_path: Path) -> Played:
    return Played(tmp_path)


def test_it_goes_on_until_the_run_is_finished_and_notes_every_start_and_end(played: Played) -> None:
    code = played.supervise(
        {"checkpoints": [1], "says": "error on here: one", "code": 1},
        {"checkpoints": [2], "signal": 9},
        {"checkpoints": [3]},  # what a killed launcher looks like
        {"checkpoints": [4], "outcome": "finished"},
    )
    assert code == DONE
    assert [line["step"] for line in played.told("start")] == [0, 1, 2, 3]
    assert [line["reason"] for line in played.told("end")] == (
        ["error on here: one", "nothing", "exit code 0 before the last step", ""]
    )
    assert [line["code"] for line in played.told("end")] == [1, -9, 0, 0]
    assert played.told("finished")[0]["step"] == 4


def test_it_gives_up_after_failures_without_a_new_checkpoint(played: Played) -> None:
    assert played.supervise({"checkpoints": [1], "code": 1}, {"code": 1}) == GAVE_UP
    assert len(played.told("start")) == 3
    assert played.told("gave up")[0]["reason"] == "3 failures without a new checkpoint"


@pytest.mark.parametrize("start", [{"code": 2, "says": "error on here: data.x"}, {"code": 1, "outcome": "refused"}])
def test_settings_that_must_change_are_not_tried_again(played: Played, start: dict) -> None:
    assert played.supervise(start) == MUST_CHANGE
    assert len(played.told("start")) == 1


def test_a_run_that_was_asked_to_stop_is_not_started_again(played: Played) -> None:
    assert played.supervise({"checkpoints": [7], "outcome": "stopped", "reason": "SIGUSR1"}) == COME_BACK
    assert played.told("stopped")[0]["step"] == 7


def test_a_run_whose_launcher_was_killed_is_started_again(played: Played) -> None:
    assert played.supervise({"outcome": "stopped", "reason": "the end of"}, {"outcome": "finished"}) == DONE


def test_what_outlives_the_command_is_waited_for_and_then_ended(played: Played) -> None:
    began = time.monotonic()
    assert played.supervise({"sleep": 600, "outcome": "finished"}, grace=1.0) == DONE
    assert 1 < time.monotonic() - began < 30


def test_a_signal_is_passed_on_and_ends_it(played: Played) -> None:
    assert played.supervise({"busy": 600, "code": 1}, stop_after=2) == COME_BACK
    assert played.told("end")[0]["code"] == -signal.SIGTERM
    assert played.told("stopped")[0]["reason"] == "SIGTERM"


def test_a_command_that_falls_silent_is_ended(played: Played) -> None:
    assert played.supervise({"busy": 600}, {"outcome": "finished"}, step_timeout=0.2) == DONE
    assert "it hangs" in played.told("end")[0]["reason"]


def test_the_supervisor_needs_no_torch() -> None:
    code = "import sys, simvtp_ds.supervise.loop; print('torch' in sys.modules, 'deepspeed' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"
