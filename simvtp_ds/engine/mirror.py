"""A second location of the checkpoints: copied there in the background, whole or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread

import yaml

from simvtp_ds.engine.checkpoint import PARTIAL, hash_errors, publish, record_of, retired
from simvtp_ds.engine.ranks import Control, Rank
from simvtp_ds.engine.resume import RefusedError

BESIDE = ("config.yaml", "deepspeed.json", "tokenizer")  # what makes it a run's folder


class Mirror:
    """Copies complete checkpoints of a run, on the main rank. What fails there is told and stops nothing.

    Args:
        run: The run's folder.
        folder: The second location, of this run alone.
        keep: Checkpoints kept there.

    Raises:
        RefusedError: another run has its checkpoints there, or it cannot be written.
    """

    def __init__(self, run: Path, folder: Path, keep: int) -> None:
        self.run, self.folder, self.keep = run, folder, keep
        self._told: SimpleQueue[str] = SimpleQueue()
        self._thread: Thread | None = None
        self._late: Path | None = None  # came while another one was being copied
        owner = folder / "config.yaml"
        try:
            if folder.resolve() == run.resolve():
                raise RefusedError(f"run.mirror {folder} is run.dir itself: name a folder on another disk")
            if owner.is_file():
                theirs = yaml.safe_load(owner.read_text())["run"]["dir"]
                if Path(theirs).resolve() != run.resolve():
                    raise RefusedError(f"run.mirror {folder} has the checkpoints of {theirs}: name another folder")
            (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
            raise RefusedError(f"run.mirror {folder} cannot be used: {error}") from error

    def copy(self, checkpoint: Path) -> None:
        """Start copying a complete checkpoint; while another one is being copied, the newest one waits."""
        self._late = checkpoint
        if self._thread is None or not self._thread.is_alive():
            self._next()

    def _next(self) -> None:
        checkpoint, self._late = self._late, None
        self._thread = Thread(target=self._copy, args=(checkpoint,), name="simvtp-mirror", daemon=True)
        self._thread.start()

    def told(self) -> list[str]:
        """What happened since the last call, in lines for a person."""
        lines = []
        while True:
            try:
                lines.append(self._told.get_nowait())
            except Empty:
                return lines

    def close(self, timeout: float) -> list[str]:
        """Wait for the last checkpoint to be copied, at most `timeout` seconds; what is left to tell."""
        for _ in range(2):  # the one being copied, and the one that waits
            if self._thread is not None:
                self._thread.join(timeout)
                if self._thread.is_alive():
                    return [*self.told(), f"run.mirror {self.folder}: the last copy took more than {timeout:.0f} s"]
            if self._late is None:
                break
            self._next()
        return self.told()

    def _copy(self, checkpoint: Path) -> None:
        root = self.folder / "checkpoints"
        partial, final = root / f"{PARTIAL}{checkpoint.name}", root / checkpoint.name
        try:
            for name in BESIDE:
                source = self.run / name
                if source.is_dir():
                    shutil.copytree(source, self.folder / name, dirs_exist_ok=True)
                elif source.is_file():
                    shutil.copyfile(source, self.folder / name)
            for left in root.glob(f"{PARTIAL}*"):
                shutil.rmtree(left)
            shutil.copytree(checkpoint, partial)
            if errors := hash_errors(partial, record_of(partial)):
                raise OSError(errors[0])
            publish(partial, final)
            for doomed in retired(self.folder, self.keep):
                shutil.rmtree(doomed)
        except (OSError, ValueError, shutil.Error) as error:
            shutil.rmtree(partial, ignore_errors=True)
            self._told.put(f"{checkpoint.name} was not copied to run.mirror {self.folder}: {error}")


def open_mirror(run: Path, folder: Path | None, keep: int, rank: Rank, control: Control) -> Mirror | None:
    """The `Mirror`, on the main rank, where there is a second location; all ranks call it.

    Raises:
        RefusedError: see `Mirror`; on all ranks.
    """
    mirror, refused = None, ""
    if rank.is_main and folder is not None:
        try:
            mirror = Mirror(run, folder, keep)
        except RefusedError as error:
            refused = str(error)
    refused = control.gather(refused)[0]
    if refused:
        raise RefusedError(refused)
    return mirror
