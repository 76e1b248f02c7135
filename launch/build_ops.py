"""Build the DeepSpeed operators that training on this machine needs, before the first step waits for a compiler."""

from __future__ import annotations

import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

OPERATORS = {
    "cpu": ("FusedAdamBuilder", "CPUAdamBuilder", "ShareMemCommBuilder"),
    "cuda": ("FusedAdamBuilder", "CPUAdamBuilder"),
}


def main() -> int:
    """Build what is missing; 1 when an operator cannot be built."""
    folder = Path(os.environ.get("TORCH_EXTENSIONS_DIR", Path.home() / ".cache" / "torch_extensions"))
    if not any(folder.rglob("*.so")):
        print("setup: building DeepSpeed's C++ operators (2 to 5 minutes, once)", flush=True)
    logging.disable(logging.WARNING)
    from deepspeed.accelerator import get_accelerator

    accelerator: Any = get_accelerator()
    for name in OPERATORS.get(accelerator.device_name(), ()):
        started = time.monotonic()
        builder = accelerator.create_op_builder(name)
        try:
            if builder is None:
                raise RuntimeError(f"DeepSpeed has no {name} for {accelerator.device_name()}")
            builder.load(verbose=False)
        except Exception as error:  # whatever the compiler or the loader says, it goes to the person in one line
            print(f"setup: {name} could not be built: {error}", file=sys.stderr)
            return 1
        if time.monotonic() - started > 5:
            print(f"setup: {name.removesuffix('Builder')} built in {time.monotonic() - started:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
