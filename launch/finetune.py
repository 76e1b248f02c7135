"""Fine-tune SimVTP for text-to-video retrieval under deepspeed, torchrun, srun or plain python; `--help` tells how."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

DESCRIPTION = """\
Fine-tune a pre-trained SimVTP for text-to-video retrieval: two towers and their contrast.

  1. python launch/prepare.py MSRVTT_data.json --list MSRVTT_train.9k.csv --videos VIDEOS --out data/msrvtt_9k \\
         --tokenizer runs/mine/tokenizer
  2. deepspeed --num_accelerators 8 launch/finetune.py --deepspeed_config ds_configs/finetune_fp16.json \\
         --init runs/mine --data.manifest data/msrvtt_9k --run.dir runs/msrvtt
  3. python launch/evaluate.py --checkpoint runs/msrvtt --manifest data/msrvtt_1kA

--init takes a run or a checkpoint of ours, whose sizes and tokenizer are then the model's, or weights of others
(docs/weights.md). Without --init the towers start from scratch. Every option is explained below; --preset
finetune_msrvtt gives the defaults."""


def make_job(config, settings, world_size):
    """What to train, from the configuration, the DeepSpeed settings and the number of ranks."""
    from simvtp_ds.engine.finetune import finetuning_job
    from simvtp_ds.evaluation.retrieval import validate

    return finetuning_job(config, settings, world_size, validate)


def main(arguments: list[str]) -> None:
    """Decoder processes import this file again, so everything is imported in here."""
    from simvtp_ds.finetune_config import FinetuneConfig
    from simvtp_ds.launching import launch_training

    launch_training(arguments, FinetuneConfig, "finetune_msrvtt", DESCRIPTION, make_job)


if __name__ == "__main__":
    from simvtp_ds.process import run_main

    run_main(lambda: main(sys.argv[1:]))
