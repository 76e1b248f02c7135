"""A plan as tables for people and as values for tools."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from simvtp_ds.bench.flops import step_flops
from simvtp_ds.bench.plan.hardware import (
    BANDWIDTH_REACHED,
    LAUNCH_SECONDS,
    LINK_REACHED,
    RESERVED_GIB,
    Files,
    Gpu,
)
from simvtp_ds.bench.plan.memory import GIB, Memory
from simvtp_ds.bench.plan.network import Cluster
from simvtp_ds.bench.plan.predict import Machine, Prediction, predict
from simvtp_ds.bench.plan.step import Step, count_step
from simvtp_ds.config import PretrainConfig
from simvtp_ds.data.manifest import Manifest
from simvtp_ds.ds_settings import DeepSpeedSettings
from simvtp_ds.engine.run import source_commit

WEBVID = 2_500_000  # clips of WebVid-2M
LARGEST = 512  # GPUs of the last row

PARTS = (
    ("weights", "weights"),
    ("master", "fp32 copy of the weights"),
    ("moments", "Adam's moments"),
    ("gradients", "gradients"),
    ("buckets", "buckets in which gradients travel"),
    ("activations", "activations"),
    ("batch", "micro batch and tables"),
)


def build_report(
    config: PretrainConfig,
    settings: DeepSpeedSettings,
    options: Any,
    hosts: dict[str, int],
    gpu: Gpu,
    files: Files,
) -> dict[str, Any]:
    """Counts the step, predicts the run on the hosts and on 1 to 512 GPUs: values, and "text" for people.

    Args:
        config, settings: The run.
        options: Of the command line.
        hosts: Machines and their GPUs, the same number each.
        gpu: What they are.
        files: The videos.
    """
    if options.network_gbps:
        gpu = replace(gpu, network=options.network_gbps * 1e9 / 8)
    micro, dtype = settings.micro_batch, settings.dtype
    typical = count_step(config, micro, options.words, dtype)
    most = config.data.max_words
    longest = typical if options.words == most else count_step(config, micro, most, dtype)
    forward, flops = step_flops(config, micro, options.words)
    machine = Machine(gpu, files, options.cores or gpu.cores, gpu.memory_gib)
    per_node = next(iter(hosts.values()))

    def on(cluster: Cluster) -> Prediction:
        return predict(typical, longest, config, settings, cluster, machine)

    main = on(Cluster(len(hosts), per_node))
    table = [on(cluster) for cluster in _clusters(main.cluster)]
    clips = options.clips or (len(Manifest.open(config.data.manifest)) if config.data.manifest else WEBVID)
    views = _views(config, clips, main.global_batch)
    values = {
        "bench": "plan",
        "commit": source_commit(),
        "deepspeed_config": settings.path,
        "hostfile": options.hostfile,
        "gpu": options.gpu,
        "files": options.files,
        "preset": options.preset,
        "words": options.words,
        "micro_batch": micro,
        "parameters": typical.parameters,
        "model_gflop_per_clip": {"forward": forward / micro / 1e9, "step": flops / micro / 1e9},
        "executed_gflop_per_clip": typical.work.total_flops / micro / 1e9,
        "operations": len(typical.work.flops),
        "main": main.plain(),
        "days": main.days(views),
        "scaling": [{**one.plain(), "days": one.days(_views(config, clips, one.global_batch))} for one in table],
        "validated": {"memory": "tensors, on a CPU", "operations": "on a CPU", "all else": "not validated"},
    }
    parts = [
        _heading(config, settings, options, main, gpu, typical, flops / micro),
        _memory_table(main.memory, main.fits, machine, config),
        _time_table(main, settings, options),
        _scaling_table(table, [one["days"] for one in values["scaling"]]),
        _verdict(main, values["days"], views, clips),
        _sources(gpu),
    ]
    return {"text": "\n\n".join(parts), **values}


def _views(config: PretrainConfig, clips: int, global_batch: int) -> float:
    """Views that the recipe learns from."""
    schedule = config.schedule
    return schedule.max_steps * global_batch if schedule.max_steps else schedule.epochs * clips * config.data.views


def _clusters(given: Cluster) -> list[Cluster]:
    """1 GPU, one machine, and doubled machines up to 512 GPUs, with the given one among them."""
    found = {Cluster(1, 1), Cluster(1, given.per_node), given}
    nodes = 2
    while nodes * given.per_node <= LARGEST:
        found.add(Cluster(nodes, given.per_node))
        nodes *= 2
    return sorted(found, key=lambda cluster: cluster.ranks)


def _heading(
    config: PretrainConfig,
    settings: DeepSpeedSettings,
    options: Any,
    main: Prediction,
    gpu: Gpu,
    step: Step,
    flops: float,
) -> str:
    cluster, data = main.cluster, config.data
    return (
        f"{step.parameters / 1e6:.1f} M parameters, {data.num_frames} x {data.image_size} x {data.image_size}, "
        f"{options.words} words, {settings.dtype}, ZeRO-{settings.zero_stage} ({settings.path})\n"
        f"{cluster.nodes} machines x {cluster.per_node} {gpu.name}, {settings.micro_batch} clips x "
        f"{settings.accumulation} a GPU = {main.global_batch} a step\n"
        f"a clip takes {flops / 1e9:.1f} GFLOP, forward and backward; with what kernels recompute "
        f"{step.work.total_flops / settings.micro_batch / 1e9:.1f}; a micro batch is {len(step.work.flops)} operations"
    )


def _memory_table(memory: Memory, fits: bool, machine: Machine, config: PretrainConfig) -> str:
    lines = [f"| memory of a GPU, captions of {config.data.max_words} words | GiB |", "|---|---|"]
    lines += [f"| {said} | {getattr(memory, name) / GIB:.2f} |" for name, said in PARTS]
    lines += [
        f"| together, at the widest place of the backward pass | {memory.backward / GIB:.2f} |",
        f"| in the update, without activations | {(memory.peak_of_update) / GIB:.2f} |",
        f"| CUDA, NCCL, fragments (assumed) | {RESERVED_GIB:.2f} |",
        f"| **the GPU has {machine.memory_gib:.1f}: {'it fits' if fits else 'it does not fit'}** | "
        f"**{memory.peak / GIB + RESERVED_GIB:.2f}** |",
    ]
    if memory.host:
        lines.append(f"| in the memory of its host (offload) | {memory.host / GIB:.2f} |")
    return "\n".join(lines)


def _time_table(main: Prediction, settings: DeepSpeedSettings, options: Any) -> str:
    lines = ["| one step | GB | ms |", "|---|---|---|"]
    lines.append(f"| products and memory traffic | | {1e3 * main.device:.1f} |")
    lines.append(f"| the host starts the operations meanwhile | | {1e3 * main.launching:.1f} |")
    lines.append(f"| update | | {1e3 * main.update:.1f} |")
    for what, seconds in main.messages:
        behind = ", behind the backward pass" if what.hidden else ""
        lines.append(f"| {what.name}{behind} | {what.passes * what.bytes / 1e9:.3f} | {1e3 * seconds:.1f} |")
    lines.append(f"| messages that nothing hides | | {1e3 * main.waiting:.1f} |")
    lines.append(f"| **the step** | | **{1e3 * main.step:.1f}** |")
    given = main.supply
    lines += [
        "",
        f"| clips/s and GPU, files {options.files} | |",
        "|---|---|",
        f"| the step asks for | {main.asked:.0f} |",
        f"| NVDEC gives | {given.nvdec:.0f} |",
        f"| {given.cores:g} worker processes give | {given.workers:.0f} |",
    ]
    return "\n".join(lines)


def _scaling_table(table: list[Prediction], days: list[float]) -> str:
    lines = [
        "| GPUs | clips a step | clips/s, always fed | of linear | clips/s | limit | days |",
        "|---|---|---|---|---|---|---|",
    ]
    first = table[0].asked
    for one, took in zip(table, days, strict=True):
        ranks = one.cluster.ranks
        lines.append(
            f"| {ranks} | {one.global_batch} | {one.asked * ranks:.0f} | {one.asked / first:.0%} | "
            f"{one.clips_per_s:.0f} | {one.bottleneck} | {took:.2f} |"
        )
    return "\n".join(lines)


def _verdict(main: Prediction, days: float, views: float, clips: int) -> str:
    return (
        f"predicted: {main.clips_per_s:.0f} clips/s, {days:.2f} days for {views / 1e6:.1f} M views of "
        f"{clips / 1e6:.2f} M captions. The limit is {main.bottleneck}."
    )


def _sources(gpu: Gpu) -> str:
    return "\n".join(
        (
            "validated on CPUs, within 10 %: memory of tensors, operations (python -m simvtp_ds.bench.plan.check).",
            "not validated, no GPU has run it: everything else. It rests on",
            f"- {gpu.sources}",
            f"- assumptions: {BANDWIDTH_REACHED:.0%} of the memory's and {LINK_REACHED:.0%} of the links' bandwidth is "
            f"reached; PyTorch starts an operation in {1e6 * LAUNCH_SECONDS:.0f} us (fewer with torch.compile); "
            f"{RESERVED_GIB:g} GiB for CUDA and NCCL; messages behind the backward pass cost it nothing",
            "- NVDEC: NVIDIA's rates for 1080p H.264 (Video Codec SDK, NVDEC application note), scaled by pixels, "
            "with all engines busy; a clip is decoded from the key frame before it",
            "- worker processes: clips per CPU second of docs/data.md, measured on 2 virtual cores; yours differ",
            "- more GPUs than the hostfile has: the same micro batch, so the global batch grows with them, and the "
            "peak learning rate is yours to scale",
        )
    )
