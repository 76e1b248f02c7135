"""A checkpoint for another number of ranks: DeepSpeed's universal format, in a temporary folder.

ZeRO-1, 2 and 3 save each rank's part of the optimizer; DeepSpeed puts the parts together parameter by parameter, and
every rank then takes its new part. Without ZeRO every rank saves the same, and nothing needs converting.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from simvtp_ds.engine.failures import TrainingError, print_line
from simvtp_ds.engine.ranks import Control, Rank

PREFIX = ".universal-"
TIME_LIMIT = 3600.0  # seconds
POLL = 0.5  # seconds


@contextmanager
def universal(
    folder: Path, run: Path, rank: Rank, control: Control, waiting: Callable[[], None] = lambda: None
) -> Iterator[Path]:
    """The checkpoint `folder` in the universal format for the length of the block; all ranks together.

    DeepSpeed's converter unpickles the files of `folder`: their sha256 must have been checked before.

    Args:
        folder: A checkpoint whose files are intact.
        run: The run's folder: the converted files (12 bytes a parameter) stand in it for a while.
        rank: This process; the main rank converts.
        control: Agreements with the others.
        waiting: Called again and again while the conversion goes on.

    Raises:
        TrainingError: the conversion failed or took more than an hour; nothing is left behind.
    """
    target, error = "", ""
    process, log = None, None
    if rank.is_main:
        print_line(f"converting {folder} for {rank.world_size} ranks")
        try:
            for old in run.glob(f"{PREFIX}*"):  # of a start that was killed
                shutil.rmtree(old, ignore_errors=True)
            target = tempfile.mkdtemp(prefix=PREFIX, dir=run)
            log = (Path(target) / "log.txt").open("w+")
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"),
                    *("--input_folder", str(folder), "--output_folder", f"{target}/universal"),
                    *("--num_extract_workers", "1", "--num_merge_workers", "1"),
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        except OSError as failure:
            error = str(failure)
    started = time.monotonic()
    try:
        while True:
            code = 1 if error else None if process is None else process.poll()
            if rank.is_main and code is None and time.monotonic() - started > TIME_LIMIT:
                code, error = 1, f"it took more than {TIME_LIMIT:.0f} s"
            target, code = control.gather((target, code))[0]
            if code is not None:
                break
            waiting()
            time.sleep(POLL)
        if code and log is not None and not error:
            log.seek(0)
            error = next((line for line in reversed(log.read().splitlines()) if line.strip()), f"exit code {code}")
        error = control.gather(error)[0]
        if error:
            raise TrainingError(
                f"{folder} could not be converted for {rank.world_size} ranks ({error}): it needs room for 12 bytes a "
                f"parameter in {run}; or go on with as many ranks as it was written by"
            )
        yield Path(target) / "universal"
        control.gather(None)  # everybody has read it
    finally:
        if log is not None:
            log.close()
        if process is not None and process.poll() is None:
            process.kill()
            process.wait()
        if rank.is_main and target:
            shutil.rmtree(target, ignore_errors=True)
