"""What the batches of pre-training and fine-tuning are made of."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from simvtp_ds.config import MaskConfig
from simvtp_ds.data.examples import PretrainExamples, RetrievalExamples, video_number
from simvtp_ds.data.loader import Loader
from simvtp_ds.data.manifest import Clip, Manifest, write_manifest
from simvtp_ds.data.order import Order
from simvtp_ds.data.text import Tokenizer, train_wordpiece
from simvtp_ds.data.videos import Videos
from simvtp_ds.data_config import DataConfig
from simvtp_ds.finetune_config import AugmentConfig
from simvtp_ds.types import Batch

WORDS = ["zero", "one", "two", "three", "four"]
DATA = DataConfig(num_frames=2, image_size=32, max_words=8)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_wordpiece(WORDS, 100)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """60 videos of five captions each, the captions of a video far apart."""
    folder = tmp_path_factory.mktemp("manifest")
    one = Clip("", "/x.mp4", 0, 1, "", 40, 25.0, 64, 48, "h264")
    write_manifest(folder, [replace(one, clip_id=f"v{video}", caption=word) for word in WORDS for video in range(60)])
    return Manifest.open(folder)


@pytest.fixture(scope="module")
def retrieval(manifest: Manifest, tokenizer: Tokenizer) -> RetrievalExamples:
    return RetrievalExamples(Videos(manifest), tokenizer, DATA, AugmentConfig(), seed=3)


def test_an_example_of_pretraining_is_a_row_whatever_the_epoch(manifest: Manifest, tokenizer: Tokenizer) -> None:
    examples = PretrainExamples(manifest, tokenizer, DATA, MaskConfig(), (1, 2, 2), seed=3)
    assert len(examples) == 300
    assert examples.clip(130, 0) == examples.clip(130, 5) == manifest[130]


def test_each_video_comes_once_an_epoch_with_one_of_its_captions(retrieval: RetrievalExamples) -> None:
    assert len(retrieval) == 60
    order = Order(len(retrieval), 20, retrieval.seed)
    for epoch in range(2):
        rows = np.concatenate([order.rows(epoch, step) for step in range(order.steps_per_epoch)])
        drawn = [retrieval.clip(int(row), epoch) for row in rows]
        assert Counter(clip.clip_id for clip in drawn) == {f"v{video}": 1 for video in range(60)}
        assert {clip.caption for clip in drawn} == set(WORDS)


def test_captions_are_drawn_anew_each_epoch_and_uniformly(retrieval: RetrievalExamples) -> None:
    drawn = [[retrieval.clip(video, epoch).caption for epoch in range(40)] for video in range(60)]
    counts = Counter(caption for captions in drawn for caption in captions)
    chi_square = sum((counts[word] - 480) ** 2 / 480 for word in WORDS)
    assert chi_square < 18.5  # 4 degrees of freedom: exceeded once in a thousand times
    repeats = sum(a == b for captions in drawn for a, b in pairwise(captions))
    assert 0.16 < repeats / (60 * 39) < 0.24  # an epoch knows nothing of the one before: one in five by chance
    assert [retrieval.clip(video, 7) for video in range(60)] == [retrieval.clip(video, 7) for video in range(60)]


def test_a_batch_of_fine_tuning_holds_whole_captions(retrieval: RetrievalExamples, tokenizer: Tokenizer) -> None:
    clips = [retrieval.clip(video, 0) for video in range(3)]
    frames = np.random.default_rng(0).integers(256, size=(3, 2, 32, 32, 3), dtype=np.uint8)
    batch = retrieval.assemble(frames, clips, [0] * 3)
    np.testing.assert_array_equal(batch.frames.numpy(), frames)
    assert [tokenizer.decode(row.tolist()) for row in batch.words] == [clip.caption for clip in clips]
    assert batch.word_mask.sum() == (batch.words != tokenizer.pad_id).sum()
    assert batch.video_ids.dtype == torch.int64 and batch.video_ids.shape == (3,)


def test_captions_of_one_video_have_one_number_and_of_others_another(
    manifest: Manifest, retrieval: RetrievalExamples
) -> None:
    rows = [manifest[row] for row in range(0, 300, 7)]
    numbers = retrieval.assemble(np.zeros((len(rows), 2, 32, 32, 3), np.uint8), rows, [0] * len(rows)).video_ids
    same = [[a.clip_id == b.clip_id for b in rows] for a in rows]
    assert (numbers[:, None] == numbers[None]).tolist() == same
    assert (numbers >= 0).all()
    assert video_number("video7010") == 7707900934609261633  # fixed for ever: ranks must agree


def test_a_micro_batch_of_one_serves_fine_tuning_and_not_pretraining(
    manifest: Manifest, tokenizer: Tokenizer, retrieval: RetrievalExamples
) -> None:
    assert Loader(retrieval, DATA, 1, 1, 0, 1).steps_per_epoch == 60
    with pytest.raises(ValueError, match="train_micro_batch_size_per_gpu is 1; matching needs 2 different clips"):
        Loader(PretrainExamples(manifest, tokenizer, DATA, MaskConfig(), (1, 2, 2), seed=3), DATA, 1, 1, 0, 1)


def assembled(manifest: Manifest, tokenizer: Tokenizer, rows: list[int], epochs: list[int], views: int = 1) -> Batch:
    """The batch of some rows, half of the patches and of the words hidden, frames numbered by clip."""
    data, masks = replace(DATA, views=views), MaskConfig(0.5, 0.5)
    examples = PretrainExamples(manifest, tokenizer, data, masks, (1, 4, 4), seed=3)
    frames = np.broadcast_to(np.arange(len(rows), dtype=np.uint8)[:, None, None, None, None], (len(rows), 2, 32, 32, 3))
    return examples.assemble(frames.copy(), [manifest[row] for row in rows], epochs)


def restored(batch: Batch, tokenizer: Tokenizer) -> list[str]:
    """The captions of a batch with their hidden words put back."""
    words = batch.words.flatten().clone()
    assert (words[batch.hidden_words] == tokenizer.mask_id).all()
    words[batch.hidden_words] = batch.hidden_word_ids
    return [tokenizer.decode(row.tolist()) for row in words.view_as(batch.words)]


def test_views_share_frames_and_caption_and_have_masks_of_their_own(manifest: Manifest, tokenizer: Tokenizer) -> None:
    rows, epochs = list(range(0, 300, 37)), [4] * 9
    one, three = (assembled(manifest, tokenizer, rows, epochs, views) for views in (1, 3))
    assert torch.equal(one.frames, three.frames)
    for name in ("visible", "hidden", "words", "word_mask", "video_ids"):
        found, alone = getattr(three, name), getattr(one, name)
        assert len(found) == 27 and torch.equal(found[::3], alone), name  # the first view is the clip as ever
    assert restored(three, tokenizer) == [manifest[row].caption for row in rows for _ in range(3)]
    for view in (1, 2):
        assert torch.equal(three.video_ids[view::3], three.video_ids[::3])
        assert not (three.visible[view::3] == three.visible[::3]).all(dim=1).any()
    assert not (three.visible[1::3] == three.visible[2::3]).all(dim=1).any()
    seen = three.words.view(9, 3, -1)
    assert any(not torch.equal(views[0], views[1]) for views in seen)
    assert any(not torch.equal(views[1], views[2]) for views in seen)
    for batch in (one, three):
        tokens = torch.cat([batch.visible, batch.hidden], dim=1).sort(dim=1).values
        assert torch.equal(tokens, torch.arange(16).expand_as(tokens))


@settings(max_examples=30, deadline=None)
@given(
    rows=st.lists(st.sampled_from([0, 60, 120, 1, 61, 2, 3]), min_size=2, max_size=7),
    views=st.integers(1, 3),
    epoch=st.integers(0, 9),
)
def test_no_view_of_a_video_is_its_negative(
    manifest: Manifest, tokenizer: Tokenizer, rows: list[int], views: int, epoch: int
) -> None:
    videos = [row % 60 for row in rows for _ in range(views)]
    if len(set(videos)) == 1:
        with pytest.raises(ValueError, match="two different clips"):
            assembled(manifest, tokenizer, rows, [epoch] * len(rows), views)
        return
    batch = assembled(manifest, tokenizer, rows, [epoch] * len(rows), views)
    assert all(videos[b] != videos[n] for b, n in enumerate(batch.negative.tolist()))
    assert [n % views for n in batch.negative.tolist()] == [b % views for b in range(len(videos))]
    alone = assembled(manifest, tokenizer, rows, [epoch] * len(rows))
    assert (batch.negative[::views] // views).tolist() == alone.negative.tolist()


def test_each_clip_draws_from_its_own_epoch(manifest: Manifest, tokenizer: Tokenizer) -> None:
    mixed = assembled(manifest, tokenizer, [5, 7, 5, 9], [0, 1, 2, 0], views=2)
    for epoch in range(3):
        plain = assembled(manifest, tokenizer, [5, 7, 5, 9], [epoch] * 4, views=2)
        for clip in (clip for clip, own in enumerate([0, 1, 2, 0]) if own == epoch):
            part = slice(2 * clip, 2 * clip + 2)
            assert torch.equal(mixed.visible[part], plain.visible[part])
            assert torch.equal(mixed.words[part], plain.words[part])
    assert not torch.equal(mixed.visible[0:2], mixed.visible[4:6])  # one clip in two epochs
    assert mixed.negative.tolist() == [2, 3, 0, 1, 6, 7, 4, 5]


def test_one_video_is_enough_where_matching_is_not_trained(manifest: Manifest, tokenizer: Tokenizer) -> None:
    data = replace(DATA, views=2)
    examples = PretrainExamples(manifest, tokenizer, data, MaskConfig(), (1, 2, 2), seed=3, matching=False)
    frames = np.zeros((2, 2, 32, 32, 3), np.uint8)
    assert examples.assemble(frames, [manifest[0], manifest[60]], [0, 0]).negative.tolist() == [0, 1, 2, 3]
    assert examples.assemble(frames, [manifest[0], manifest[1]], [0, 0]).negative.tolist() == [2, 3, 0, 1]
    assert Loader(examples, data, 2, 1, 0, 1).steps_per_epoch == 300
