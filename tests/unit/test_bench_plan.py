"""The plan: its counts against steps that really run, its arithmetic by hand, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from simvtp_ds.bench.cases import BenchError
from simvtp_ds.bench.flops import count_flops
from simvtp_ds.bench.inputs import build_task, noise_batch
from simvtp_ds.bench.memory import peak_memory
from simvtp_ds.bench.options import read_hostfile
from simvtp_ds.bench.plan.__main__ import plan
from simvtp_ds.bench.plan.clips import supply
from simvtp_ds.bench.plan.hardware import FILES, GPUS
from simvtp_ds.bench.plan.memory import memory
from simvtp_ds.bench.plan.network import Cluster, collectives
from simvtp_ds.bench.plan.step import DTYPES, Step, count_step
from simvtp_ds.config import ComputeConfig, ModelConfig, PretrainConfig
from simvtp_ds.data_config import DataConfig
from simvtp_ds.ds_settings import Dtype, load_settings
from simvtp_ds.engine.compute import apply

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
SMALL = ModelConfig(width=64, depth=4, heads=4, decoder_width=32, decoder_depth=2, decoder_heads=2, patch_size=8)
CLIPS, WORDS = 4, 12


def small(recompute: bool = False) -> PretrainConfig:
    """A model whose activations weigh as much as its weights."""
    return PretrainConfig(
        data=DataConfig(num_frames=4, image_size=64), model=SMALL, compute=ComputeConfig(recompute=recompute)
    )


@pytest.fixture(scope="module")
def step() -> Step:
    return count_step(small(), CLIPS, WORDS, "fp32")


@pytest.mark.parametrize(("dtype", "recompute"), [("fp32", False), ("fp32", True), ("bf16", False)])
def test_counted_memory_and_operations_are_those_of_a_step_that_runs(dtype: Dtype, recompute: bool) -> None:
    config = small(recompute)
    counted = count_step(config, CLIPS, WORDS, dtype)
    task, batch = build_task(config).to(DTYPES[dtype]), noise_batch(config, CLIPS, WORDS)
    apply(config.compute, task)
    held = [*task.parameters(), *task.buffers(), *batch]
    measured = peak_memory(lambda: task(batch).total.backward(), CPU, held)
    width = 4 if dtype == "fp32" else 2
    predicted = counted.parameters * width + counted.buffers + counted.batch + sum(counted.widest(1.0))
    assert counted.parameters == sum(parameter.numel() for parameter in task.parameters())
    assert predicted == pytest.approx(measured, rel=0.1)
    # Not the weights alone: what the step keeps is held to it, too.
    rest = counted.parameters * width
    assert predicted - rest == pytest.approx(measured - rest, rel=0.1)
    with sdpa_kernel(SDPBackend.MATH):
        operations = count_flops(lambda: task(batch).total.backward())
    assert counted.work.total_flops == pytest.approx(operations, rel=0.1)


def test_recomputed_blocks_keep_less_and_compute_more(step: Step) -> None:
    again = count_step(small(recompute=True), CLIPS, WORDS, "fp32")
    assert again.saved < 0.5 * step.saved
    assert 1.1 * step.work.total_flops < again.work.total_flops < 1.4 * step.work.total_flops


def test_kernels_of_gpus_are_planned_as_what_they_stand_in_for(step: Step) -> None:
    kernels = count_step(replace(small(), compute=ComputeConfig(varlen=True, liger=True)), CLIPS, WORDS, "fp32")
    assert kernels.work.total_flops == step.work.total_flops > 0


def settings(tmp_path: Path, ranks: int = 1, **changes):
    """ds_configs/zero2_bf16.json with changes."""
    raw = json.loads((ROOT / "ds_configs/zero2_bf16.json").read_text())
    raw["zero_optimization"] |= changes.pop("zero", {})
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**raw, **changes}))
    return load_settings(path, ranks)


def test_states_are_shared_by_the_ranks_as_the_zero_stage_says(step: Step, tmp_path: Path) -> None:
    count = step.parameters
    alone, eight = (memory(step, settings(tmp_path), ranks) for ranks in (1, 8))
    assert alone.weights == eight.weights == 2 * count  # bf16, on every rank
    assert (alone.master, alone.moments) == (4 * count, 8 * count)
    assert eight.master + eight.moments == pytest.approx(12 * count / 8, rel=1e-6)
    sharded = memory(step, settings(tmp_path, zero={"stage": 3, "stage3_max_live_parameters": 0}), 8)
    assert sharded.weights == pytest.approx(2 * count / 8, rel=1e-6)
    offloaded = memory(step, settings(tmp_path, zero={"offload_optimizer": {"device": "cpu"}}), 8)
    assert offloaded.master == offloaded.moments == 0
    assert offloaded.host >= 16 * count // 8
    assert offloaded.peak < eight.peak


def test_messages_of_a_step_are_those_counted_by_hand(tmp_path: Path) -> None:
    config, cluster = small(), Cluster(2, 8)
    gpu, count = GPUS["v100-32g"], 10**8
    reduced, gathered, *contrast = collectives(count, config, settings(tmp_path), cluster)
    assert reduced.hidden and (reduced.passes, reduced.bytes) == (2, 2e8)
    # Half of it comes from the other machine, through 0.8 of 50 GB/s; NVLink is faster.
    assert gathered.seconds(cluster, gpu) == pytest.approx(2e8 / 2 / 50e9 / 0.8)
    assert gathered.seconds(Cluster(1, 8), gpu) == pytest.approx(2e8 * 7 / 8 / 150e9 / 0.8)
    assert [message.bytes for message in contrast] == [2 * 16 * 16 * 64 * 4] * 2
    assert collectives(count, config, settings(tmp_path), Cluster(1, 1)) == []
    accumulated = settings(tmp_path, gradient_accumulation_steps=4)
    assert collectives(count, config, accumulated, cluster)[0].bytes == 4 * 2e8
    once = settings(tmp_path, gradient_accumulation_steps=4, zero={"stage": 1})
    assert collectives(count, config, once, cluster)[0].bytes == 2e8


def test_decoders_supply_what_the_published_rates_come_to() -> None:
    # 700 frames of 1080p a second are 7249 of 596 x 336; a clip of 61 frames is decoded from 125 frames before it.
    given = supply(DataConfig(backend="dali", workers=8), FILES["gop250"], GPUS["v100-32g"], cores=5)
    assert given.nvdec == pytest.approx(39, abs=0.5)
    assert given.workers == pytest.approx(5 * 9.6) and given.cores == 5
    views = supply(DataConfig(backend="cpu", workers=4, views=2), FILES["gop250"], GPUS["v100-32g"], cores=5)
    assert (views.nvdec, views.workers) == (0, pytest.approx(2 * 4 * 9.6))


def arguments(**changes: str) -> list[str]:
    given = {
        "hostfile": str(ROOT / "hostfiles/2node"),
        "deepspeed_config": str(ROOT / "ds_configs/zero2.json"),
        "gpu": "v100-32g",
        "preset": "quickstart",
        **changes,
    }
    return [word for name, value in given.items() if value for word in (f"--{name}", value)]


def test_a_plan_names_the_limit_and_what_was_not_validated() -> None:
    report = plan(arguments(gpu="v100-32g"))
    text = report.pop("text")
    assert json.loads(json.dumps(report)) == report
    assert report["main"]["gpus"] == 16 and report["main"]["global_batch"] == 256
    assert [row["gpus"] for row in report["scaling"]] == [1, 8, 16, 32, 64, 128, 256, 512]
    assert report["main"]["bottleneck"] in text
    for words in ("not validated", "arXiv 1803.04014", "docs/data.md", "it fits"):
        assert words in text
    packed = plan(arguments(files="packed"))
    assert packed["main"]["clips_per_s"] > report["main"]["clips_per_s"]
    assert packed["days"] < report["days"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hostfile": str(ROOT / "hostfiles/8nodes")}, "did you mean .*8node"),
        ({"hostfile": ""}, "--hostfile is missing"),
        ({"gpu": "v100"}, "--gpu is v100; give one of v100-32g, a100, h100"),
        ({"deepspeed_config": str(ROOT / "ds_configs/zero2_bf16.json")}, "asks for bf16, which V100 .* lacks"),
        ({"deepspeed_config": str(ROOT / "ds_configs/zero4.json")}, "no such DeepSpeed config"),
        ({"files": "mp4"}, "--files is mp4"),
        ({"words": "2"}, "--words is 2"),
        ({"data.views": "3"}, "with data.views 3"),
        ({"preset": "quickstarts"}, "the presets are"),
    ],
)
def test_what_cannot_be_planned_is_refused_with_a_remedy(changes: dict[str, str], words: str) -> None:
    with pytest.raises((BenchError, ValueError), match=words):
        plan(arguments(**changes))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("worker-1 slot=8", "bad entry: worker-1 slot=8"),
        ("a slots=8\na slots=8", "multiple entries for a"),
        ("", "empty"),
        ("a slots=0", "0 slots"),
    ],
)
def test_a_misspelt_hostfile_is_refused_with_a_line_that_is_right(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "hosts").write_text(text)
    with pytest.raises(BenchError, match=words):
        read_hostfile(tmp_path / "hosts")
