"""Whether decoding keeps up: what NVDEC and worker processes supply, for what the step asks."""

from __future__ import annotations

from dataclasses import dataclass

from simvtp_ds.bench.plan.hardware import Files, Gpu
from simvtp_ds.data_config import DataConfig


@dataclass(frozen=True)
class Supply:
    """Views a second, of one GPU.

    Attributes:
        nvdec: By the GPU's decoding engines; 0 where data.backend is cpu.
        workers: By worker processes, each with a core of its own.
        cores: How many of those there are: data.workers, or the machine's cores if they are fewer.
    """

    nvdec: float
    workers: float
    cores: float

    @property
    def total(self) -> float:
        """By both."""
        return self.nvdec + self.workers


def supply(data: DataConfig, files: Files, gpu: Gpu, cores: float) -> Supply:
    """What feeds one GPU.

    Args:
        data: Frames, stride, views, backend, workers.
        files: The videos.
        gpu: Its engines.
        cores: Processor cores a GPU.
    """
    span = (data.num_frames - 1) * data.frame_stride + 1
    at_work = min(float(data.workers), cores)
    nvdec = 0.0 if data.backend == "cpu" else files.engine_clips(gpu, span)
    return Supply(nvdec * data.views, at_work * files.clips_per_core * data.views, at_work)
