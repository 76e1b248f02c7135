"""The speed of a run on a cluster, and what limits it, from what a step takes and what the hardware gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from simvtp_ds.bench.plan.clips import Supply, supply
from simvtp_ds.bench.plan.hardware import BANDWIDTH_REACHED, LAUNCH_SECONDS, RESERVED_GIB, Files, Gpu
from simvtp_ds.bench.plan.memory import GIB, Memory, memory
from simvtp_ds.bench.plan.network import Cluster, Collective, collectives
from simvtp_ds.bench.plan.step import Step
from simvtp_ds.config import PretrainConfig
from simvtp_ds.ds_settings import DeepSpeedSettings

ADAM_BYTES = 28  # a parameter: weight, two moments and gradient read, weight and moments written, float32
HIDING = 2 / 3  # of the compute time is the backward pass, behind which gradients can travel


@dataclass(frozen=True)
class Machine:
    """What the run is planned for, beside the number of GPUs."""

    gpu: Gpu
    files: Files
    cores: float  # a GPU
    memory_gib: float  # that the run may use of a GPU


@dataclass(frozen=True)
class Prediction:
    """One run; seconds are those of one step.

    Attributes:
        cluster: Its GPUs.
        memory: Of one GPU, with captions as long as data.max_words.
        fits: Whether that is less than the GPU has.
        device: Products and memory traffic.
        launching: What the host takes to start the operations; the longer of the two counts.
        update: Of the optimizer.
        messages: Each collective and its seconds.
        waiting: Seconds of messages that nothing hides.
        step: All of it.
        asked: Clips (views) a second and GPU, if data are always there.
        supply: Views a second and GPU that decoding gives.
    """

    cluster: Cluster
    global_batch: int
    memory: Memory
    fits: bool
    device: float
    launching: float
    update: float
    messages: list[tuple[Collective, float]]
    waiting: float
    step: float
    asked: float
    supply: Supply

    @property
    def clips_per_s(self) -> float:
        """Of all GPUs."""
        return min(self.asked, self.supply.total) * self.cluster.ranks

    @property
    def bottleneck(self) -> str:
        """What to improve first."""
        if not self.fits:
            return "memory: it does not fit"
        if self.supply.total < self.asked:
            return "decoding"
        if self.waiting > max(self.device, self.launching):
            return "communication"
        return "compute" if self.device >= self.launching else "starting of operations (host)"

    def days(self, clips: float) -> float:
        """To learn from `clips` views."""
        return clips / self.clips_per_s / 86400

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "gpus": self.cluster.ranks,
            "nodes": self.cluster.nodes,
            "global_batch": self.global_batch,
            "memory_gib": self.memory.gib(),
            "fits": self.fits,
            "seconds": {
                "device": self.device,
                "launching": self.launching,
                "update": self.update,
                "messages_not_hidden": self.waiting,
                "step": self.step,
            },
            "messages": [
                {"name": what.name, "bytes": what.bytes, "passes": what.passes, "seconds": seconds}
                for what, seconds in self.messages
            ],
            "clips_per_s_and_gpu": {
                "asked": self.asked,
                "nvdec": self.supply.nvdec,
                "workers": self.supply.workers,
            },
            "clips_per_s": self.clips_per_s,
            "bottleneck": self.bottleneck,
        }


def predict(
    typical: Step,
    longest: Step,
    config: PretrainConfig,
    settings: DeepSpeedSettings,
    cluster: Cluster,
    machine: Machine,
) -> Prediction:
    """A run on `cluster`.

    Args:
        typical: A micro batch with captions of the usual length, for the time.
        longest: One with captions as long as data.max_words, for the memory.
        config, settings: The run.
        cluster: Its GPUs.
        machine: What they are.
    """
    gpu, micros = machine.gpu, settings.accumulation
    taken = memory(longest, settings, cluster.ranks)
    bandwidth = gpu.bandwidth * BANDWIDTH_REACHED
    kind = "tf32" if settings.dtype == "fp32" and config.compute.tf32 and "tf32" in gpu.flops else settings.dtype
    device = micros * typical.work.seconds(gpu.flops[kind] * gpu.reached, bandwidth)
    launching = micros * len(typical.work.flops) * LAUNCH_SECONDS
    shards = cluster.ranks if settings.zero_stage else 1
    update = ADAM_BYTES * typical.parameters / shards / bandwidth
    messages = [
        (what, what.seconds(cluster, gpu)) for what in collectives(typical.parameters, config, settings, cluster)
    ]
    computing = max(device, launching)
    hidden = sum(seconds for what, seconds in messages if what.hidden)
    waiting = max(0.0, hidden - HIDING * computing) + sum(seconds for what, seconds in messages if not what.hidden)
    step = computing + update + waiting
    return Prediction(
        cluster=cluster,
        global_batch=settings.global_batch(cluster.ranks),
        memory=taken,
        fits=taken.peak / GIB + RESERVED_GIB <= machine.memory_gib,
        device=device,
        launching=launching,
        update=update,
        messages=messages,
        waiting=waiting,
        step=step,
        asked=settings.micro_batch * micros / step,
        supply=supply(config.data, machine.files, gpu, machine.cores),
    )
