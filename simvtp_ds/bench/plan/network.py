"""What a step sends between GPUs, by collective, and how long the links take for it."""

from __future__ import annotations

from dataclasses import dataclass

from simvtp_ds.bench.plan.hardware import LINK_REACHED, Gpu
from simvtp_ds.config import PretrainConfig
from simvtp_ds.ds_settings import DeepSpeedSettings


@dataclass(frozen=True)
class Cluster:
    """`nodes` machines of `per_node` GPUs."""

    nodes: int
    per_node: int

    @property
    def ranks(self) -> int:
        """All GPUs."""
        return self.nodes * self.per_node


@dataclass(frozen=True)
class Collective:
    """One kind of message of a step.

    Attributes:
        name: For people.
        bytes: Of the whole tensor, of all its uses in a step.
        passes: How often it goes round: an all-reduce is a reduce-scatter and an all-gather, 2.
        hidden: Whether it can run while the backward pass still computes.
    """

    name: str
    bytes: float
    passes: int
    hidden: bool

    def seconds(self, cluster: Cluster, gpu: Gpu) -> float:
        """In rings: each GPU receives (ranks - 1) / ranks of it, each machine (nodes - 1) / nodes from others."""
        inside = self.bytes * (cluster.ranks - 1) / cluster.ranks / gpu.link
        network = gpu.network * cluster.per_node / 8  # a machine with fewer GPUs has fewer adapters
        between = self.bytes * (cluster.nodes - 1) / cluster.nodes / network
        return self.passes * max(inside if cluster.per_node > 1 else 0.0, between) / LINK_REACHED


def collectives(
    parameters: int, config: PretrainConfig, settings: DeepSpeedSettings, cluster: Cluster
) -> list[Collective]:
    """The messages of one step.

    Args:
        parameters: Of the model.
        config: Width and contrast.
        settings: ZeRO stage, dtype, micro batch, accumulation.
        cluster: Ranks.
    """
    if cluster.ranks == 1:
        return []
    stage, micros = settings.zero_stage, settings.accumulation
    weights = parameters * (4 if settings.dtype == "fp32" else 2)
    found = []
    # Gradients of a micro batch cannot wait under ZeRO-2 and 3: there is no place for all of them.
    gradients = weights * (micros if stage >= 2 else 1)
    if stage == 3:
        found.append(Collective("reduce-scatter of gradients", gradients, 1, True))
        found.append(Collective("all-gather of weights, forward and backward", 2 * weights * micros, 1, True))
    else:  # with DeepSpeed's use_multi_rank_bucket_allreduce, its default, ZeRO-1 and 2 reduce everything to everybody
        zero = settings.raw.get("zero_optimization", {})
        to_owner = stage > 0 and zero.get("use_multi_rank_bucket_allreduce") is False
        name = "reduction of gradients to their owners" if to_owner else "all-reduce of gradients"
        overlaps = stage > 0 and zero.get("overlap_comm") is True
        found.append(Collective(name, gradients, 1 if to_owner else 2, overlaps))
    if stage in (1, 2):
        found.append(Collective("all-gather of updated weights", weights, 1, False))
    if config.objectives.vtc and config.objectives.contrastive.scope == "global":
        rows = cluster.ranks * settings.micro_batch * config.model.width * 4
        found.append(Collective("all-gather of features for the contrast", 2 * rows * micros, 1, False))
        found.append(Collective("all-reduce of their gradients", 2 * rows * micros, 2, False))
    return found
