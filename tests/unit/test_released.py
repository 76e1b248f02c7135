"""Our step against the released code's, as the bench writes it: the same losses and gradients."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_batch, tiny_model

from simvtp_ds.bench.released import ReleasedTask, one_by_one
from simvtp_ds.config import ObjectiveConfig
from simvtp_ds.objectives.pretrain import PretrainTask
from simvtp_ds.types import Batch


@pytest.mark.parametrize("batch", [tiny_batch(4, padded=False), tiny_batch(4, padded=True)], ids=["whole", "padded"])
def test_the_released_step_has_our_losses_and_gradients_to_a_hundred_thousandth(batch: Batch) -> None:
    # In double precision there is no rounding to tell from a mistake; in fp32 both are within 1e-5.
    for dtype, tolerance in ((torch.float64, 1e-6), (torch.float32, 1e-5)):
        ours = PretrainTask(tiny_model().to(dtype), ObjectiveConfig())
        passes = PretrainTask(one_by_one(tiny_model().to(dtype)), ObjectiveConfig())
        theirs = ReleasedTask(tiny_model().to(dtype), ObjectiveConfig())
        losses, one, expected = ours(batch), passes(batch), theirs(batch)
        torch.testing.assert_close(tuple(losses), tuple(expected), rtol=1e-5, atol=0)
        torch.testing.assert_close(tuple(one), tuple(expected), rtol=1e-5, atol=0)
        for total in (losses.total, one.total, expected.total):
            total.backward()
        for (name, a), b, c in zip(ours.named_parameters(), theirs.parameters(), passes.parameters(), strict=True):
            assert a.grad is not None and b.grad is not None and c.grad is not None
            assert b.grad.norm() > 0, name
            assert (a.grad - b.grad).norm() <= tolerance * b.grad.norm(), (name, dtype)
            assert (c.grad - b.grad).norm() <= tolerance * b.grad.norm(), (name, dtype)
