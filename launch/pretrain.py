"""Pre-train SimVTP under deepspeed, torchrun, srun or plain python; `--help` tells how."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

DESCRIPTION = """\
Pre-train SimVTP on a folder of captioned videos.

  1. python launch/prepare.py captions.json --out data/mine        probe the videos once
  2. deepspeed --num_accelerators 8 launch/pretrain.py \\
         --deepspeed_config ds_configs/zero2_bf16.json --data.manifest data/mine --run.dir runs/mine

The DeepSpeed JSON owns micro batch, accumulation, dtype, clipping, ZeRO, optimizer, peak learning rate and weight
decay. Everything else is below: a preset gives the defaults, --config FILE goes over it, options go over both.
torchrun, srun and plain python (one process) start it as well."""


def main(arguments: list[str]) -> None:
    """Check everything that can be checked, then train.

    Decoder workers import this file again (multiprocessing's spawn), so everything heavy is imported in here.
    """
    from simvtp_ds.config import PretrainConfig
    from simvtp_ds.launching import one_line, parse

    with one_line(ValueError):
        options = parse(arguments, PretrainConfig, default_preset="pretrain_webvid", description=DESCRIPTION)

        from simvtp_ds.ds_settings import check_accelerator, load_settings
        from simvtp_ds.engine.ranks import find_rank

        rank = find_rank()
        settings = load_settings(options.deepspeed_config, rank.world_size)
        check_accelerator(settings)

        from simvtp_ds.engine.pretrain import open_inputs, run_pretraining

        inputs = open_inputs(options.config, settings, rank.world_size)

    from simvtp_ds.data.loader import DataError
    from simvtp_ds.engine.failures import TrainingError

    with one_line(TrainingError, DataError):
        run_pretraining(options.config, settings, rank, inputs, options.resume)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        raise SystemExit("interrupted: the same command goes on from the newest checkpoint") from None
