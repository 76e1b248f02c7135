"""How a process that joined others ends: its own exit code, whatever threads do as it goes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Each case in a child of its own; what is printed at exit shows what ran.
SCRIPT = """
import atexit, json, os, sys
from simvtp_ds.process import run_main

def fails(error):
    def main():
        raise error
    return main

class Teardown:
    def __del__(self):
        print("torn down", flush=True)

cases = {
    "nothing": lambda: None, "code": lambda: 3, "told": lambda: "told in words", "exit": fails(SystemExit(2)),
    "exit in words": fails(SystemExit("ended in words")), "crash": fails(KeyError("lost")),
    "Ctrl-C": fails(KeyboardInterrupt()),
}
codes = {}
for name, main in cases.items():
    child = os.fork()
    if not child:
        kept = Teardown()
        atexit.register(lambda: print("at exit of", name))
        run_main(main, "stopped by hand")
    codes[name] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(json.dumps(codes))
"""


def test_a_process_ends_with_its_code_and_its_output_and_without_a_teardown() -> None:
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    *said, codes = done.stdout.strip().splitlines()
    expected = {"nothing": 0, "code": 3, "told": 1, "exit": 2, "exit in words": 1, "crash": 1, "Ctrl-C": 1}
    assert json.loads(codes) == expected
    assert said == [f"at exit of {name}" for name in expected]
    for line in ("told in words", "ended in words", "KeyError: 'lost'", "stopped by hand"):
        assert line in done.stderr
    assert done.stderr.count("Traceback") == 1


def test_a_refusal_that_nobody_reads_keeps_its_exit_code() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "launch/pretrain.py"]
    done = subprocess.run(command, cwd=ROOT, stdout=writing, stderr=writing, timeout=120, check=False)
    os.close(writing)
    assert done.returncode == 2  # --deepspeed_config is missing; launch/supervise.py would start a 1 again
