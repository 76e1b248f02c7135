"""Ways to compute the same step: which of them this machine can, and how a task is set up for them."""

from __future__ import annotations

from importlib.util import find_spec

import torch

from simvtp_ds.config import ComputeConfig
from simvtp_ds.data_config import require
from simvtp_ds.ds_settings import DeepSpeedSettings
from simvtp_ds.model.blocks import compile_blocks, recompute_blocks
from simvtp_ds.model.simvtp import use_segments
from simvtp_ds.objectives.pretrain import fuse_word_loss


def takes_varlen(dtype: str) -> bool:
    """Whether attention over segments runs here: torch has it as flash attention only."""
    return dtype != "fp32" and torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)


def has_liger() -> bool:
    """Whether Liger's kernels are installed and have a GPU to run on."""
    return find_spec("liger_kernel") is not None and torch.cuda.is_available()


def check_compute(compute: ComputeConfig, settings: DeepSpeedSettings) -> None:
    """ValueError where a way is asked for that this machine or the DeepSpeed JSON rules out."""
    require(
        not (compute.compile and settings.zero_stage == 3),
        f"compute.compile is on and {settings.path} has ZeRO stage 3, whose gathering of weights inside a "
        "compiled block was never tried: switch it off, or take stage 2",
    )
    require(
        not compute.varlen or takes_varlen(settings.dtype),
        "compute.varlen is on, and needs a GPU from Ampere on (compute capability 8.0) and fp16 or bf16, where "
        f"{settings.path} has {settings.dtype}: switch it off",
    )
    require(
        not compute.liger or has_liger(),
        "compute.liger is on, and needs a GPU and the package liger-kernel: pip install liger-kernel, or switch it off",
    )
    require(
        not compute.liger or (settings.zero_stage < 3 and settings.dtype != "fp16"),
        f"compute.liger is on, and {settings.path} has ZeRO stage {settings.zero_stage} and {settings.dtype}: it reads "
        "weights that stage 3 has not gathered, and makes gradients before fp16's loss scale. Switch it off, or take "
        "stage 2 and bf16",
    )


def apply(compute: ComputeConfig, task: torch.nn.Module) -> None:
    """Set `task` up to compute that way."""
    if compute.varlen:
        use_segments(task)
    if compute.liger:
        fuse_word_loss(task)
    if compute.tf32:
        torch.set_float32_matmul_precision("high")  # concerns GPUs that have TF32, and no others
    if compute.recompute:
        recompute_blocks(task)
    if compute.compile:
        compile_blocks(task)
