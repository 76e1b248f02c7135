"""Exact resuming with DeepSpeed's Adam on CPUs.

Its C++ keeps the products beta1^step and beta2^step and multiplies them on with every step; after a resume it starts
with a power, whose last bit differs, and so then do the weights. On GPUs both are powers.
"""

from __future__ import annotations

from typing import Any

import torch


def replay_bias_correction(optimizer: Any) -> None:
    """Let DeepSpeed's CPU Adam multiply its products as in all steps before; nothing for any other optimizer.

    Takes some microseconds a step.

    Args:
        optimizer: The engine's, after a checkpoint was loaded.
    """
    adam = getattr(optimizer, "optimizer", optimizer)
    steps = max((int(state["step"]) for state in adam.state.values() if "step" in state), default=0)
    group = adam.param_groups[0]  # betas are the same in all of them
    nothing = [torch.zeros(1) for _ in range(4)]  # parameter, gradient, two moments
    if hasattr(adam, "ds_opt_adam"):
        for step in range(1, steps + 1):
            adam.ds_opt_adam.adam_update(adam.opt_id, step, 0.0, *group["betas"], group["eps"], 0.0, True, *nothing)
    elif hasattr(adam, "multi_tensor_adam") and adam._dummy_overflow_buf.device.type == "cpu":
        lists = [[tensor] for tensor in nothing]
        for step in range(1, steps + 1):
            adam.multi_tensor_adam(
                1, adam._dummy_overflow_buf, lists, 0.0, *group["betas"], group["eps"], step, adam.adam_w_mode, 1, 0.0
            )
