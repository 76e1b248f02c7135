"""Zero-shot retrieval on a few drawn clips."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from simvtp_ds.config import DataConfig, ModelConfig
from simvtp_ds.data.decode import DecodeError
from simvtp_ds.data.manifest import Clip, Manifest, write_manifest
from simvtp_ds.data.render import SIDE, draw, encode
from simvtp_ds.data.scenes import caption, make_scenes
from simvtp_ds.data.text import Tokenizer, train_wordpiece
from simvtp_ds.evaluation.retrieval import embed_manifest, read_captions, read_centre, zero_shot
from simvtp_ds.model.simvtp import SimVTP

CLIPS = 34  # more than one batch of 32
DATA = DataConfig(num_frames=4, frame_stride=4, image_size=SIDE, max_words=32, workers=2)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    folder = tmp_path_factory.mktemp("clips")
    found = []
    for index, scene in enumerate(make_scenes(CLIPS, 1, seed=0)[0]):
        path, frames = folder / f"{index}.mp4", draw(scene)
        content = encode(frames)
        path.write_bytes(content)
        found.append(
            Clip(str(index), str(path), 0, len(content), caption(scene), len(frames), 16.0, SIDE, SIDE, "h264")
        )
    return found


@pytest.fixture(scope="module")
def tokenizer(clips: list[Clip]) -> Tokenizer:
    return train_wordpiece([clip.caption for clip in clips], vocab_size=300)


@pytest.fixture
def manifest(clips: list[Clip], tmp_path: Path) -> Manifest:
    write_manifest(tmp_path, clips)
    return Manifest.open(tmp_path)


def model_for(tokenizer: Tokenizer, dropout: float = 0.5) -> SimVTP:
    torch.manual_seed(0)
    config = ModelConfig(
        width=32,
        depth=1,
        heads=2,
        decoder_width=16,
        decoder_depth=1,
        decoder_heads=2,
        patch_size=32,
        text_dropout=dropout,
    )
    return SimVTP(config, DATA.num_frames, DATA.image_size, tokenizer.vocab_size)


def test_the_centre_view_is_the_middle_of_the_file(clips: list[Clip]) -> None:
    clip = clips[0]
    with av.open(clip.uri) as container:
        frames = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
    first = (clip.frames - 1 - 3 * 4) // 2
    found = read_centre(clip, DATA)
    assert np.abs(found.astype(int) - frames[first : first + 13 : 4]).mean() < 2
    assert np.array_equal(found, read_centre(clip, DATA))


def test_captions_are_read_without_hidden_words(clips: list[Clip], tokenizer: Tokenizer) -> None:
    words, word_mask = read_captions([clip.caption for clip in clips[:5]], tokenizer, max_words=32)
    assert not (words == tokenizer.mask_id).any()
    for row, clip in enumerate(clips[:5]):
        assert words[row][word_mask[row]].tolist() == tokenizer.encode(clip.caption, 32).tolist()


def test_embeddings_do_not_depend_on_the_batch_or_on_dropout(manifest: Manifest, tokenizer: Tokenizer) -> None:
    model = model_for(tokenizer).train()
    texts, videos = embed_manifest(model, manifest, tokenizer, DATA)
    assert model.training
    assert texts.shape == videos.shape == (CLIPS, 32)
    model.eval()
    for row in (0, CLIPS - 1):
        clip = manifest[row]
        words, word_mask = read_captions([clip.caption], tokenizer, DATA.max_words)
        video = model.embed_video(torch.from_numpy(read_centre(clip, DATA))[None])
        torch.testing.assert_close(texts[row], model.embed_text(words, word_mask)[0].detach(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(videos[row], video[0].detach(), rtol=1e-4, atol=1e-5)


def test_scores_are_of_all_clips_and_the_same_every_time(manifest: Manifest, tokenizer: Tokenizer) -> None:
    model = model_for(tokenizer)
    found = zero_shot(model, manifest, tokenizer, DATA)
    assert found["queries"] == CLIPS
    assert found["chance_R@1"] == pytest.approx(100 / CLIPS)
    texts, videos = embed_manifest(model, manifest, tokenizer, DATA)
    best = (texts @ videos.T).argmax(dim=1)
    assert found["t2v"]["R@1"] == pytest.approx(100 * float((best == torch.arange(CLIPS)).double().mean()))
    assert found == zero_shot(model, manifest, tokenizer, DATA)


def test_a_clip_that_cannot_be_decoded_is_an_error_and_not_left_out(
    clips: list[Clip], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    broken = replace(clips[1], uri=str(tmp_path / "broken.mp4"), length=8)
    write_manifest(tmp_path, [clips[0], broken])
    with pytest.raises(DecodeError, match=r"broken\.mp4"):
        zero_shot(model_for(tokenizer), Manifest.open(tmp_path), tokenizer, DATA)


def test_several_captions_of_a_clip_are_refused(clips: list[Clip], tokenizer: Tokenizer, tmp_path: Path) -> None:
    write_manifest(tmp_path, [clips[0], replace(clips[0], caption="a circle")])
    with pytest.raises(ValueError, match="several captions"):
        zero_shot(model_for(tokenizer), Manifest.open(tmp_path), tokenizer, DATA)
