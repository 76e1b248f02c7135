"""A small rendered corpus, and real launches on it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from simvtp_ds.bench.launched import free_port

ROOT = Path(__file__).resolve().parents[2]
DRIVERS = Path(__file__).parent / "drivers"

TINY = {
    "data.num_frames": 4,
    "data.image_size": 32,
    "data.workers": 1,
    "model.width": 32,
    "model.depth": 2,
    "model.heads": 2,
    "model.decoder_width": 16,
    "model.decoder_depth": 1,
    "model.decoder_heads": 2,
    "model.patch_size": 8,
    "masks.tube_ratio": 0.75,
    "schedule.max_steps": 6,
    "schedule.warmup_epochs": 0.5,
    "run.log_every": 2,
    "run.save_every": 3,
}
TINY_FINETUNE = {  # the same clips and encoder, from scratch and without anything drawn that depends on the ranks
    **{name: value for name, value in TINY.items() if not name.startswith("masks.")},
    "model.text_dropout": 0.0,
    "drop_path": 0.0,
    "layer_decay": 0.75,
    "augment.operations": 2,
    "validation.videos": 8,
    "validation.every": 1,
}


def deepspeed_json(stage: int = 2, micro: int = 4, accumulation: int = 1, **sections: Any) -> dict[str, Any]:
    """A DeepSpeed configuration for the tiny model."""
    return {
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": 0.0,
        "zero_optimization": {"stage": stage},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "betas": [0.9, 0.95], "weight_decay": 0.05}},
        "steps_per_print": 1000000,
        **sections,
    }


@dataclass
class Launch:
    """A started run."""

    process: subprocess.Popen[str]
    run: Path
    started: float = field(default_factory=time.monotonic)

    def wait(self, timeout: float = 240) -> tuple[int, str]:
        """Exit code and output."""
        try:
            output, _ = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            output, _ = self.process.communicate()
            raise AssertionError(f"the run did not end within {timeout} s:\n{output[-4000:]}") from None
        return self.process.returncode, output

    def succeed(self, timeout: float = 240) -> str:
        """Output of a run that must exit with 0."""
        code, output = self.wait(timeout)
        assert code == 0, output[-6000:]
        return output

    def wait_for_step(self, step: int, timeout: float = 120) -> None:
        """Return when step `step` stands in the metrics."""
        deadline = time.monotonic() + timeout
        while not any(m["step"] >= step for m in metrics(self.run)):
            assert self.process.poll() is None, self.process.communicate()[0][-6000:]
            assert time.monotonic() < deadline, f"step {step} was not reached within {timeout} s"
            time.sleep(0.1)


def metrics(run: Path) -> list[dict[str, Any]]:
    """Whole lines of a run's metrics."""
    path = run / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.is_file() else []
    return [json.loads(line) for line in lines]


def losses(run: Path) -> dict[int, tuple[float, ...]]:
    """The losses of each step: total and its parts."""
    names = ("total", "mvm", "mlm", "vtc", "vtm")
    return {m["step"]: tuple(m[name] for name in names if name in m) for m in metrics(run)}


class Launcher:
    """Starts runs on the corpus; see the methods."""

    def __init__(self, corpus: Path, folder: Path) -> None:
        self.corpus, self.folder = corpus, folder

    def arguments(self, driver: str, run: str, config: dict[str, Any], fields: dict[str, Any]) -> list[str]:
        """Arguments of a training script over its tiny settings; a field of None takes one of these away."""
        path = self.folder / f"{run}.json"
        path.write_text(json.dumps(config))
        tiny = TINY_FINETUNE if driver == "launch/finetune.py" else TINY
        merged = {"data.manifest": self.corpus, "run.dir": self.folder / run, **tiny}
        merged.update({name.replace("__", "."): value for name, value in fields.items()})
        merged = {name: value for name, value in merged.items() if value is not None}
        return ["--deepspeed_config", str(path), *(word for k, v in merged.items() for word in (f"--{k}", str(v)))]

    def start(self, command: list[str], run: str, **variables: str) -> Launch:
        """Start a command in a process group of its own."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
        environment.pop("LOCAL_RANK", None)
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        return Launch(process, self.folder / run)

    def torchrun(
        self, run: str, config: dict[str, Any], ranks: int = 2, driver: str = "launch/pretrain.py", **fields: Any
    ) -> Launch:
        """Ranks started by torchrun; the quickest of the launchers."""
        command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={ranks}"]
        command += [f"--master_port={free_port()}", str(ROOT / driver), *self.arguments(driver, run, config, fields)]
        return self.start(command, run)

    def deepspeed(
        self, run: str, config: dict[str, Any], ranks: int = 2, driver: str = "launch/pretrain.py", **fields: Any
    ) -> Launch:
        """Ranks started by the deepspeed command from a hostfile of this host."""
        command = [str(Path(sys.executable).with_name("deepspeed")), "--hostfile", "hostfiles/localhost"]
        command += ["--no_ssh_check", "--master_addr", "127.0.0.1", f"--master_port={free_port()}"]
        command += ["--num_accelerators", str(ranks), driver, *self.arguments(driver, run, config, fields)]
        return self.start(command, run)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 rendered clips, prepared with the command that a person would use."""
    folder = tmp_path_factory.mktemp("corpus")
    for command in (
        ["launch/render_corpus.py", "--out", f"{folder}/videos", "--train", "64", "--test", "16", "--seed", "0"],
        ["launch/prepare.py", f"{folder}/videos/train.json", "--out", f"{folder}/train", "--vocab-size", "1000"],
        [
            "launch/prepare.py",
            f"{folder}/videos/test.json",
            "--out",
            f"{folder}/test",
            "--tokenizer",
            f"{folder}/train",
        ],
    ):
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True, timeout=120)
    return folder / "train"


@pytest.fixture(scope="module")
def launcher(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    """Starts runs in a folder of the test module's own."""
    yield Launcher(corpus, tmp_path_factory.mktemp("runs"))


@contextmanager
def no_process_left(marker: str, patience: float = 10) -> Iterator[None]:
    """Fails if a process whose command line holds `marker` outlives the block by more than `patience` seconds."""
    yield
    deadline = time.monotonic() + patience
    while left := processes(marker):
        assert time.monotonic() < deadline, f"processes left behind: {left}"
        time.sleep(0.2)


@contextmanager
def search_page(run: Path, command: list[str]) -> Iterator[str]:
    """The address of the search page that `command` serves of a run; Ctrl-C ends it with 0 and leaves no process."""
    with no_process_left(str(run)):
        serving = subprocess.Popen(
            [*command, "--port", "0"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert serving.stdout and serving.stderr
        try:
            address = re.search(r"http://127\.0\.0\.1:\d+", serving.stdout.readline())
            assert address, serving.stderr.read()
            yield address[0]
        finally:
            serving.send_signal(signal.SIGINT)
            _, told = serving.communicate(timeout=60)
    assert serving.returncode == 0 and "Traceback" not in told, told


def processes(marker: str) -> list[int]:
    """Ids of the processes whose command line or environment folder holds `marker`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if marker in (entry / "cmdline").read_text():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found
