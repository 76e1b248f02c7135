"""What a run tells: lines for people, JSON lines and TensorBoard for tools, a progress bar on a terminal."""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from simvtp_ds.data.loader import BadClip
from simvtp_ds.engine.failures import TrainingError, keep_output_writable, print_line
from simvtp_ds.files import replacing


def memory_gib(device: torch.device) -> float:
    """Peak memory so far in GiB: of the device's allocator on a GPU, of the process on a CPU."""
    if device.type == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return torch.cuda.max_memory_allocated(device) / 2**30


def forget_after(path: Path, step: int) -> None:
    """Drop the JSON lines of steps after `step`: a resumed run makes those steps again."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line).get("step", 0) <= step:
                kept.append(line + "\n")
        except ValueError:
            continue  # torn by a crash
    with replacing(path) as temporary:
        temporary.write_text("".join(kept))


@dataclass
class Window:
    """Sums since the last log line."""

    data_wait: float
    steps: list[int] = field(default_factory=list)
    losses: list[torch.Tensor] = field(default_factory=list)  # float32 [parts] each, on the device
    parts: tuple[str, ...] = ()  # their names
    started: float = field(default_factory=time.perf_counter)


class Journal:
    """Writes what the main rank has to say. Losses stay on the device until a log line is due."""

    def __init__(self, folder: Path, total_steps: int, first_step: int) -> None:
        self.folder = folder
        for name in ("metrics.jsonl", "validation.jsonl"):
            forget_after(folder / name, first_step)
        self.lines = (folder / "log.txt").open("a", buffering=1)
        self.json = (folder / "metrics.jsonl").open("a", buffering=1)
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step)
        self.console = Console(file=sys.stderr)
        self.progress = Progress(
            TextColumn("[bold]step"),
            BarColumn(bar_width=20),  # all of the line fits into 80 columns
            MofNCompleteColumn(),
            TextColumn("{task.fields[told]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.progress.add_task("", total=total_steps, completed=first_step, told="")
        self.total_steps = total_steps
        self.progress.start()

    def say(self, line: str) -> None:
        """One line to the log file and to the terminal."""
        if self.progress.disable:
            print_line(line)
        else:
            try:
                self.progress.console.print(line, markup=False, highlight=False)
            except OSError:
                keep_output_writable()
        with self.writing():
            self.lines.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")

    def event(self, **values: Any) -> None:
        """One JSON line."""
        with self.writing():
            self.json.write(json.dumps(values) + "\n")

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Turn a full disk, or one that is gone, into the end of the run: a run whose losses get lost is no use."""
        try:
            yield
        except OSError as error:
            raise TrainingError(
                f"{self.folder} cannot be written ({error}); checkpoints are intact. Make room, then go on with "
                "--resume auto"
            ) from error

    def steps(self, steps: list[int], losses: list[dict[str, float]], told: dict[str, float]) -> None:
        """The steps since the last call: their losses (null where not finite), and rates for the last."""
        for step, named in zip(steps, losses, strict=True):
            finite = {name: value if math.isfinite(value) else None for name, value in named.items()}
            self.event(step=step, **finite, **(told if step == steps[-1] else {}))
            with self.writing():
                for name, value in named.items():
                    self.board.add_scalar(f"loss/{name}", value, step)
        with self.writing():
            for name, value in told.items():
                self.board.add_scalar(f"train/{name}", value, steps[-1])
        last = losses[-1]
        parts = " ".join(f"{name} {value:.4f}" for name, value in last.items())
        rates = f"lr {told['lr']:.2e} {told['clips_per_s']:.1f} clips/s wait {100 * told['data_wait_share']:.0f} %"
        self.progress.update(
            self.task, completed=steps[-1], told=f"loss {last['total']:.2f} {told['clips_per_s']:.1f} clips/s"
        )
        left = (self.total_steps - steps[-1]) * told["seconds_per_step"]
        self.say(f"step {steps[-1]}/{self.total_steps} {parts} {rates} left {left / 60:.1f} min")

    def validation(self, step: int, scores: dict[str, Any]) -> None:
        """Scores of the held-out videos, {"t2v": {"R@1": percent, ...}, "v2t": ...}: a line in validation.jsonl."""
        path = self.folder / "validation.jsonl"
        with path.open("a") as file:
            file.write(json.dumps({"step": step, **scores}) + "\n")
        told = []
        for way in ("t2v", "v2t"):
            for name in ("R@1", "R@5", "R@10"):
                self.board.add_scalar(f"validation/{way}_{name.replace('@', '')}", scores[way][name], step)
            found = scores[way]
            told.append(f"{way} " + " ".join(f"{name} {found[name]:.1f}" for name in ("R@1", "R@5", "R@10", "MdR")))
        self.say(f"validation after step {step}: {'; '.join(told)}")

    def close(self) -> None:
        """Flush everything."""
        self.progress.stop()
        for file in (self.board, self.lines, self.json):
            with suppress(OSError):  # a full disk has ended the run already
                file.close()


class BadClipLog:
    """Writes each clip that could not be decoded, with its path and the reason, as a JSON line; a file a rank."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, clip: BadClip) -> None:
        self.path.parent.mkdir(exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(clip._asdict()) + "\n")
        print_line(f"bad clip replaced: {clip.uri}: {clip.reason}")
