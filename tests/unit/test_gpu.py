"""What only a GPU can show: the step there gives the CPU's losses and gradients. Run with: pytest -m gpu."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny import tiny_batch, tiny_model

from simvtp_ds.config import ObjectiveConfig
from simvtp_ds.objectives.pretrain import PretrainTask
from simvtp_ds.types import to_device

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.float16, 2e-2), (torch.bfloat16, 1e-1)])
def test_a_step_on_the_gpu_equals_the_step_on_the_cpu(dtype: torch.dtype, tolerance: float) -> None:
    if dtype is torch.bfloat16 and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this GPU has no bf16")
    on_cpu, batch = PretrainTask(tiny_model(), ObjectiveConfig()), tiny_batch()
    on_gpu = copy.deepcopy(on_cpu).to("cuda", dtype)
    expected, found = on_cpu(batch), on_gpu(to_device(batch, "cuda"))
    for name, ours, theirs in zip(expected._fields, found, expected, strict=True):
        assert ours.item() == pytest.approx(theirs.item(), rel=tolerance), name
    expected.total.backward()
    found.total.backward()
    for (name, ours), theirs in zip(on_gpu.named_parameters(), on_cpu.parameters(), strict=True):
        assert ours.grad is not None and theirs.grad is not None
        difference = (ours.grad.float().cpu() - theirs.grad).norm() / (theirs.grad.norm() + 1e-6)
        assert difference < 5 * tolerance, name
