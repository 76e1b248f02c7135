"""What only a GPU can show: the step there gives the CPU's losses and gradients, NVDEC the CPU's pixels.

Run with: pytest -m gpu
"""

from __future__ import annotations

import copy
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
from test_decode import FRAMES, render
from tiny import tiny_batch, tiny_model

from simvtp_ds.config import ObjectiveConfig
from simvtp_ds.data.dali_decoder import DaliDecoder
from simvtp_ds.data.decode import decode_into
from simvtp_ds.data.masks import tube_masks
from simvtp_ds.data.sampling import Box, View
from simvtp_ds.data.storage import Source
from simvtp_ds.data.worker import Task, failure
from simvtp_ds.data_config import DataConfig
from simvtp_ds.engine.compute import takes_varlen
from simvtp_ds.model.simvtp import use_segments
from simvtp_ds.objectives.pretrain import PretrainTask
from simvtp_ds.objectives.words import word_loss
from simvtp_ds.types import to_device

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.float16, 2e-2), (torch.bfloat16, 1e-1)])
def test_a_step_on_the_gpu_equals_the_step_on_the_cpu(dtype: torch.dtype, tolerance: float) -> None:
    if dtype is torch.bfloat16 and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this GPU has no bf16")
    on_cpu, batch = PretrainTask(tiny_model(), ObjectiveConfig()), tiny_batch()
    on_gpu = copy.deepcopy(on_cpu).to("cuda", dtype)
    expected, found = on_cpu(batch), on_gpu(to_device(batch, "cuda"))
    for name, ours, theirs in zip(expected._fields, found, expected, strict=True):
        assert ours.item() == pytest.approx(theirs.item(), rel=tolerance), name
    expected.total.backward()
    found.total.backward()
    for (name, ours), theirs in zip(on_gpu.named_parameters(), on_cpu.parameters(), strict=True):
        assert ours.grad is not None and theirs.grad is not None
        difference = (ours.grad.float().cpu() - theirs.grad).norm() / (theirs.grad.norm() + 1e-6)
        assert difference < 5 * tolerance, name


def test_attention_over_segments_gives_the_losses_and_gradients_of_the_mask() -> None:
    if not takes_varlen("bf16"):
        pytest.skip("needs compute capability 8.0")
    masked, batch = PretrainTask(tiny_model(), ObjectiveConfig()).to("cuda", torch.bfloat16), tiny_batch(4, padded=True)
    segments = copy.deepcopy(masked)
    use_segments(segments)
    expected, found = masked(to_device(batch, "cuda")), segments(to_device(batch, "cuda"))
    for name, ours, theirs in zip(expected._fields, found, expected, strict=True):
        assert ours.item() == pytest.approx(theirs.item(), rel=2e-2), name
    expected.total.backward()
    found.total.backward()
    for (name, ours), theirs in zip(segments.named_parameters(), masked.parameters(), strict=True):
        assert ours.grad is not None and theirs.grad is not None
        assert (ours.grad - theirs.grad).norm() < 0.1 * (theirs.grad.norm() + 1e-5), name


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
def test_the_words_loss_by_liger_is_ours(dtype: torch.dtype, tolerance: float) -> None:
    pytest.importorskip("liger_kernel")
    head, outputs = torch.nn.Linear(64, 5000, device="cuda", dtype=dtype), torch.randn(200, 64, device="cuda")
    inputs = [outputs.to(dtype).requires_grad_(), head.weight, head.bias]
    ids = torch.randint(0, 5000, (200,), device="cuda")
    ours, fused = (word_loss(head, inputs[0], ids, 4, torch.tensor(1.0), layer) for layer in (None, head))
    assert fused.item() == pytest.approx(ours.item(), rel=tolerance)
    for one, other in zip(torch.autograd.grad(fused, inputs), torch.autograd.grad(ours, inputs), strict=True):
        assert (one - other).norm() < 5 * tolerance * other.norm()


@pytest.mark.filterwarnings("error")  # a clip that DALI leaves to the worker processes
@pytest.mark.parametrize(("side", "most"), [(224, 2), (180, 3)], ids=["cropped", "resized"])
def test_nvdec_gives_the_pixels_of_the_worker_processes(tmp_path: Path, side: int, most: int) -> None:
    """2 levels from another conversion to RGB, one more from another rounding of the resize; mean 0.5."""
    path = render(tmp_path / "clip.mp4", width=320, height=240)
    source = Source(str(path), 0, path.stat().st_size)
    rng = np.random.default_rng(0)
    tasks = []
    for position in range(8):
        top, left = (int(place) for place in rng.integers(0, (240 - side + 1, 320 - side + 1)))
        indices = np.minimum(int(rng.integers(FRAMES)) + 2 * np.arange(16), FRAMES - 1)
        view = View(indices, Box(top, left, side, side), position % 2 == 1)
        tasks.append(Task(0, position, source, view, "h264", (240, 320)))
    reader, _writer = multiprocessing.Pipe(duplex=False)
    with DaliDecoder(DataConfig(host_share=0.0), (1, 8, 16, 224, 224, 3), torch.device("cuda", 0)) as decoder:
        decoder.submit(tasks)
        left_over = len(tasks)
        while left_over:
            for outcome in decoder.poll(reader):
                assert failure(outcome) is None
                left_over -= 1
        found = decoder.take(0)
    assert found.is_cuda and found.dtype is torch.uint8
    expected = np.empty((8, 16, 224, 224, 3), dtype=np.uint8)
    for task, out in zip(tasks, expected, strict=True):
        decode_into(out, task.source, task.view)
    levels = np.abs(found.cpu().numpy().astype(np.int16) - expected)
    assert levels.max() <= most and levels.mean() <= 0.5


def test_tube_masks_are_the_same_on_the_gpu() -> None:
    masks = [
        tube_masks([np.random.default_rng(i) for i in range(4)], (8, 14, 14), 0.9, torch.device(name))
        for name in ("cpu", "cuda")
    ]
    for on_cpu, on_gpu in zip(*masks, strict=True):
        assert on_gpu.is_cuda and torch.equal(on_cpu, on_gpu.cpu())
