"""DeepSpeed's own CPU optimizers, resumed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam

from simvtp_ds.engine.cpu_adam import replay_bias_correction

STEPS, SAVED = 60, 23


def make(kind: Any) -> tuple[torch.nn.Parameter, Any]:
    parameter = torch.nn.Parameter(torch.linspace(-1, 1, 1000))
    return parameter, kind([parameter], lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05)


def run(parameter: torch.nn.Parameter, optimizer: Any, first: int, last: int) -> None:
    for step in range(first, last):
        parameter.grad = torch.randn(1000, generator=torch.Generator().manual_seed(step))
        optimizer.step()


@pytest.mark.parametrize("kind", [FusedAdam, DeepSpeedCPUAdam])
def test_a_resumed_optimizer_makes_the_steps_of_one_that_was_never_stopped(kind: Any) -> None:
    whole, optimizer = make(kind)
    run(whole, optimizer, 0, SAVED)
    saved, state = whole.detach().clone(), copy.deepcopy(optimizer.state_dict())
    run(whole, optimizer, SAVED, STEPS)
    results = {}
    for replay in (False, True):
        resumed, optimizer = make(kind)
        resumed.data.copy_(saved)
        optimizer.load_state_dict(copy.deepcopy(state))
        if replay:
            replay_bias_correction(optimizer)
        run(resumed, optimizer, SAVED, STEPS)
        results[replay] = resumed
    assert results[True].equal(whole)
    assert not results[False].equal(whole), "DeepSpeed has mended it: replay_bias_correction can go"
