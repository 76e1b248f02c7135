"""The contrast against a slow loop, and two gloo ranks against one process on the joined batch: value and gradient."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tiny import tiny_batch, tiny_model
from tiny_towers import part, retrieval_batch, tiny_towers
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from simvtp_ds.config import ObjectiveConfig
from simvtp_ds.finetune_config import RetrievalObjectiveConfig
from simvtp_ds.objectives.contrastive import global_contrast, local_contrast
from simvtp_ds.objectives.finetune import FinetuneTask
from simvtp_ds.objectives.pretrain import PretrainTask
from simvtp_ds.types import Batch, RetrievalBatch

Contrast = Callable[..., Tensor]
WORLD = 2
REPEATED = [4, 1, 2, 4, 4, 0]  # video 4 on both ranks, and twice on the second


def features() -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and a weight: features of 6 clips are `inputs @ weight`, so a parameter is shared as in training."""
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, 6, 5, generator=generator), torch.randn(5, 5, generator=generator)


def slow_contrast(video: Tensor, text: Tensor, ids: list[int]) -> Tensor:
    """Row by row: each against its own column and those of other videos."""
    loss = torch.zeros(())
    for one, other in ((video, text), (text, video)):
        for i in range(len(ids)):
            columns = [j for j in range(len(ids)) if j == i or ids[j] != ids[i]]
            scores = torch.stack([torch.nn.functional.cosine_similarity(one[i], other[j], dim=0) for j in columns])
            loss = loss - (scores / 0.05).log_softmax(dim=0)[columns.index(i)] / len(ids)
    return loss


def retrieval_part(batch: RetrievalBatch, micro: int, rank: int) -> RetrievalBatch:
    """Two of 8 clips, which a step takes micro batch by micro batch, and in each rank by rank."""
    first = 4 * micro + 2 * rank
    return part(batch, slice(first, first + 2))


def whole_step() -> RetrievalBatch:
    """8 clips of 7 videos; the video that is there twice is on both ranks and in both micro batches."""
    return retrieval_batch(8, ids=[0, 1, 2, 3, 4, 5, 1, 7])


def rank_batch(batch: Batch, rank: int) -> Batch:
    """Clips 2 rank and 2 rank + 1 of a batch of 4 whose negatives stay within each pair."""
    length = batch.words.shape[1]
    clips = slice(2 * rank, 2 * rank + 2)
    mine = (batch.hidden_words // length // 2) == rank
    return batch._replace(
        **{
            name: getattr(batch, name)[clips]
            for name in ("frames", "visible", "hidden", "words", "word_mask", "video_ids")
        },
        hidden_words=batch.hidden_words[mine] - 2 * rank * length,
        hidden_word_ids=batch.hidden_word_ids[mine],
        negative=torch.tensor([1, 0]),
    )


def joined_batch(words_on: str) -> Batch:
    """A batch of 4, one video on both ranks, whose hidden words lie on both (unevenly) or on the first alone."""
    batch = tiny_batch(4)._replace(negative=torch.tensor([1, 0, 3, 2]), video_ids=torch.tensor([0, 1, 2, 0]))
    if words_on == "both":
        return batch
    first = batch.hidden_words < 2 * batch.words.shape[1]
    return batch._replace(hidden_words=batch.hidden_words[first], hidden_word_ids=batch.hidden_word_ids[first])


def work(rank: int, folder: str) -> None:
    """One rank: the contrast alone and the whole task, losses and gradients saved for the test to look at."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD)
    results = {}
    for name, contrast in (("global", global_contrast), ("local", local_contrast)):
        inputs, weight = features()
        weight.requires_grad_()
        video, text = inputs[:, 3 * rank : 3 * rank + 3] @ weight
        loss = contrast(video, text, 0.05)
        loss.backward()
        results[name] = (loss.detach(), [weight.grad])
        inputs, weight = features()
        weight.requires_grad_()
        video, text = inputs[:, 3 * rank : 3 * rank + 3] @ weight
        loss = contrast(video, text, 0.05, torch.tensor(REPEATED[3 * rank : 3 * rank + 3]))
        loss.backward()
        results[f"{name} repeated"] = (loss.detach(), [weight.grad])
    towers = tiny_towers()
    task = FinetuneTask(towers, RetrievalObjectiveConfig())
    micros = [retrieval_part(whole_step(), micro, rank) for micro in range(2)]
    cached = task.of_step([task.features(m) for m in micros], micros)
    totals = [task(micro, gradients).total for micro, gradients in zip(micros, cached, strict=True)]
    torch.stack(totals).mean().backward()
    results["cached"] = (torch.stack(totals).detach(), [p.grad for p in towers.parameters()])
    for words_on in ("both", "first"):
        model = tiny_model()
        losses = PretrainTask(model, ObjectiveConfig())(rank_batch(joined_batch(words_on), rank))
        losses.total.backward()
        results[words_on] = (torch.stack([loss.detach() for loss in losses]), [p.grad for p in model.parameters()])
    torch.save(results, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What each of two ranks found."""
    folder: Path = tmp_path_factory.mktemp("ranks")
    spawn(work, args=(str(folder),), nprocs=WORLD)
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(WORLD)]


