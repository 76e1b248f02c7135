"""launch/pretrain.py with fp16 allowed on the CPU, where DeepSpeed refuses it: exercises loss scaling without a GPU."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

if __name__ == "__main__":
    from deepspeed.accelerator import get_accelerator

    from launch.pretrain import main
    from simvtp_ds.process import run_main

    accelerator: Any = get_accelerator()
    accelerator.is_fp16_supported = lambda: True
    run_main(lambda: main(sys.argv[1:]))
