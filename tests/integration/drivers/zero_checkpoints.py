"""Train the tiny model two steps under each ZeRO stage; save DeepSpeed's checkpoint and the engine's own weights.

python -m torch.distributed.run --nproc_per_node 2 zero_checkpoints.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

CASES = ((0, False), (1, True), (2, False), (3, False))  # stage, bf16


def main() -> None:
    """All cases, one after the other."""
    import deepspeed
    import torch
    from safetensors.torch import save_file

    from simvtp_ds.config import ObjectiveConfig
    from simvtp_ds.engine.saving import fp32_weights
    from simvtp_ds.model.params import parameter_groups
    from simvtp_ds.objectives.pretrain import PretrainTask
    from tests.unit.tiny import tiny_batch, tiny_model

    deepspeed.init_distributed("gloo")
    rank = torch.distributed.get_rank()
    for stage, bf16 in CASES:
        task = PretrainTask(tiny_model(), ObjectiveConfig())
        config = {
            "train_micro_batch_size_per_gpu": 2,
            "gradient_clipping": 0.0,
            "bf16": {"enabled": bf16},
            "zero_optimization": {"stage": stage},
            "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "torch_adam": True}},
        }
        groups: Any = parameter_groups(task, 0.05)  # as in engine/train.py
        engine, *_ = deepspeed.initialize(model=task, model_parameters=groups, config=config)
        for step in range(2):
            engine.backward(engine(tiny_batch(2, seed=10 * step + rank)).total)
            engine.step()
        folder = Path(sys.argv[1]) / f"stage_{stage}"
        weights = fp32_weights(engine)
        if rank == 0:
            folder.mkdir(parents=True)
            save_file(weights, folder / "expected.safetensors")
        engine.save_checkpoint(str(folder), tag="step_2")


if __name__ == "__main__":
    from simvtp_ds.process import run_main

    run_main(main)
