"""One training step run on fake tensors: what it computes, moves and keeps, of the code as it is and without its data.

Nothing is written down twice: another pass, a chunked loss or activation checkpointing changes the count by itself.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from simvtp_ds.bench.inputs import build_task, noise_batch
from simvtp_ds.config import PretrainConfig
from simvtp_ds.ds_settings import Dtype
from simvtp_ds.engine.compute import apply
from simvtp_ds.types import Batch

# Training in fp16 is counted in bf16: the sizes are the same, and fewer CPU operators lack it.
DTYPES: dict[Dtype, torch.dtype] = {"fp32": torch.float32, "fp16": torch.bfloat16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Work:
    """The operations of a step in their order; views are left out.

    Attributes:
        flops: float64 [operations], of products and attention; 0 for all else.
        moved: float64 [operations], bytes read and written.
    """

    flops: np.ndarray
    moved: np.ndarray

    @property
    def total_flops(self) -> float:
        """Of the whole step; recomputed ones count."""
        return float(self.flops.sum())

    def seconds(self, flops_per_s: float, bytes_per_s: float) -> float:
        """A roofline an operation: each takes what its products or its memory traffic take, whichever is longer."""
        return float(np.maximum(self.flops / flops_per_s, self.moved / bytes_per_s).sum())


@dataclass(frozen=True)
class Step:
    """What one micro batch takes on one rank, in bytes where nothing else is said.

    Attributes:
        parameters: How many.
        largest: Elements of the largest parameter.
        buffers: Of the model (position tables).
        batch: The micro batch on the device.
        saved: Activations that the forward pass keeps for the backward pass.
        live: int64 [operations], at each operation, parameters, buffers, batch and gradients of parameters left out.
        gradients: int64 [operations], of parameters that are ready.
        work: The operations.
    """

    parameters: int
    largest: int
    buffers: int
    batch: int
    saved: int
    live: np.ndarray
    gradients: np.ndarray
    work: Work

    def widest(self, kept: float) -> tuple[int, int]:
        """Where it takes the most memory, if a share `kept` of the gradients is kept: what lives, and gradients."""
        at = int((self.live + kept * self.gradients).argmax())
        return int(self.live[at]), int(kept * self.gradients[at])


@dataclass
class _Ledger(TorchDispatchMode):
    """Adds up storages as they come and go."""

    live: int = 0
    gradients: int = 0
    timeline: list[tuple[int, int]] = field(default_factory=list)
    work: list[tuple[float, float]] = field(default_factory=list)
    known: dict[int, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: OpOverload, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func.namespace == "prim":
            return out
        tensors = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        for tensor in tensors:
            self._add(tensor)
        self.timeline.append((self.live, self.gradients))
        if not func.is_view and tensors:
            read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            moved = sum({id(tensor): tensor.nbytes for tensor in (*read, *tensors)}.values())
            self.work.append((_flops(func, args, kwargs, out), moved))
        return out

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return

        def gone(_: Any) -> None:
            self.live -= size
            del self.known[key]

        self.live += size
        self.known[key] = weakref.ref(storage, gone)


def _flops(func: OpOverload, args: tuple, kwargs: dict, out: Any) -> float:
    name = func.overloadpacket.__name__
    if name == "_scaled_dot_product_flash_attention_for_cpu":  # torch's counter knows its CUDA sisters only
        return float(sdpa_flop_count(args[0].shape, args[1].shape, args[2].shape))
    if name == "_scaled_dot_product_flash_attention_for_cpu_backward":
        return float(sdpa_backward_flop_count(args[0].shape, args[1].shape, args[2].shape, args[3].shape))
    count: Callable[..., int] | None = flop_registry.get(func.overloadpacket)
    return float(count(*args, **kwargs, out_val=out)) if count else 0.0


def count_step(config: PretrainConfig, clips: int, words: int, dtype: Dtype) -> Step:
    """One micro batch, forward and backward.

    Args:
        config: Sizes, masks, objectives, recomputation; what compiling and kernels of GPUs would save is not counted.
        clips: Micro batch (B), views of clips.
        words: Tokens of the longest caption (L).
        dtype: Of weights and activations.
    """
    real = noise_batch(config, clips, words)
    ledger, default = _Ledger(), torch.get_default_dtype()
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, ledger:
        torch.set_default_dtype(DTYPES[dtype])
        try:
            task = build_task(config)
        finally:
            torch.set_default_dtype(default)
        # Kernels of GPUs have no count of FLOPs: the mask and the chunks, which give the same numbers, stand for them.
        apply(replace(config.compute, compile=False, varlen=False, liger=False), task)
        batch = Batch(*(fake.from_tensor(tensor) for tensor in real))
        for parameter in task.parameters():
            parameter.register_post_accumulate_grad_hook(lambda done: _hand_over(ledger, done))
        before = ledger.live
        ledger.timeline.clear()
        ledger.work.clear()
        loss = task(batch).total
        saved = ledger.live - before
        loss.backward()
    sizes = [parameter.numel() for parameter in task.parameters()]
    timeline, work = np.array(ledger.timeline, np.int64), np.array(ledger.work, np.float64)
    return Step(
        parameters=sum(sizes),
        largest=max(sizes),
        buffers=sum(buffer.nbytes for buffer in task.buffers()),
        batch=sum(tensor.nbytes for tensor in real),
        saved=saved,
        live=timeline[:, 0] - before,
        gradients=timeline[:, 1],
        work=Work(work[:, 0], work[:, 1]),
    )


def _hand_over(ledger: _Ledger, parameter: nn.Parameter | Tensor) -> None:
    """A gradient is ready: ZeRO takes it, which counts as a gradient and no more as something in the making."""
    assert parameter.grad is not None
    ledger.gradients += parameter.grad.nbytes
    parameter.grad = None
