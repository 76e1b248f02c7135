"""What GPUs, links and decoders can do, by their makers' figures, each with its source. None was measured here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """A GPU in the machine that it usually stands in.

    Attributes:
        name: For people.
        memory_gib: That a program can use, about.
        flops: {dtype: operations a second} of the data sheet, dense; "tf32" for fp32 with compute.tf32.
        reached: Share of it that large products reach.
        bandwidth: Bytes a second of its memory, data sheet.
        link: Bytes a second to and from (each way) the other GPUs of its machine.
        network: Bytes a second (each way) between machines, of a whole machine of 8 GPUs.
        engines: NVDEC engines.
        engine_fps: Frames of 1080p H.264 a second that an engine decodes.
        cores: Processor cores a GPU.
        sources: Of the figures.
    """

    name: str
    memory_gib: float
    flops: dict[str, float]
    reached: float
    bandwidth: float
    link: float
    network: float
    engines: int
    engine_fps: float
    cores: float
    sources: str


GPUS = {
    "v100-32g": Gpu(
        name="V100 SXM2 32 GB (DGX-1)",
        memory_gib=31.7,
        flops={"fp16": 125e12, "fp32": 15.7e12},
        reached=0.66,
        bandwidth=900e9,
        link=150e9,
        network=50e9,
        engines=1,
        engine_fps=700,
        cores=5,
        sources="NVIDIA's V100 and DGX-1 data sheets (NVLink 2: 150 GB/s each way; 4 x 100 Gb/s; 2 x 20 cores); "
        "83 of 125 TFLOPS reached by cuBLAS: Markidis et al., arXiv 1803.04014",
    ),
    "a100": Gpu(
        name="A100 SXM 80 GB (DGX A100)",
        memory_gib=79.1,
        flops={"bf16": 312e12, "fp16": 312e12, "fp32": 19.5e12, "tf32": 156e12},
        reached=0.86,
        bandwidth=2039e9,
        link=300e9,
        network=200e9,
        engines=5,
        engine_fps=783,
        cores=16,
        sources="NVIDIA's A100 data sheets (NVLink 3: 300 GB/s each way; 8 x 200 Gb/s; 2 x 64 cores); "
        "267.9 of 312 TFLOPS reached: S. Bekman, ml-engineering, Maximum Achievable Matmul FLOPS",
    ),
    "h100": Gpu(
        name="H100 SXM 80 GB (DGX H100)",
        memory_gib=79.1,
        flops={"bf16": 989e12, "fp16": 989e12, "fp32": 67e12, "tf32": 494e12},
        reached=0.80,
        bandwidth=3350e9,
        link=450e9,
        network=400e9,
        engines=7,
        engine_fps=783,
        cores=14,
        sources="NVIDIA's H100 data sheets (NVLink 4: 450 GB/s each way; 8 x 400 Gb/s; 2 x 56 cores); "
        "792.1 of 989 TFLOPS reached: S. Bekman, ml-engineering, Maximum Achievable Matmul FLOPS",
    ),
}

# Shares of a data sheet's figure that programs reach; assumptions of this project.
BANDWIDTH_REACHED = 0.8  # of memory
LINK_REACHED = 0.8  # of NVLink and network, by NCCL with large messages
LAUNCH_SECONDS = 6e-6  # that PyTorch and the driver take to start an operation of eager code
RESERVED_GIB = 2.0  # CUDA's context, NCCL's buffers, workspaces, fragments: nothing of it can be seen on a CPU


@dataclass(frozen=True)
class Files:
    """What the videos are like.

    Attributes:
        width, height: Pixels of a frame.
        gop: Frames from a key frame to the next.
        clips_per_core: Clips a second that a worker process decodes; docs/data.md, measured on 2 virtual cores.
    """

    width: int
    height: int
    gop: int
    clips_per_core: float

    def frames_decoded(self, span: int) -> float:
        """For a clip that spans `span` frames and starts anywhere: from the key frame before it to its end."""
        return self.gop / 2 + span

    def engine_clips(self, gpu: Gpu, span: int) -> float:
        """Clips a second that all NVDEC engines of a GPU decode: time goes with the pixels."""
        rate = gpu.engine_fps * (1920 * 1080) / (self.width * self.height)
        return gpu.engines * rate / self.frames_decoded(span)


FILES = {
    "gop250": Files(596, 336, 250, 9.6),
    "gop30": Files(596, 336, 30, 17.5),
    "packed": Files(454, 256, 16, 44.9),
}
