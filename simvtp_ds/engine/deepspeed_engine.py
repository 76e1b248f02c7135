"""DeepSpeed's engine: how it is started, and the one update that it does not check by itself."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from simvtp_ds.ds_settings import DeepSpeedSettings


def start_engine(
    task: torch.nn.Module, groups: list[dict], settings: DeepSpeedSettings, universal: bool = False
) -> Any:
    """The DeepSpeed engine around a task; optimizer, dtype and ZeRO come from the user's JSON as it is.

    `universal`: the checkpoint that it will load comes from engine/universal.py.
    """
    import deepspeed

    # DeepSpeed still calls it by its old name; the reader of a log can do nothing about that.
    warnings.filterwarnings("ignore", message=".*all_gather_into_tensor. is deprecated", category=FutureWarning)
    parameters: Any = groups  # DeepSpeed annotates a module and documents parameter groups
    config = settings.raw
    if universal:
        config = {**config, "checkpoint": {**config.get("checkpoint", {}), "load_universal": True}}
    engine, *_ = deepspeed.initialize(model=task, model_parameters=parameters, config=config)
    if settings.dtype == "fp16":
        # At its floor DeepSpeed's scaler would end the run by itself; run.max_skipped decides that, see SkippedSteps.
        optimizer: Any = engine.optimizer
        optimizer.loss_scaler.raise_error_at_min_scale = False
    return engine


def drop_bad_gradients(engine: Any) -> None:
    """DeepSpeed skips an update whose gradients are not finite, except without ZeRO in fp32: do it here.

    The gradients are those of all ranks already, so every rank decides alike.
    """
    gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    finite = bool(norm.isfinite())
    engine.optimizer.overflow = not finite
    engine.optimizer._global_grad_norm = float(norm)
    if not finite:
        for parameter in engine.module.parameters():
            parameter.grad = None  # the optimizer passes over parameters without a gradient
