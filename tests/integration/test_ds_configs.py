"""Every shipped DeepSpeed config takes three steps in a real DeepSpeed engine, those in fp16 too."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "ds_configs").glob("*.json"))

STEPS = """
import json, os, sys
os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
import deepspeed, torch
from deepspeed.accelerator import get_accelerator
get_accelerator().is_fp16_supported = lambda: True  # for these tests only: a CPU without fp16 kernels runs it slowly
from simvtp_ds.ds_settings import check_accelerator, load_settings
settings = load_settings(sys.argv[1], 1)
check_accelerator(settings)
torch.manual_seed(0)
model = torch.nn.Linear(8, 8)
groups = [
    {"params": [model.weight], "weight_decay": settings.weight_decay}, {"params": [model.bias], "weight_decay": 0.0}
]
engine, optimizer, _, _ = deepspeed.initialize(model=model, model_parameters=groups, config=settings.raw)
dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[settings.dtype]
losses = []
for _ in range(3):
    loss = engine(torch.ones(settings.micro_batch, 8, dtype=dtype)).float().square().mean()
    engine.backward(loss)
    engine.step()
    losses.append(loss.item())
print(json.dumps({
    "losses": losses, "stage": engine.zero_optimization_stage(), "global_batch": engine.train_batch_size(),
    "clipping": engine.gradient_clipping(), "optimizer": type(engine.basic_optimizer).__name__,
    "skipped": engine.skipped_steps, "lr": optimizer.param_groups[0]["lr"],
    "raw": settings.raw == json.load(open(sys.argv[1])),
    "expected": [settings.zero_stage, settings.global_batch(1), settings.clipping, settings.lr],
}), flush=True)
os._exit(0)  # as process.run_main does, and for its reason
"""


@pytest.mark.integration
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_config_trains_and_deepspeed_reads_it_as_we_do(path):
    command = [sys.executable, "-c", STEPS, str(path)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=path.parents[1], timeout=500)
    assert run.returncode == 0, run.stderr[-3000:]
    seen = json.loads(run.stdout.strip().splitlines()[-1])
    assert seen["losses"][2] < seen["losses"][0]
    assert [seen["stage"], seen["global_batch"], seen["clipping"], seen["lr"]] == seen["expected"]
    assert seen["optimizer"] == ("DeepSpeedCPUAdam" if path.stem == "zero3_offload" else "FusedAdam")
    assert seen["skipped"] == 0
    assert seen["raw"], "DeepSpeed or we changed the user's settings"
