"""Memory of one GPU by part: DeepSpeed 0.19.8's states and buckets under each ZeRO stage, and what a step keeps.

What the parts come to was read in DeepSpeed's stage_1_and_2.py and stage3.py; tests/integration/test_plan.py holds
the sum against what the real engine allocates.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from simvtp_ds.bench.plan.step import Step
from simvtp_ds.ds_check import parse_section
from simvtp_ds.ds_settings import DeepSpeedSettings

GIB = 2**30


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU, and in its host's memory.

    Attributes:
        weights: What the forward pass reads; the whole model, also under ZeRO-3 while its layers are at work.
        master: fp32 copy that the optimizer updates.
        moments: Adam's two.
        gradients: Kept where the backward pass is widest.
        buckets: Buffers in which gradients travel.
        activations: Kept by the forward pass, and what else lives with them where the backward pass is widest.
        batch: The micro batch, and position tables.
        update: What the update takes beside weights, master and moments: nothing of the backward pass is left then.
        host: Moved to the host by offload_optimizer or offload_param.
    """

    weights: int
    master: int
    moments: int
    gradients: int
    buckets: int
    activations: int
    batch: int
    update: int
    host: int

    @property
    def backward(self) -> int:
        """At the widest place of the backward pass."""
        return self._states + self.gradients + self.buckets + self.activations

    @property
    def peak(self) -> int:
        """The most at a time: in the backward pass, or in the update where the micro batch is small."""
        return max(self.backward, self.peak_of_update)

    @property
    def peak_of_update(self) -> int:
        """In the update."""
        return self._states + self.update

    @property
    def _states(self) -> int:
        return self.weights + self.master + self.moments + self.batch

    def gib(self) -> dict[str, float]:
        """The parts and their peak, in GiB."""
        parts = {name: value / GIB for name, value in asdict(self).items()}
        return {**parts, "backward": self.backward / GIB, "peak": self.peak / GIB}


def memory(step: Step, settings: DeepSpeedSettings, ranks: int) -> Memory:
    """Of one rank of `ranks`.

    Args:
        step: One micro batch, in the settings' dtype.
        settings: The DeepSpeed JSON.
        ranks: How many share the states.
    """
    zero = parse_section(settings.raw.get("zero_optimization", {}), "zero_optimization")
    stage, width, count = settings.zero_stage, 4 if settings.dtype == "fp32" else 2, step.parameters
    shard = -(-count // ranks) if stage else count  # the parameters that this rank updates
    bucket = int(zero.reduce_bucket_size)
    norm = min(step.largest, shard) * 8  # DeepSpeed squares gradients in float64, one parameter at a time
    batch = step.batch + step.buffers
    offloaded = stage > 0 and zero.offload_optimizer is not None and zero.offload_optimizer.device != "none"

    if stage == 0:  # fp32; without ZeRO gradients travel in copies, bucket by bucket, after the backward pass
        activations, gradients = step.widest(1.0)
        travelling = min(bucket, count) * 4 if ranks > 1 else 0
        update = 4 * count + max(travelling, norm)
        return Memory(4 * count, 0, 8 * count, gradients, 0, activations, batch, update, 0)

    weights, host, kept = count * width, 0, shard / count
    if stage == 3:
        shards = shard * width
        # What was gathered stays until stage3_max_live_parameters are; small parameters always do.
        weights = min(count, int(zero.max_live_parameters)) * width
        if zero.offload_param is not None and zero.offload_param.device != "none":
            host += shards
        else:
            weights += shards
        kept = 0.0  # gradients of the shard have a buffer of their own, all the time
    if offloaded:
        kept = 0.0
    activations, gradients = step.widest(kept)
    buckets = bucket * width * (2 if zero.overlap_comm and stage < 3 else 1)
    joined = shard * (width + (4 if width == 2 else 0))  # gradients become one tensor, and float32
    update = shard * width + max(joined, norm)
    master, moments = 4 * shard, 8 * shard
    if offloaded:
        host += master + moments + 4 * shard  # gradients wait there in float32
        master = moments = update = 0
        if stage < 3:  # a gradient on its way has a buffer at both ends
            buckets += step.largest * width
            host += step.largest * width
    elif stage == 3:
        gradients = shard * width
    return Memory(weights, master, moments, gradients, buckets, activations, batch, update, host)
