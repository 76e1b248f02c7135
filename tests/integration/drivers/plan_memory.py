"""Holds the plan's memory against DeepSpeed's engine, one configuration after the other, on all ranks of a launch."""

from __future__ import annotations

import json
import sys

from simvtp_ds.bench import inputs
from simvtp_ds.bench.plan.check import TIMEOUT, check
from simvtp_ds.config import ModelConfig, PretrainConfig
from simvtp_ds.data_config import DataConfig
from simvtp_ds.ds_settings import load_settings
from simvtp_ds.engine.ranks import connect, find_rank
from simvtp_ds.process import run_main

# States and activations weigh about the same, and the words are not all of the model, as in a model worth training.
MODEL = ModelConfig(width=96, depth=4, heads=4, decoder_width=48, decoder_depth=2, decoder_heads=2, patch_size=8)
VOCABULARY = 2000


def main() -> None:
    inputs.VOCABULARY = VOCABULARY
    rank = find_rank()
    connect(rank, TIMEOUT)
    config = PretrainConfig(data=DataConfig(num_frames=4, image_size=64), model=MODEL)
    for path in sys.argv[1:]:
        found = check(config, load_settings(path, rank.world_size), 12, rank)
        if rank.is_main:
            print("found", json.dumps({"path": path, "memory": found["memory"], "flops": found["flops"]}), flush=True)


if __name__ == "__main__":
    run_main(main)
