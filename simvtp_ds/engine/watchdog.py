"""Nothing stops a run for good: a rank in which no step is finished in time ends itself and says which one is to blame.

Every rank tells the others once a second, through the store that they met in, where it is. Who is silent, who never
came, who ended and why, and who still is where the others have long been can be read there, while the failed
collective itself only knows that somebody did not answer.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import math
import os
import platform
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import IO, Any, Self

import torch.distributed as dist

from simvtp_ds.engine import guardian
from simvtp_ds.engine.failures import TrainingError
from simvtp_ds.engine.ranks import Rank, open_store

BEAT = 1.0  # seconds between two signs of life
SILENCE = 5.0  # seconds without one after which a rank counts as silent
NAMED = 4  # ranks that a message names
LONGEST_REASON = 300  # characters
FOLLOWED = "ended because of another rank"


class Watchdog:
    """Watches one rank; a context around everything that waits for other ranks.

    Leaving it with an error of a collective raises `TrainingError` in its place, if other ranks can be named for it.

    Args:
        rank: This process.
        timeout: Seconds without a finished step after which the process ends.
    """

    def __init__(self, rank: Rank, timeout: float) -> None:
        self.rank, self.timeout = rank, timeout
        self.who = platform.node() + (f": rank {rank.rank}" if rank.world_size > 1 else "")
        self.log: IO[str] | None = None
        self._at, self._step, self._marks, self._silent, self._end = "the start", 0, 0, 0, ""
        self._stopping = threading.Event()
        self._asked: SimpleQueue[SimpleQueue[list[str]]] = SimpleQueue()
        self._guardian: subprocess.Popen[bytes] | None = None
        self._threads = [threading.Thread(target=self._watch, name="simvtp-watch", daemon=True)]
        if rank.world_size > 1:
            self._threads.append(threading.Thread(target=self._beat, name="simvtp-beat", daemon=True))

    def __enter__(self) -> Self:
        limit = str(math.ceil(self.timeout))
        # Isolated and without site-packages: it starts in 20 ms. Its end of the pipe tells it that this process ended.
        command = [sys.executable, "-I", "-S", guardian.__file__, self.who, limit]
        self._guardian = subprocess.Popen(command, stdin=subprocess.PIPE)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._leave("")
            return
        self.feed()  # blaming takes seconds
        reason = " ".join(str(error).split())[:LONGEST_REASON] or type(error).__name__
        if of_a_collective(error) and (blamed := self.blamed()):
            reason = f"{blamed} ({shortened(reason)})"
            self._leave(reason, followed=True)
            raise TrainingError(reason) from error
        self._leave(reason)

    def _leave(self, reason: str, followed: bool = False) -> None:
        """Tell the others how it ended, and end what watches. `followed`: another rank is to blame."""
        self.note(f"ended: {reason}" if reason else "finished")
        self._end = FOLLOWED if followed else f"ended: {reason}" if reason else "finished"
        self._stopping.set()
        if len(self._threads) > 1:
            self._threads[1].join(3 * BEAT)  # its last beat; a store that is gone must not keep us
        if self._guardian is not None and self._guardian.stdin is not None:
            with contextlib.suppress(OSError):
                self._guardian.stdin.close()
            self._guardian.wait(5)
        if self.log is not None:
            faulthandler.unregister(signal.SIGUSR2)
            faulthandler.disable()
            self.log.close()
            self.log = None

    def log_to(self, run: Path) -> None:
        """Keep a log of this rank from here on, RUN/ranks/rank_00003.log: where it ran, how it ended, stacks."""
        path = run / "ranks" / f"rank_{self.rank.rank:05d}.log"
        path.parent.mkdir(exist_ok=True)
        self.log = path.open("a", buffering=1)
        faulthandler.enable(self.log)
        faulthandler.register(signal.SIGUSR2, self.log)
        self.note(f"process {os.getpid()} on {platform.node()}, local rank {self.rank.local_rank}")

    def note(self, text: str) -> None:
        """A line in this rank's log."""
        if self.log is not None:
            with contextlib.suppress(OSError):  # a full disk is no reason to end otherwise
                self.log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def at(self, place: str, step: int | None = None) -> None:
        """Where the rank is now, for messages: "the data". `step`: the global step that begins, from 1."""
        self._marks += 1  # all ranks pass the same places: who has passed fewer holds the others up
        self._step = self._step if step is None else step
        self._at = f"{place} of step {self._step}" if self._step else place

    def feed(self) -> None:
        """A step is done: start counting again."""
        self._silent = 0

    def _watch(self) -> None:
        while not self._stopping.wait(BEAT):
            # Counted, not read from a clock: a job that was suspended as a whole has not lost that time.
            self._silent += 1
            if self._guardian is not None and self._guardian.stdin is not None:
                with contextlib.suppress(OSError, ValueError):  # ended by somebody; the rank goes on without
                    self._guardian.stdin.write(f"{self._at}\n".encode())
                    self._guardian.stdin.flush()
            if self._silent * BEAT >= self.timeout:
                self._give_up()

    def _give_up(self) -> None:
        place, blamed = self._at, self.blamed()
        if self._stopping.is_set():
            return  # the main thread came back and says it itself
        reason = f"no step finished for {self.timeout:g} s, at {place}; {blamed or 'every rank answers'}"
        # One write: lines of several processes must not run into each other.
        with contextlib.suppress(OSError):  # whoever read it may be gone
            os.write(2, f"error on {self.who}: {reason}\n".encode())
        faulthandler.dump_traceback(self.log or sys.__stderr__ or sys.stderr)
        self._leave(reason, followed=bool(blamed))
        os._exit(1)  # whatever the main thread is in, it will not come back

    def blamed(self) -> str:
        """The other ranks that explain why a collective failed, in words; empty: none does. Takes some seconds."""
        if self.rank.world_size == 1:
            return ""
        answer: SimpleQueue[list[str]] = SimpleQueue()
        self._asked.put(answer)
        try:
            found = answer.get(timeout=3 * SILENCE)
        except Empty:
            return "" if self.rank.is_main else f"rank 0 on {os.environ['MASTER_ADDR']} does not answer"
        more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
        return "; ".join(found[:NAMED]) + more

    def _beat(self) -> None:
        """Tell where this rank is and, when asked, where the others are. Alone in using the store, which may block."""
        store = None
        while store is None and not self._stopping.is_set():
            with contextlib.suppress(RuntimeError):  # rank 0 is not there yet; the main thread waits for it, too
                store = open_store(self.rank, self.timeout)
        try:
            if store is not None:
                self._tell_and_answer(store)
        except RuntimeError:
            while not self._stopping.is_set():
                with contextlib.suppress(Empty):
                    self._asked.get(timeout=BEAT).put([f"rank 0 on {os.environ['MASTER_ADDR']} is gone"])

    def _tell_and_answer(self, store: Any) -> None:
        beat, questions = 0, []
        while True:
            last, beat = self._stopping.is_set(), beat + 1
            told = {"host": platform.node(), "beat": beat, "marks": self._marks, "at": self._at, "end": self._end}
            store.set(f"beat/{self.rank.rank}", json.dumps(told))
            if last:
                return
            for due, answer, before in [question for question in questions if question[0] <= beat]:
                answer.put(describe(self.rank.rank, before, self._read(store)))
                questions.remove((due, answer, before))
            with contextlib.suppress(Empty):
                questions.append((beat + int(SILENCE / BEAT) + 1, self._asked.get(timeout=BEAT), self._read(store)))

    def _read(self, store: Any) -> list[dict[str, Any]]:
        keys = [f"beat/{rank}" for rank in range(self.rank.world_size)]
        return [json.loads(store.get(key)) if store.check([key]) else {} for key in keys]


