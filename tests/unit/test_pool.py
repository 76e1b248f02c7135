"""The pool of child processes: results, hangs, crashes, failed starts, and nothing left behind.

That children die with a parent that is killed is checked in test_loader.py and test_probe.py.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from simvtp_ds.data.pool import Crashed, Hung, Outcome, Pool


def _work(task: str) -> tuple[str, int]:
    """Does what the task says; answers with the task and the process that had it."""
    match task.partition(" "):
        case ("hang", _, _):
            time.sleep(600)
        case ("signal", _, number):
            os.kill(os.getpid(), int(number))
        case ("raise", _, text):
            raise ValueError(text)
        case ("nap", _, seconds):
            time.sleep(float(seconds))
    return task, os.getpid()


def _start() -> Callable[[str], tuple[str, int]]:
    return _work


def _cannot_start() -> Callable[[str], tuple[str, int]]:
    raise ImportError("no such codec library")


def make(workers: int, timeout: float = 60.0, start: Callable = _start) -> Pool[str, tuple[str, int]]:
    return Pool("tester", workers, start, timeout, needs="nothing")


def answer(outcome: Outcome[str, tuple[str, int]]) -> tuple[str, int]:
    """The result of a task that must have one."""
    assert isinstance(outcome.result, tuple), outcome
    return outcome.result


def children() -> set[int]:
    """Ids of this process' spawned children (multiprocessing's resource tracker is another kind)."""
    found = set()
    for process in psutil.Process().children():
        try:
            if any("spawn_main" in word for word in process.cmdline()):
                found.add(process.pid)
        except psutil.NoSuchProcess:
            continue
    return found


def test_every_task_is_answered_once_by_one_of_the_processes():
    with make(2) as pool:
        pids = children()
        pool.submit(str(i) for i in range(20))
        outcomes = list(pool.drain())
        assert list(pool.drain()) == []
    assert sorted(outcome.task for outcome in outcomes) == sorted(str(i) for i in range(20))
    for outcome in outcomes:
        task, pid = answer(outcome)
        assert task == outcome.task and pid in pids
    assert len(pids) == 2 and os.getpid() not in pids


def test_a_task_that_hangs_is_killed_and_reported_and_the_rest_goes_on():
    begin = time.monotonic()
    with make(1, timeout=1.5) as pool:
        pool.submit(["a", "hang", "b"])
        outcomes = list(pool.drain())
    assert [outcome.task for outcome in outcomes] == ["a", "hang", "b"]
    assert outcomes[1].result == Hung(1.5)
    assert answer(outcomes[0])[1] != answer(outcomes[2])[1]
    assert time.monotonic() - begin < 20


@pytest.mark.parametrize(
    ("task", "code"), [(f"signal {int(signal.SIGSEGV)}", -signal.SIGSEGV), ("raise in the task", 1)]
)
def test_a_process_that_crashes_is_replaced_and_its_exit_code_told(task, code, capfd):
    with make(1) as pool:
        pool.submit(["a", task, "b"])
        outcomes = list(pool.drain())
    assert [outcome.task for outcome in outcomes] == ["a", task, "b"]
    assert outcomes[1].result == Crashed(code)
    assert answer(outcomes[0])[1] != answer(outcomes[2])[1]
    assert ("ValueError: in the task" in capfd.readouterr().err) == (code == 1)


def test_a_process_that_dies_idle_costs_no_task():
    with make(1) as pool:
        pool.submit(["a"])
        (first,) = pool.drain()
        os.kill(answer(first)[1], signal.SIGKILL)
        assert pool.poll() == []  # sees the death
        pool.submit(["b"])
        (second,) = pool.drain()
    assert second.task == "b" and answer(second)[1] != answer(first)[1]


def test_an_urgent_task_goes_before_those_that_wait():
    with make(1) as pool:
        pool.submit(["a", "b"])
        pool.submit_first("urgent")
        assert [outcome.task for outcome in pool.drain()] == ["urgent", "a", "b"]


def test_a_message_on_the_wake_pipe_ends_the_wait():
    reader, writer = multiprocessing.Pipe(duplex=False)
    with make(1) as pool, reader, writer:
        pool.submit(["a"])
        list(pool.drain())
        pool.submit(["nap 30"])
        writer.send_bytes(b".")
        begin = time.monotonic()
        assert pool.poll(reader) == []
        assert time.monotonic() - begin < 10


def test_no_process_is_left_after_close_whatever_it_was_doing():
    before = children()
    pool = make(2)
    pool.submit(["a", "hang", "hang"])
    next(pool.drain())
    assert len(children() - before) == 2
    pool.close()
    assert children() == before
    pool.close()  # harmless


def test_processes_that_cannot_start_end_the_attempt_with_advice(capfd):
    with (
        pytest.raises(RuntimeError, match=r"no tester process starts \(exit code 1,.*check that nothing can be"),
        make(1, start=_cannot_start) as pool,
    ):
        pool.submit(["a"])
        list(pool.drain())
    assert capfd.readouterr().err.count("ImportError: no such codec library") == 4
    assert children() == set()


def test_ctrl_c_leaves_the_processes_to_their_parent():
    with make(1) as pool:
        pool.submit(["a"])
        (first,) = pool.drain()
        os.kill(answer(first)[1], signal.SIGINT)  # what Ctrl-C does to the whole group
        pool.submit(["b"])
        (second,) = pool.drain()
    assert answer(second) == ("b", answer(first)[1])


def test_the_module_loads_nothing_heavy():
    code = "import simvtp_ds.data.pool, sys; print({'torch', 'av', 'cv2', 'numpy'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert run.returncode == 0, run.stderr
    assert run.stdout == "set()\n"
