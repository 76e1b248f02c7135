"""Ways to make one training step without DeepSpeed: ours, and what it is compared with."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from transformers import VideoMAEConfig, VideoMAEForPreTraining

from simvtp_ds.bench.cases import BenchError
from simvtp_ds.bench.flops import on_meta, training_flops
from simvtp_ds.bench.inputs import build_task
from simvtp_ds.bench.memory import peak_memory
from simvtp_ds.bench.released import ReleasedTask, one_by_one
from simvtp_ds.bench.timing import clock
from simvtp_ds.config import PretrainConfig
from simvtp_ds.data.augment import PIXEL_MEAN, PIXEL_STD
from simvtp_ds.model.blocks import compile_blocks, recompute_blocks
from simvtp_ds.model.simvtp import use_segments
from simvtp_ds.objectives.pretrain import fuse_word_loss
from simvtp_ds.types import Batch, to_device

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
OURS, BASELINES, ALSO = "ours", ("released", "hf-videomae"), ("one-by-one", "varlen", "liger", "recompute", "compile")


class Took(NamedTuple):
    """Seconds of the parts of a step by `timing.clock`, those on the wall of all of it, and its loss."""

    forward: float
    backward: float
    optimizer: float
    wall: float
    loss: float

    @property
    def seconds(self) -> float:
        """Of the whole step."""
        return self.forward + self.backward + self.optimizer


class Step:
    """A module, a batch and torch's fused AdamW over weights in fp32; a learning rate of 0 keeps the loss the same.

    A module in half precision has fp32 copies of its weights, as DeepSpeed keeps them (their names: master weights);
    without a loss scale, which costs nothing.
    """

    def __init__(self, module: nn.Module, batch: Batch, dtype: torch.dtype, device: torch.device) -> None:
        self.module = module.to(device, dtype).train()
        self.batch, self.device = to_device(batch, device), device
        self.weights = [weight for weight in module.parameters() if weight.requires_grad]
        self.masters = self.weights if dtype is torch.float32 else [w.detach().float() for w in self.weights]
        self.optimizer = torch.optim.AdamW(self.masters, lr=0.0, betas=(0.9, 0.95), weight_decay=0.05, fused=True)

    def __call__(self) -> Took:
        """One step."""
        started = time.perf_counter()
        marks = [clock(self.device)]
        loss = self.module(self.batch).total
        marks.append(clock(self.device))
        loss.backward()
        marks.append(clock(self.device))
        self._update()
        marks.append(clock(self.device))
        forward, backward, optimizer = (end - start for start, end in pairwise(marks))
        return Took(forward, backward, optimizer, time.perf_counter() - started, loss.item())

    def peak(self) -> int:
        """Most bytes in use at a time, weights and optimizer states included; after a first step."""
        states = [t for state in self.optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
        held = [*self.module.parameters(), *self.module.buffers(), *self.masters, *states, *self.batch]
        return peak_memory(self, self.device, held)

    def _update(self) -> None:
        if self.masters is not self.weights:
            for master, weight in zip(self.masters, self.weights, strict=True):
                master.grad, weight.grad = weight.grad.float() if weight.grad is not None else None, None
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.masters is not self.weights:
            with torch.no_grad():
                for master, weight in zip(self.masters, self.weights, strict=True):
                    weight.copy_(master)


class Rebuilt(NamedTuple):
    """The loss of Hugging Face's model, under the name that `Step` looks for."""

    total: Tensor


class HuggingFaceTask(nn.Module):
    """transformers' VideoMAE on the same clips and masks: masked video modelling alone, no text."""

    def __init__(self, config: PretrainConfig):
        super().__init__()
        model, data = config.model, config.data
        self.model = VideoMAEForPreTraining(
            VideoMAEConfig(
                image_size=data.image_size,
                num_frames=data.num_frames,
                patch_size=model.patch_size,
                tubelet_size=model.tubelet_size,
                hidden_size=model.width,
                num_hidden_layers=model.depth,
                num_attention_heads=model.heads,
                intermediate_size=int(model.mlp_ratio * model.width),
                decoder_hidden_size=model.decoder_width,
                decoder_num_hidden_layers=model.decoder_depth,
                decoder_num_attention_heads=model.decoder_heads,
                decoder_intermediate_size=int(model.mlp_ratio * model.decoder_width),
            )
        )
        self.tokens = (data.num_frames // model.tubelet_size) * (data.image_size // model.patch_size) ** 2

    def forward(self, batch: Batch) -> Rebuilt:
        """The loss of a batch with one view a clip."""
        scaled = batch.frames.float() / 255
        pixels = (scaled - scaled.new_tensor(PIXEL_MEAN)) / scaled.new_tensor(PIXEL_STD)
        mask = torch.zeros(len(pixels), self.tokens, dtype=torch.bool, device=pixels.device)
        mask.scatter_(1, batch.hidden, True)
        clips = rearrange(pixels, "b t h w c -> b t c h w").to(self.model.dtype)
        return Rebuilt(self.model(clips, mask).loss)


def make_module(name: str, config: PretrainConfig, device: torch.device | str = "cpu") -> nn.Module:
    """The module of a variant, from the same initial weights for all but Hugging Face's.

    Raises:
        BenchError: there is no such variant, or it cannot do what the configuration asks for.
    """
    if name in BASELINES and config.data.views > 1:
        raise BenchError(f"data.views is {config.data.views}, and {name} knows one view a clip: leave it at 1")
    if name == "hf-videomae":
        return HuggingFaceTask(config)
    task = build_task(config, device)
    if name == "released":
        return ReleasedTask(task.model, config.objectives)
    changes: dict[str, Callable[[], object]] = {
        OURS: lambda: None,
        "one-by-one": lambda: one_by_one(task.model),
        "varlen": lambda: use_segments(task),
        "liger": lambda: fuse_word_loss(task),
        "recompute": lambda: recompute_blocks(task),
        "compile": lambda: compile_blocks(task),
    }
    if name not in changes:
        raise BenchError(f"{name}: there is no such variant; there are {', '.join([*changes, *BASELINES])}")
    changes[name]()
    return task


def make_step(name: str, dtype: str, config: PretrainConfig, batch: Batch, device: torch.device, seed: int = 0) -> Step:
    """A variant ready to run."""
    torch.manual_seed(seed)
    return Step(make_module(name, config), batch, DTYPES[dtype], device)


def model_flops(name: str, config: PretrainConfig, batch: Batch) -> int | None:
    """Operations of forward and backward; None where they cannot be counted without computing (Hugging Face's)."""
    if name == "hf-videomae":
        return None
    # What is computed twice to save memory is work, but no progress: all of ours have the same.
    return training_flops(make_module("released" if name == "released" else OURS, config, "meta"), on_meta(batch))


def without_dropout(config: PretrainConfig) -> PretrainConfig:
    """The same without dropout, so that all variants have the same loss."""
    return replace(config, model=replace(config.model, text_dropout=0.0))
