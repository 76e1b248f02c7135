"""Fine-tuning against slow loops, and the contrast of a step in parts against the same in one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny import TINY
from tiny_towers import part, retrieval_batch, tiny_towers
from torch import Tensor

from simvtp_ds.config import ContrastiveConfig
from simvtp_ds.finetune_config import RetrievalObjectiveConfig
from simvtp_ds.model.retrieval import TwoTower
from simvtp_ds.objectives.finetune import FinetuneTask
from simvtp_ds.objectives.matching import counted_match_loss, hardest_videos
from simvtp_ds.types import RetrievalBatch

BOTH = RetrievalObjectiveConfig(vtc=0.5, vtm=2.0)
NOISY = replace(TINY, text_dropout=0.3)


def gradients(model: TwoTower) -> dict[str, Tensor]:
    """The gradient of each parameter; one without fails, as ZeRO would."""
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert not [name for name, gradient in found.items() if gradient is None]
    return {name: gradient for name, gradient in found.items() if gradient is not None}


def assert_same_gradients(model: TwoTower, other: TwoTower) -> None:
    """To 1e-5 of the largest of each parameter, and none is zero."""
    for name, expected in gradients(other).items():
        assert expected.any(), name
        scale = expected.abs().max()
        assert (gradients(model)[name] - expected).abs().max() <= 1e-5 * scale, name


def slow_losses(model: TwoTower, batch: RetrievalBatch) -> tuple[Tensor, Tensor]:
    """(vtc, vtm), pair by pair; padding is cut off."""
    ids, clips = batch.video_ids.tolist(), range(len(batch.frames))
    frames = [batch.frames[b : b + 1] for b in clips]
    words = [batch.words[b : b + 1, : int(batch.word_mask[b].sum())] for b in clips]
    captions = [(w, torch.ones_like(w, dtype=torch.bool)) for w in words]
    videos = [F.normalize(model.encode_video(f)[0], dim=0) for f in frames]
    texts = [F.normalize(model.encode_text(*caption)[0], dim=0) for caption in captions]
    vtc, surprises = torch.zeros(()), []
    for i in clips:
        columns = [j for j in clips if j == i or ids[j] != ids[i]]
        for row, others in ((videos[i], texts), (texts[i], videos)):
            scores = torch.stack([row @ others[j] / 0.05 for j in columns])
            vtc = vtc - scores.log_softmax(0)[columns.index(i)] / len(ids)
        surprises.append(-model.match_pairs(frames[i], *captions[i]).log_softmax(dim=1)[0, 1])
        strangers = [j for j in clips if ids[j] != ids[i]]
        if strangers:
            hardest = max(strangers, key=lambda j: (texts[i] @ videos[j]).item())
            surprises.append(-model.match_pairs(frames[hardest], *captions[i]).log_softmax(dim=1)[0, 0])
    return vtc, torch.stack(surprises).mean()


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("ids", [[0, 1, 2, 3], [4, 1, 4, 7], [5, 5, 5, 5]])
def test_losses_and_gradients_are_those_of_a_slow_loop(ids: list[int], shared: bool) -> None:
    batch = retrieval_batch(4, ids)
    ours, plain = (tiny_towers(shared=shared, match=True) for _ in range(2))
    losses = FinetuneTask(ours, BOTH)(batch)
    vtc, vtm = slow_losses(plain, batch)
    expected = 0.5 * vtc + 2.0 * vtm
    torch.testing.assert_close(tuple(losses), (expected, vtc, vtm), rtol=1e-5, atol=1e-6)
    assert not losses.vtc.requires_grad
    assert not losses.vtm.requires_grad
    losses.total.backward()
    expected.backward()
    for (name, one), other in zip(gradients(ours).items(), plain.parameters(), strict=True):
        # Where no video is another's negative, the contrast reaches fc_norm with a gradient of 0.
        theirs = torch.zeros_like(one) if other.grad is None else other.grad
        assert (one - theirs).abs().max() <= 1e-4 * theirs.abs().max() + 1e-7, name


def test_the_hardest_video_is_the_most_similar_of_another_number() -> None:
    generator = torch.Generator().manual_seed(0)
    video, text = torch.randn(2, 9, 4, generator=generator)
    ids = torch.tensor([0, 1, 2, 0, 3, 1, 4, 5, 0])
    index, counted = hardest_videos(video, text, ids)
    assert counted.all()
    for i in range(9):
        similar = [F.cosine_similarity(text[i], video[j], dim=0).item() for j in range(9)]
        assert index[i] == max((j for j in range(9) if ids[j] != ids[i]), key=similar.__getitem__)
    assert not hardest_videos(video, text, torch.zeros(9, dtype=torch.long))[1].any()


def test_a_false_pair_that_is_not_counted_weighs_nothing() -> None:
    true, false = torch.tensor([[0.0, 1.0], [2.0, 0.0]]), torch.tensor([[0.5, 0.0], [9.0, -9.0]], requires_grad=True)
    counted_match_loss(true, false, torch.tensor([True, False])).backward()
    assert false.grad is not None
    assert false.grad[0].all()
    assert not false.grad[1].any()


def cached_step(task: FinetuneTask, micros: list[RetrievalBatch], seed: int = 0) -> list[Tensor]:
    """A step as the engine makes it: the totals of its micro batches, gradients divided by their number."""
    features = []
    for micro, batch in enumerate(micros):
        torch.manual_seed(seed + micro)
        features.append(task.features(batch))
    assert not any(tensor.requires_grad for pair in features for tensor in pair)
    totals = []
    for micro, cached in enumerate(task.of_step(features, micros)):
        torch.manual_seed(seed + micro)
        losses = task(micros[micro], cached)
        (losses.total / len(micros)).backward()
        totals.append(losses.total.detach())
    return totals


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("scope", ["global", "local"])
def test_a_contrast_in_two_micro_batches_is_that_of_one_batch(scope: str, shared: bool) -> None:
    batch = retrieval_batch(8, ids=[0, 1, 2, 3, 4, 5, 2, 7])  # video 2 is in both micro batches
    contrastive = ContrastiveConfig(scope="global" if scope == "global" else "local")
    objectives = RetrievalObjectiveConfig(vtc=0.7, contrastive=contrastive)
    ours, whole = (tiny_towers(shared=shared) for _ in range(2))
    totals = cached_step(FinetuneTask(ours, objectives), [part(batch, slice(0, 4)), part(batch, slice(4, 8))])
    losses = FinetuneTask(whole, objectives)(batch)
    losses.total.backward()
    torch.testing.assert_close(totals, [losses.total.detach()] * 2, rtol=1e-6, atol=1e-6)
    assert_same_gradients(ours, whole)


def test_matching_goes_on_micro_batch_by_micro_batch_beside_a_cached_contrast() -> None:
    batch = retrieval_batch(8)
    micros = [part(batch, slice(0, 4)), part(batch, slice(4, 8))]
    ours, plain = (tiny_towers(match=True) for _ in range(2))
    totals = cached_step(FinetuneTask(ours, BOTH), micros)
    task = FinetuneTask(plain, BOTH)
    contrast = task(batch).vtc
    task.contrast(task._encode(batch)[2], batch.video_ids).mul(0.5).backward()
    for micro, total in zip(micros, totals, strict=True):
        matching = slow_losses(plain, micro)[1]
        torch.testing.assert_close(total, 0.5 * contrast + 2.0 * matching.detach())
        matching.backward()  # 2.0 times the mean of two
    assert_same_gradients(ours, plain)


def test_both_passes_of_a_micro_batch_drop_the_same() -> None:
    batch = retrieval_batch(4)
    ours, plain = (tiny_towers(NOISY, match=True, drop_path=0.5) for _ in range(2))
    (total,) = cached_step(FinetuneTask(ours, BOTH), [batch], seed=7)
    torch.manual_seed(7)
    losses = FinetuneTask(plain, BOTH)(batch)
    losses.total.backward()
    torch.testing.assert_close(total, losses.total.detach())
    for name, expected in gradients(plain).items():
        torch.testing.assert_close(gradients(ours)[name], expected, rtol=1e-4, atol=1e-6, msg=name)
    torch.manual_seed(8)
    assert FinetuneTask(plain, BOTH)(batch).total != losses.total


def test_the_task_leaves_its_batch_and_features_as_they_were() -> None:
    batch, task = retrieval_batch(4), FinetuneTask(tiny_towers(match=True), BOTH)
    features = task.features(batch)
    before = [tensor.clone() for tensor in (*batch, *features)]
    (cached,) = task.of_step([features], [batch])
    task(batch, cached).total.backward()
    assert all(torch.equal(a, b) for a, b in zip(before, (*batch, *features), strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_near_fp32_and_its_losses_are_fp32(dtype: torch.dtype) -> None:
    batch = retrieval_batch(4)
    full = FinetuneTask(tiny_towers(match=True), BOTH)(batch)
    half = FinetuneTask(tiny_towers(match=True).to(dtype), BOTH)(batch)
    assert {loss.dtype for loss in half} == {torch.float32}
    for one, other in zip(half, full, strict=True):
        assert one.item() == pytest.approx(other.item(), rel=0.05)


def test_matching_needs_its_head_and_another_video() -> None:
    with pytest.raises(ValueError, match=r"objectives\.vtm is 2\.0 and the towers have no matching head"):
        FinetuneTask(tiny_towers(), BOTH)
    with pytest.raises(ValueError, match=r"objectives\.vtm is 0\.0 and the towers have a matching head"):
        FinetuneTask(tiny_towers(match=True), RetrievalObjectiveConfig())
    with pytest.raises(ValueError, match="train_micro_batch_size_per_gpu to 2 or more"):
        FinetuneTask(tiny_towers(match=True), BOTH)(retrieval_batch(1))
