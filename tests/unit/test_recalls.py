"""Ranks, recalls and their intervals against sorting, loops and torchmetrics."""

from __future__ import annotations

import math

import pytest
import torch
from torchmetrics.functional.classification import multiclass_accuracy

from simvtp_ds.evaluation.bootstrap import RESAMPLES, Bootstrap
from simvtp_ds.evaluation.ranks import scores, text_to_video, video_to_text


def similarities(captions: int, videos: int, levels: int = 0, seed: int = 0) -> torch.Tensor:
    """Random [captions, videos]; of `levels` different values where that is not 0, so that ties occur."""
    generator = torch.Generator().manual_seed(seed)
    if levels:
        return torch.randint(levels, (captions, videos), generator=generator).float()
    return torch.randn(captions, videos, generator=generator)


def several_captions(captions: int, videos: int) -> torch.Tensor:
    """int64 [captions]: every video has one, the others go anywhere."""
    generator = torch.Generator().manual_seed(1)
    more = torch.randint(videos, (captions - videos,), generator=generator)
    return torch.cat([torch.arange(videos), more])[torch.randperm(captions, generator=generator)]


def place(own: float, others: list[float], own_is_last: bool) -> int:
    """Place of the own item after sorting; among equals it is put last or first."""
    order = sorted([(-own, own_is_last, "own"), *((-x, not own_is_last, "other") for x in others)])
    return [name for *_, name in order].index("own") + 1


@pytest.mark.parametrize("levels", [0, 4])
@pytest.mark.parametrize("lost", [[], [3, 11]])
def test_ranks_are_those_of_sorting_by_the_standard_rule(levels: int, lost: list[int]) -> None:
    matrix, owner = similarities(30, 12, levels), several_captions(30, 12)
    found = torch.tensor([video not in lost for video in range(12)])
    of_text = text_to_video(matrix, owner, found)
    of_video = video_to_text(matrix, owner, found)
    for last, texts, videos in ((True, of_text.against, of_video.against), (False, of_text.favour, of_video.favour)):
        for caption, video in enumerate(owner.tolist()):
            others = [float(matrix[caption, v]) for v in range(12) if v != video and v not in lost]
            expected = 12 if video in lost else place(float(matrix[caption, video]), others, last)
            assert texts[caption] == expected
        for video in range(12):
            own = [float(matrix[c, video]) for c in range(30) if owner[c] == video]
            others = [float(matrix[c, video]) for c in range(30) if owner[c] != video]
            # Each own caption alone against those of other videos; the best of these places counts.
            places = [place(score, others, last) for score in own]
            assert videos[video] == (len(others) + 1 if video in lost else min(places))


def test_a_model_that_likes_everything_equally_is_ranked_last() -> None:
    own = torch.arange(7)
    for ranks in (text_to_video(torch.zeros(7, 7), own), video_to_text(torch.zeros(7, 7), own)):
        assert ranks.against.tolist() == [7] * 7
        assert ranks.favour.tolist() == [1] * 7


def test_recalls_of_1000_by_1000_are_those_of_torchmetrics() -> None:
    own = torch.arange(1000)
    similarity = similarities(1000, 1000) + 2.5 * torch.eye(1000)
    for matrix, ranks in ((similarity, text_to_video(similarity, own)), (similarity.T, video_to_text(similarity, own))):
        found = scores(ranks.against)
        for k in (1, 5, 10):  # with one right item a query, recall at k is top-k accuracy
            expected = multiclass_accuracy(matrix, own, num_classes=1000, top_k=k, average="micro")
            assert found[f"R@{k}"] == pytest.approx(100 * float(expected), abs=1e-4)
            assert 5 < found[f"R@{k}"] < 95


def test_the_median_of_an_even_number_is_between_the_middle_two() -> None:
    found = scores(torch.tensor([90, 2, 7, 1]))
    assert found["MdR"] == 4.5
    assert found["MnR"] == 25.0
    assert (found["R@1"], found["R@5"], found["R@10"]) == (25.0, 50.0, 75.0)
    assert scores(torch.tensor([9, 1, 4]))["MdR"] == 4


def test_similarities_that_are_not_finite_are_refused() -> None:
    similarity = torch.eye(3)
    similarity[1, 2] = float("nan")
    for ranks in (text_to_video, video_to_text):
        with pytest.raises(ValueError, match="1 of 9 similarities"):
            ranks(similarity, torch.arange(3))
    found = torch.tensor([True, True, False])
    assert text_to_video(similarity, torch.arange(3), found).against.tolist() == [1, 1, 3]


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="video without a caption"):
        text_to_video(torch.zeros(3, 4), torch.arange(3))
    with pytest.raises(ValueError, match="expected"):
        text_to_video(torch.zeros(3, 4), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="no query"):
        scores(torch.empty(0, dtype=torch.int64))


def test_the_interval_of_one_caption_a_video_is_the_binomial_one() -> None:
    ranks = torch.cat([torch.ones(120), torch.full((280,), 4)]).long()
    low, high = Bootstrap(400).intervals(ranks, torch.arange(400))["R@1"]
    half = 100 * 1.96 * math.sqrt(0.3 * 0.7 / 400)
    assert low == pytest.approx(30 - half, abs=0.5)
    assert high == pytest.approx(30 + half, abs=0.5)
    assert Bootstrap(400).intervals(ranks, torch.arange(400))["R@5"] == [100, 100]


def test_the_interval_of_several_captions_a_video_draws_videos_and_not_captions() -> None:
    generator = torch.Generator().manual_seed(2)
    owner = several_captions(120, 30)
    # All captions of a video share their fate: the spread is that of 30 videos, not of 120 captions.
    ranks = torch.where(torch.rand(30, generator=generator) < 0.5, 1, 9)[owner]
    groups = [(ranks[owner == video] <= 1).tolist() for video in range(30)]
    means = []
    for _ in range(RESAMPLES):
        drawn = [hit for video in torch.randint(30, (30,), generator=generator).tolist() for hit in groups[video]]
        means.append(100 * sum(drawn) / len(drawn))
    means.sort()
    low, high = Bootstrap(30).intervals(ranks, owner)["R@1"]
    assert low == pytest.approx(means[int(0.025 * RESAMPLES)], abs=2.5)
    assert high == pytest.approx(means[int(0.975 * RESAMPLES)], abs=2.5)
    assert high - low > 1.3 * 2 * 1.96 * 100 * math.sqrt(0.25 / 120)