def of_a_collective(error: BaseException) -> bool:
    """Whether another rank may be the reason: gloo's errors have no class of their own."""
    words = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Timed out waiting")
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )


def shortened(reason: str) -> str:
    """The reason without the place in gloo's sources and the advice that follows it."""
    return re.sub(r"^\[[^\]]*\.cc?:\d+\]\s*", "", reason).split(". ")[0]


def describe(me: int, before: list[dict[str, Any]], now: list[dict[str, Any]]) -> list[str]:
    """What is wrong with the other ranks, the worst first; from what they said twice, `SILENCE` seconds apart.

    Args:
        me: This rank.
        before: By rank, {host, beat, marks, at, end}; empty where a rank has said nothing yet.
        now: The same, later.
    """
    ended, silent, missing, behind = [], [], [], []
    furthest = max(said.get("marks", 0) for said in now)
    for rank, (then, said) in enumerate(zip(before, now, strict=True)):
        who = f"rank {rank} on {said.get('host')}"
        if rank == me or said.get("end") == FOLLOWED:
            continue
        if not said:
            missing.append(f"rank {rank} never came")
        elif said["end"]:
            ended.append(f"{who} {said['end']}")
        elif said["beat"] == then.get("beat"):
            silent.append(f"{who} shows no sign of life since {said['at']}")
        elif said["marks"] < furthest:
            behind.append(f"{who} is still at {said['at']}")
    return missing + silent + ended + behind
