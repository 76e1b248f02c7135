"""What is shown of a model: pixels pasted as VideoMAE does, words told under three conditions, drawn as in training."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from tiny import IMAGE_SIZE, NUM_FRAMES, TINY

from simvtp_ds.config import MaskConfig
from simvtp_ds.data.examples import PretrainExamples
from simvtp_ds.data.manifest import Clip, Manifest, write_manifest
from simvtp_ds.data.text import Tokenizer, train_wordpiece
from simvtp_ds.data_config import DataConfig
from simvtp_ds.evaluation.drawing import GAP, MARGIN, fitted, sheet, write_film
from simvtp_ds.evaluation.reconstruction import (
    GRAY,
    OTHER,
    WITH,
    WITHOUT,
    Guess,
    HiddenWord,
    Hiding,
    Panel,
    check_ratio,
    make_panel,
    record,
    sum_up,
)
from simvtp_ds.model.simvtp import SimVTP
from simvtp_ds.objectives.pixels import pixel_target, pixels_from

CAPTION = "a small red circle moves to the left"
HIDING = Hiding(tube_ratios=(0.5, 0.75), words_at=0.75, word_ratio=0.6, seed=3)
DATA = DataConfig(num_frames=NUM_FRAMES, image_size=IMAGE_SIZE, max_words=12, workers=1)
PATCH, TUBELET, SIDE = TINY.patch_size, TINY.tubelet_size, IMAGE_SIZE // TINY.patch_size


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_wordpiece([CAPTION, "a large green square does not move"], 200)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> SimVTP:
    torch.manual_seed(0)
    model = SimVTP(replace(TINY, text_dropout=0.3), NUM_FRAMES, IMAGE_SIZE, tokenizer.vocab_size)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.train()


def clip_frames(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (NUM_FRAMES, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def panel(model: SimVTP, tokenizer: Tokenizer) -> Panel:
    return make_panel(model, tokenizer, 12, "clip", CAPTION, clip_frames(0), HIDING, clip_frames(1), top=3)


@pytest.fixture(scope="module")
def batch(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory):
    """What training shows of the same clip in epoch 0 under the same seed, half of the patches hidden."""
    folder = tmp_path_factory.mktemp("manifest")
    write_manifest(folder, [Clip("clip", "/x.mp4", 0, 1, CAPTION, 9, 9.0, 32, 32, "h264")])
    masks = MaskConfig(tube_ratio=0.5, word_ratio=HIDING.word_ratio)
    grid = (NUM_FRAMES // TUBELET, SIDE, SIDE)
    examples = PretrainExamples(Manifest.open(folder), tokenizer, DATA, masks, grid, HIDING.seed, matching=False)
    return examples.assemble(clip_frames(0)[None], [examples.clip(0, 0)], [0])


def hidden_in_batch(batch, token: int) -> bool:
    return token in batch.hidden[0].tolist()


def cut(frames: np.ndarray, token: int) -> np.ndarray:
    t, y, x = token // SIDE**2, token // SIDE % SIDE, token % SIDE
    return frames[TUBELET * t : TUBELET * (t + 1), PATCH * y : PATCH * (y + 1), PATCH * x : PATCH * (x + 1)].astype(
        np.float64
    )


def test_pixels_come_back_from_the_target_exactly() -> None:
    patches = torch.randint(0, 256, (2, 3, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    patches[1, 2, :, 1] = 77  # a flat patch has a target of 0
    assert torch.equal(pixels_from(pixel_target(patches), patches), patches)


def test_the_masks_and_hidden_words_are_those_of_training(panel: Panel, batch) -> None:
    masked = panel.rebuilt[0].masked
    for token in range(2 * SIDE**2):
        shown = cut(masked, token)
        if hidden_in_batch(batch, token):
            assert (shown == GRAY).all()
        else:
            assert np.array_equal(shown, cut(panel.original, token))
    hidden = [1 + word.position for word in panel.words]  # [CLS] stands before the words
    assert hidden == batch.hidden_words.tolist()
    assert 0 < len(hidden) < len(panel.tokens)


def test_a_higher_ratio_hides_all_that_a_lower_one_does(panel: Panel) -> None:
    fewer, more = ((each.masked == GRAY).all(axis=-1) for each in panel.rebuilt)
    assert (more | ~fewer).all()
    assert more.sum() > fewer.sum()


def test_hidden_patches_carry_the_models_output_at_the_mean_and_spread_of_the_real_ones(
    panel: Panel, model: SimVTP, batch
) -> None:
    ones = torch.ones_like(batch.words, dtype=torch.bool)
    words = batch.words[:, : len(panel.tokens) + 2]
    with torch.no_grad():
        video, _ = model.eval().encode_joint(batch.frames, batch.visible, words, ones[:, : words.shape[1]])
        out = model.decode_pixels(video, batch.visible, batch.hidden)[0].double().numpy()
    model.train()
    losses = []
    for token in range(2 * SIDE**2):
        real, shown = cut(panel.original, token), cut(panel.rebuilt[0].rebuilt, token)
        if not hidden_in_batch(batch, token):
            assert np.array_equal(shown, real), "a visible patch is not the clip's own"
            continue
        own = out[batch.hidden[0].tolist().index(token)].reshape(TUBELET, PATCH, PATCH, 3)
        for colour in range(3):
            mean, spread = real[..., colour].mean(), real[..., colour].std(ddof=1)
            expected = np.clip(own[..., colour] * spread + mean, 0, 255)
            assert np.abs(shown[..., colour] - expected).max() < 0.51
            flat = cut(panel.rebuilt[0].means, token)[..., colour]
            assert np.abs(flat - mean).max() < 0.51
            losses.append(((own[..., colour] - (real[..., colour] - mean) / spread) ** 2).mean())
    assert panel.rebuilt[0].mvm == pytest.approx(np.mean(losses), rel=1e-4)


def test_words_without_the_video_are_told_from_the_masked_caption_alone(
    panel: Panel, model: SimVTP, tokenizer: Tokenizer, batch
) -> None:
    words = batch.words[:, : len(panel.tokens) + 2]
    seen = torch.ones_like(words, dtype=torch.bool)
    nothing = torch.empty(1, 0, dtype=torch.int64)
    with torch.no_grad():
        _, out = model.eval().encode_joint(batch.frames, nothing, words, seen)  # a joint pass with no video token
        chances = model.word_logits(out)[0].softmax(-1)
    model.train()
    for word, true in zip(panel.words, batch.hidden_word_ids.tolist(), strict=True):
        row = chances[word.position + 1]
        assert word.word == tokenizer.token(true)
        assert word.guesses[WITHOUT].probability == pytest.approx(float(row[true]), rel=1e-4)
        best = sorted(range(len(row)), key=lambda id: -float(row[id]))[:3]
        assert [said for said, _ in word.guesses[WITHOUT].top] == [tokenizer.token(id) for id in best]


def test_each_condition_says_something_else_and_the_other_video_is_the_one_given(
    panel: Panel, model: SimVTP, tokenizer: Tokenizer
) -> None:
    swapped = make_panel(model, tokenizer, 12, "clip", CAPTION, clip_frames(1), HIDING, clip_frames(0), top=3)
    alone = make_panel(model, tokenizer, 12, "clip", CAPTION, clip_frames(0), HIDING)
    for ours, theirs, one in zip(panel.words, swapped.words, alone.words, strict=True):
        assert len({guess.probability for guess in ours.guesses.values()}) == 3
        assert ours.guesses[OTHER] == theirs.guesses[WITH]
        assert ours.guesses[WITHOUT] == theirs.guesses[WITHOUT]
        assert list(one.guesses) == [WITH, WITHOUT]


def test_the_same_seed_gives_the_same_panel_and_the_training_is_left_alone(
    panel: Panel, model: SimVTP, tokenizer: Tokenizer
) -> None:
    state, weights = torch.get_rng_state(), {name: value.clone() for name, value in model.state_dict().items()}
    again = make_panel(model, tokenizer, 12, "clip", CAPTION, clip_frames(0), HIDING, clip_frames(1), top=3)
    assert record(again) == record(panel)
    assert all(np.array_equal(a.rebuilt, b.rebuilt) for a, b in zip(again.rebuilt, panel.rebuilt, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and not p.is_inference() for p in model.parameters())
    other = make_panel(model, tokenizer, 12, "clip", CAPTION, clip_frames(0), replace(HIDING, seed=4))
    assert not np.array_equal(other.rebuilt[0].masked, panel.rebuilt[0].masked)


def test_a_caption_without_words_or_without_hidden_ones_is_drawn_and_counted(
    model: SimVTP, tokenizer: Tokenizer
) -> None:
    for caption, hiding in (("", HIDING), (CAPTION, replace(HIDING, word_ratio=0.0))):
        found = make_panel(model, tokenizer, 12, "clip", caption, clip_frames(0), hiding)
        assert found.words == ()
        assert sheet(found).height > 0
        assert sum_up([record(found)])["words"] == {}


def test_averages_are_over_the_words_and_not_over_the_clips() -> None:
    def word(name: str, right: float, wrong: float) -> HiddenWord:
        best = (name, right) if right > wrong else ("no", wrong)
        return HiddenWord(0, name, {WITH: Guess(right, (best,)), WITHOUT: Guess(0.5, ((name, 0.5),))})

    base = Panel("a", "", (), (), 0.9, clip_frames(0), ())
    one = replace(base, words=(word("red", 0.5, 0.1),))
    two = replace(base, words=(word("big", 0.25, 0.7), word("dog", 0.125, 0.7)))
    found = sum_up([record(one), record(two)])
    assert (found["clips"], found["hidden_words"]) == (2, 3)
    assert found["words"][WITH] == pytest.approx(
        {"right": 1 / 3, "probability": 0.875 / 3, "perplexity": math.exp(math.log(2 * 4 * 8) / 3)}
    )
    assert found["words"][WITHOUT]["right"] == 1.0
    assert OTHER not in found["words"]


@pytest.mark.parametrize(("ratio", "message"), [(0.0, "none"), (0.01, "none"), (1.0, "all"), (float("nan"), "all")])
def test_a_ratio_that_hides_nothing_or_everything_is_refused(model: SimVTP, ratio: float, message: str) -> None:
    with pytest.raises(ValueError, match=f"--ratios .* hides {message} of the 16 patches"):
        check_ratio(model, ratio, "--ratios")


def test_a_sheet_holds_the_frames_pixel_for_pixel(panel: Panel) -> None:
    picture = np.asarray(sheet(panel, low=32))
    rows = [panel.original, panel.rebuilt[0].masked, panel.rebuilt[0].rebuilt, panel.rebuilt[1].masked]
    left = 8 * 15 + MARGIN
    for row, frames in enumerate(rows):
        for t in range(NUM_FRAMES):
            top, start = MARGIN + row * (32 + GAP), left + t * (32 + GAP)
            shown = picture[top : top + 32, start : start + 32]
            assert np.array_equal(shown[::2, ::2], frames[t]), (row, t)


def test_large_frames_are_reduced_and_small_ones_magnified_by_whole_numbers() -> None:
    assert [fitted(np.zeros((side, side, 3), np.uint8), 128, 224).width for side in (48, 128, 224, 256, 500)] == [
        144,
        128,
        224,
        128,
        167,
    ]


def test_a_film_plays_back_what_was_drawn(panel: Panel, tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    write_film(panel, path, rate=0.4)
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate == 2, "never slower than can be watched"
        shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(shown) == NUM_FRAMES
    height, width, _ = shown[0].shape
    assert width * 2 == height * 3, "three pictures wide, two ratios high"
    gray = (panel.rebuilt[0].masked[0] == GRAY).all(axis=-1)
    y, x = np.argwhere(gray.reshape(SIDE, PATCH, SIDE, PATCH).all(axis=(1, 3)))[0]
    cell = height // 2 // SIDE  # pixels of a patch in the film
    patch = shown[0][y * cell : (y + 1) * cell, width // 3 + x * cell : width // 3 + (x + 1) * cell]
    inner = patch[cell // 4 : -cell // 4, cell // 4 : -cell // 4].astype(int)
    assert np.abs(inner - GRAY).max() < 12
