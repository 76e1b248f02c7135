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
decay. --init and --init_words start from VideoMAE and BERT, or other weights (docs/weights.md), else from scratch.
Everything else is below: a preset gives the defaults, --config FILE goes over it, options go over both.
torchrun, srun and plain python (one process) start it as well."""


def make_job(config, settings, world_size):
    """What to train, from the configuration, the DeepSpeed settings and the number of ranks."""
    from simvtp_ds.engine.pretrain import pretraining_job

    if not config.run.picture_every:
        return pretraining_job(config, settings, world_size)

    from simvtp_ds.evaluation.training_pictures import TrainingPictures

    return pretraining_job(config, settings, world_size, lambda *inputs: TrainingPictures(*inputs).take)


def main(arguments: list[str]) -> None:
    """Decoder processes import this file again, so everything is imported in here."""
    from simvtp_ds.config import PretrainConfig
    from simvtp_ds.launching import launch_training

    launch_training(arguments, PretrainConfig, "pretrain_webvid", DESCRIPTION, make_job)


if __name__ == "__main__":
    from simvtp_ds.process import run_main

    run_main(lambda: main(sys.argv[1:]))
