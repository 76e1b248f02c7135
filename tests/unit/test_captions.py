"""Hidden words, padding, and the videos that do not belong."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simvtp_ds.data.captions import Caption, collate, hide_words, hide_words_of_batch, negatives, whole_captions
from simvtp_ds.data.order import view_streams
from simvtp_ds.data.text import Tokenizer, train_wordpiece

TEXTS = ["a man is cooking", "two dogs run over a green field", "a dog", "the man plays the guitar on a stage"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_wordpiece(TEXTS, 200)


def test_a_hidden_word_becomes_mask_and_its_id_is_kept(tokenizer: Tokenizer) -> None:
    original = tokenizer.encode(TEXTS[1], 64)
    caption = hide_words(np.random.default_rng(0), tokenizer, TEXTS[1], 64, 0.5)
    assert 0 < len(caption.hidden) < len(original) - 2
    assert (caption.words[caption.hidden] == tokenizer.mask_id).all()
    restored = caption.words.copy()
    restored[caption.hidden] = caption.hidden_ids
    np.testing.assert_array_equal(restored, original)


def test_special_tokens_are_never_hidden_and_all_words_are_at_ratio_one(tokenizer: Tokenizer) -> None:
    caption = hide_words(np.random.default_rng(0), tokenizer, TEXTS[0], 64, 1.0)
    assert caption.words[0] == tokenizer.cls_id and caption.words[-1] == tokenizer.sep_id
    assert caption.hidden.tolist() == list(range(1, len(caption.words) - 1))


def test_words_are_hidden_with_the_given_probability(tokenizer: Tokenizer) -> None:
    rng = np.random.default_rng(3)
    words = len(tokenizer.encode(TEXTS[3], 64)) - 2
    hidden = sum(len(hide_words(rng, tokenizer, TEXTS[3], 64, 0.75).hidden) for _ in range(2000))
    assert abs(hidden / (2000 * words) - 0.75) < 0.02


def test_padding_reaches_the_next_multiple_of_eight_but_not_past_the_limit() -> None:
    def lengths(longest: int, max_words: int) -> int:
        caption = Caption(np.arange(longest), np.array([], np.int64), np.array([], np.int64))
        return collate([caption], 0, max_words).words.shape[1]

    assert [lengths(longest, 64) for longest in (3, 8, 9, 63, 64)] == [8, 8, 16, 64, 64]
    assert [lengths(longest, 20) for longest in (3, 17, 20)] == [8, 20, 20]


def test_collation_marks_words_and_points_at_the_hidden_ones_of_the_flat_batch() -> None:
    first = Caption(np.array([2, 4, 3]), np.array([1]), np.array([7]))
    second = Caption(np.array([2, 9, 4, 4, 3]), np.array([2, 3]), np.array([8, 6]))
    batch = collate([first, second], 0, 64)
    assert batch.words.tolist() == [[2, 4, 3, 0, 0, 0, 0, 0], [2, 9, 4, 4, 3, 0, 0, 0]]
    assert batch.word_mask.tolist() == [[True] * 3 + [False] * 5, [True] * 5 + [False] * 3]
    assert batch.hidden_words.tolist() == [1, 10, 11]
    assert batch.hidden_word_ids.tolist() == [7, 8, 6]
    assert batch.words.dtype == batch.hidden_words.dtype == batch.hidden_word_ids.dtype == np.int64


def test_a_batch_without_hidden_words_is_allowed(tokenizer: Tokenizer) -> None:
    streams = view_streams(0, [(text, 0) for text in TEXTS], "words")
    batch = hide_words_of_batch(streams, TEXTS, tokenizer, 64, 0.0)
    assert batch.hidden_words.shape == batch.hidden_word_ids.shape == (0,)
    assert batch.hidden_words.dtype == np.int64
    assert tokenizer.mask_id not in batch.words


def test_whole_captions_are_the_tokens_of_each_caption_and_padding(tokenizer: Tokenizer) -> None:
    words, word_mask = whole_captions(TEXTS, tokenizer, 8)
    assert words.shape == word_mask.shape == (4, 8) and words.dtype == np.int64 and word_mask.dtype == bool
    for text, row, mask in zip(TEXTS, words, word_mask, strict=True):
        assert row[mask].tolist() == tokenizer.encode(text, 8).tolist()
        assert (row[~mask] == tokenizer.pad_id).all() and mask.tolist() == sorted(mask, reverse=True)
    assert tokenizer.mask_id not in words


def shown(ids: Iterable[str], epoch: int = 0) -> list[tuple[str, int]]:
    return [(clip_id, epoch) for clip_id in ids]


def test_even_batches_swap_neighbours_and_odd_ones_end_in_a_circle_of_three() -> None:
    assert negatives(shown("abcd"), 0).tolist() == [1, 0, 3, 2]
    assert negatives(shown("abcde"), 0).tolist() == [1, 0, 3, 4, 2]
    assert negatives(shown("abc"), 0).tolist() == [1, 2, 0]
    assert negatives(shown("ab"), 0).tolist() == [1, 0]


@settings(max_examples=200, deadline=None)
@given(ids=st.lists(st.sampled_from("abcde"), min_size=2, max_size=12), epoch=st.integers(0, 5))
def test_a_negative_is_never_the_captions_own_clip(ids: list[str], epoch: int) -> None:
    if len(set(ids)) == 1:
        with pytest.raises(ValueError, match="two different clips"):
            negatives(shown(ids, epoch), 0)
        return
    chosen = negatives(shown(ids, epoch), 0)
    assert chosen.dtype == np.int64 and len(chosen) == len(ids)
    assert all(ids[other] != own for own, other in zip(ids, chosen, strict=True))
    np.testing.assert_array_equal(chosen, negatives(shown(ids, epoch), 0))


def test_a_batch_of_one_is_refused_naming_the_key_to_edit() -> None:
    with pytest.raises(ValueError, match="train_micro_batch_size_per_gpu"):
        negatives(shown("a"), 0)
