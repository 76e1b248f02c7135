"""Compiled blocks: how often they are compiled, and that nothing else changes. The backend is torch's eager one."""

from __future__ import annotations

import torch
from tiny import tiny_batch, tiny_model
from torch.fx import GraphModule

from simvtp_ds.config import ComputeConfig, ObjectiveConfig
from simvtp_ds.engine.compute import apply
from simvtp_ds.model.blocks import Blocks, compile_blocks
from simvtp_ds.objectives.pretrain import PretrainTask


def test_a_stack_of_blocks_is_compiled_once_and_lengths_of_captions_once_more() -> None:
    torch.compiler.reset()
    compiled: list[GraphModule] = []

    def backend(graph: GraphModule, inputs: object) -> object:
        compiled.append(graph)
        return graph.forward

    ours, plain = (PretrainTask(tiny_model(), ObjectiveConfig()) for _ in range(2))
    compile_blocks(ours, backend=backend)
    assert list(ours.state_dict()) == list(plain.state_dict())
    counts = []
    for words in (8, 8, 7, 6, 5):
        batch = tiny_batch(4, padded=False)
        hidden = batch.hidden_words[batch.hidden_words % 8 < words]
        batch = batch._replace(
            words=batch.words[:, :words],
            word_mask=batch.word_mask[:, :words],
            hidden_words=hidden // 8 * words + hidden % 8,
            hidden_word_ids=batch.hidden_word_ids[batch.hidden_words % 8 < words],
        )
        losses, expected = ours(batch), plain(batch)
        torch.testing.assert_close(losses.total, expected.total)
        counts.append(len(compiled))
    # The encoder's blocks share one graph and the decoder's another; a second length makes the encoder's general.
    assert counts == [2, 2, 3, 3, 3]
    losses.total.backward()
    expected.total.backward()
    for (name, one), other in zip(ours.named_parameters(), plain.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None
        assert (one.grad - other.grad).norm() <= 1e-5 * other.grad.norm(), name


def test_the_configuration_decides_how_a_step_is_computed() -> None:
    for compute in (
        ComputeConfig(),
        ComputeConfig(compile=True),
        ComputeConfig(recompute=True),
        ComputeConfig(varlen=True),
        ComputeConfig(liger=True),
    ):
        task = PretrainTask(tiny_model(), ObjectiveConfig())
        apply(compute, task)
        stacks = [module for module in task.modules() if isinstance(module, Blocks)]
        layers = [layer for stack in stacks for layer in stack.layers]
        assert len(stacks) == 2 and len(layers) == 3
        assert [stack.recompute for stack in stacks] == [compute.recompute] * 2
        assert [layer._compiled_call_impl is not None for layer in layers] == [compute.compile] * 3
        assert (task.model.varlen, task.fused_words) == (compute.varlen, compute.liger)


def test_tf32_is_switched_on_where_it_is_asked_for_and_only_there() -> None:
    before = torch.get_float32_matmul_precision()
    try:
        apply(ComputeConfig(), torch.nn.Identity())
        assert torch.get_float32_matmul_precision() == before == "highest"
        apply(ComputeConfig(tf32=True), torch.nn.Identity())
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
