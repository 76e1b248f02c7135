"""How a process ends that may have joined others."""

from __future__ import annotations

import atexit
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn


def run_main(main: Callable[[], int | str | None], interrupted: str = "interrupted") -> NoReturn:
    """Run the program of a process that may join a process group, and end the process with its exit code.

    The interpreter is not torn down. Gloo's threads may still hold tensors of the last collective; letting go of them
    asks for the interpreter's lock, and in a teardown that aborts the process: SIGABRT in place of the exit code
    (pytorch issue 190489). destroy_process_group does not end these threads while DeepSpeed refers to the group.

    Args:
        main: The program. What it returns or raises counts as it does for `sys.exit`.
        interrupted: What to say after Ctrl-C.
    """
    try:
        code: object = main()
    except KeyboardInterrupt:
        code = interrupted
    except SystemExit as end:
        code = end.code
    except Exception:
        code = 1
        with suppress(OSError):
            traceback.print_exc()
    with suppress(OSError):
        if isinstance(code, str):
            print(code, file=sys.stderr)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(code if isinstance(code, int) else code is not None)