def mean_over_ranks(ranks: list[dict], name: str) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Loss and gradients averaged as data parallelism averages them."""
    values, gradients = zip(*(rank[name] for rank in ranks), strict=True)
    return torch.stack(values).mean(dim=0), [torch.stack(g).mean(dim=0) for g in zip(*gradients, strict=True)]


def test_global_contrast_of_two_ranks_is_that_of_one_process_with_all_clips(ranks: list[dict]) -> None:
    value, (gradient,) = mean_over_ranks(ranks, "global")
    inputs, weight = features()
    weight.requires_grad_()
    video, text = inputs @ weight
    expected = local_contrast(video, text, 0.05)
    expected.backward()
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(gradient, weight.grad)


def test_local_contrast_sees_the_clips_of_its_own_rank_only(ranks: list[dict]) -> None:
    value, (gradient,) = mean_over_ranks(ranks, "local")
    inputs, weight = features()
    weight.requires_grad_()
    video, text = inputs @ weight
    expected = (local_contrast(video[:3], text[:3], 0.05) + local_contrast(video[3:], text[3:], 0.05)) / 2
    expected.backward()
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(gradient, weight.grad)
    assert (value - mean_over_ranks(ranks, "global")[0]).abs() > 0.1


def test_clips_of_one_video_on_two_ranks_are_no_negatives(ranks: list[dict]) -> None:
    for name, shares in (("global", [slice(0, 6)]), ("local", [slice(0, 3), slice(3, 6)])):
        value, (gradient,) = mean_over_ranks(ranks, f"{name} repeated")
        inputs, weight = features()
        weight.requires_grad_()
        video, text = inputs @ weight
        parts = [slow_contrast(video[share], text[share], REPEATED[share]) for share in shares]
        expected = torch.stack(parts).mean()
        expected.backward()
        torch.testing.assert_close(value, expected.detach())
        torch.testing.assert_close(gradient, weight.grad)
        assert (value - mean_over_ranks(ranks, name)[0]).abs() > 0.01


@pytest.mark.parametrize("contrast", [local_contrast, global_contrast])
@pytest.mark.parametrize("ids", [REPEATED, [3, 3, 3, 3, 3, 3], [9, 1, 2, 3, 4, 5]])
def test_clips_of_one_video_are_no_negatives_of_each_other(contrast: Contrast, ids: list[int]) -> None:
    found, expected = features()[0].requires_grad_(), features()[0].requires_grad_()
    loss = contrast(found[0], found[1], 0.05, torch.tensor(ids))
    slow = slow_contrast(expected[0], expected[1], ids)
    loss.backward()
    slow.backward()
    torch.testing.assert_close(loss, slow, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.grad, expected.grad, rtol=1e-4, atol=1e-6)


def test_numbers_that_all_differ_change_no_bit() -> None:
    plain, numbered = features()[0].requires_grad_(), features()[0].requires_grad_()
    one = local_contrast(plain[0], plain[1], 0.05)
    other = local_contrast(numbered[0], numbered[1], 0.05, torch.tensor([5, 3, 8, 1, 0, 2]))
    one.backward()
    other.backward()
    assert torch.equal(one, other)
    assert plain.grad is not None
    assert numbered.grad is not None
    assert torch.equal(plain.grad, numbered.grad)


def test_two_micro_batches_on_two_ranks_are_one_batch_of_one_process(ranks: list[dict]) -> None:
    towers = tiny_towers()
    losses = FinetuneTask(towers, RetrievalObjectiveConfig())(whole_step())
    losses.total.backward()
    totals, gradients = mean_over_ranks(ranks, "cached")
    torch.testing.assert_close(totals, losses.total.detach().expand(2))
    for (name, parameter), gradient in zip(towers.named_parameters(), gradients, strict=True):
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
        assert (gradient - parameter.grad).abs().max() <= 1e-5 * parameter.grad.abs().max(), name


@pytest.mark.parametrize("words_on", ["both", "first"])
def test_the_whole_task_on_two_ranks_is_that_of_one_process(ranks: list[dict], words_on: str) -> None:
    model, batch = tiny_model(), joined_batch(words_on)
    shares = [len(rank_batch(batch, rank).hidden_words) for rank in range(WORLD)]
    assert shares[0] != shares[1]
    assert (shares[1] == 0) is (words_on == "first")
    losses = PretrainTask(model, ObjectiveConfig())(batch)
    losses.total.backward()
    values, gradients = mean_over_ranks(ranks, words_on)
    torch.testing.assert_close(values, torch.stack([loss.detach() for loss in losses]), rtol=1e-5, atol=1e-6)
    for (name, parameter), gradient in zip(model.named_parameters(), gradients, strict=True):
        assert parameter.grad is not None, name
        scale = parameter.grad.abs().max()
        assert (gradient - parameter.grad).abs().max() <= 1e-4 * scale, name
