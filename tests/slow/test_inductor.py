"""Blocks compiled by inductor on the CPU (a C++ compiler is needed): pytest tests/slow/test_inductor.py -s."""

from __future__ import annotations

import pytest
import torch

from simvtp_ds.config import ObjectiveConfig
from simvtp_ds.model.blocks import compile_blocks, recompute_blocks
from simvtp_ds.objectives.pretrain import PretrainTask
from tests.unit.tiny import tiny_batch, tiny_model

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("recompute", [False, True])
def test_compiled_blocks_have_the_losses_and_gradients_of_eager_ones(recompute: bool) -> None:
    compiled, plain = (PretrainTask(tiny_model(), ObjectiveConfig()) for _ in range(2))
    compile_blocks(compiled)
    if recompute:
        recompute_blocks(compiled)
    batch = tiny_batch(4)
    losses, expected = compiled(batch), plain(batch)
    torch.testing.assert_close(tuple(losses), tuple(expected), rtol=1e-5, atol=1e-6)
    losses.total.backward()
    expected.total.backward()
    for (name, one), other in zip(compiled.named_parameters(), plain.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None
        assert (one.grad - other.grad).norm() <= 1e-4 * other.grad.norm(), name
