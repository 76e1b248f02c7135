"""Two towers from a pre-training model: what they compute at the start, and damaged weights refused."""

from __future__ import annotations

import pytest
import torch
from tiny import IMAGE_SIZE, NUM_FRAMES, TINY, TOKENS, VOCABULARY, tiny_batch, tiny_model

from simvtp_ds.interop.init_towers import towers_from_pretraining
from simvtp_ds.model.retrieval import TwoTower

KINDS = [(shared, match) for shared in (False, True) for match in (False, True)]


def towers(shared: bool, match: bool) -> TwoTower:
    """Two towers that start from the tiny model."""
    state, _ = towers_from_pretraining(tiny_model().state_dict(), shared, match)
    model = TwoTower(TINY, NUM_FRAMES, IMAGE_SIZE, VOCABULARY, shared=shared, match=match).eval()
    model.load_state_dict(state)  # strict: nothing keeps its random start
    return model


@pytest.mark.parametrize(("shared", "match"), KINDS)
def test_every_name_of_the_pretraining_model_is_used_or_ignored(shared: bool, match: bool) -> None:
    names = set(tiny_model().state_dict())
    _, report = towers_from_pretraining(tiny_model().state_dict(), shared, match)
    assert set(report.used) | set(report.ignored) == names
    assert not set(report.used) & set(report.ignored)
    heads = {name for name in names if name.startswith(("decoder.", "word_head."))}
    assert set(report.ignored) == heads | (set() if match else {"match_head.weight", "match_head.bias"})


@pytest.mark.parametrize("shared", [False, True])
def test_both_towers_start_with_the_norm_behind_the_mean(shared: bool) -> None:
    source, model, batch = tiny_model().eval(), towers(shared, match=False), tiny_batch(3)
    every = torch.arange(TOKENS).expand(3, TOKENS)
    with torch.no_grad():
        blocks, norm = source.encoder.blocks, source.encoder.norm
        video = norm(blocks(source.embed_patches(batch.frames, every)).mean(dim=1))
        torch.testing.assert_close(model.encode_video(batch.frames), video)
        text = model.encode_text(batch.words, batch.word_mask)
        for b in range(3):
            words = batch.words[b : b + 1, : int(batch.word_mask[b].sum())]
            torch.testing.assert_close(text[b : b + 1], norm(blocks(source.embed_words(words)).mean(dim=1)))


@pytest.mark.parametrize("shared", [False, True])
def test_matching_starts_as_that_of_the_pretraining_model(shared: bool) -> None:
    source, model, batch = tiny_model().eval(), towers(shared, match=True), tiny_batch(3)
    pairs = batch.frames, batch.words, batch.word_mask
    with torch.no_grad():
        torch.testing.assert_close(model.match_pairs(*pairs), source.match_pairs(*pairs), rtol=0, atol=1e-6)


def test_a_missing_tensor_is_named() -> None:
    state = tiny_model().state_dict()
    _, report = towers_from_pretraining(state, shared=True, match=True)
    for name in report.used:
        lacking = {key: value for key, value in state.items() if key != name}
        with pytest.raises(ValueError, match=f"no {name}: "):
            towers_from_pretraining(lacking, shared=True, match=True)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("patches.weight", [23, 96]),
        ("patches.weight", [24, 95]),
        ("patches.bias", [23]),
        ("words.embeddings.word_embeddings.weight", [50, 23]),
        ("words.embeddings.LayerNorm.weight", [24, 1]),
        ("encoder.blocks.layers.1.attn.qkv.weight", [71, 24]),
        ("encoder.blocks.layers.0.mlp.fc1.weight", [95, 24]),
        ("encoder.norm.weight", [23]),
        ("match_head.weight", [3, 24]),
    ],
)
def test_a_tensor_of_another_shape_is_named(name: str, shape: list[int]) -> None:
    state = tiny_model().state_dict() | {name: torch.zeros(shape)}
    with pytest.raises(ValueError, match=rf"{name} .* shape \[{', '.join(map(str, shape))}\], the others ask for"):
        towers_from_pretraining(state, shared=False, match=True)


def test_weights_of_another_model_are_refused() -> None:
    state = tiny_model().state_dict()
    with pytest.raises(ValueError, match=r"head\.weight is not a tensor of the pre-training model"):
        towers_from_pretraining(state | {"head.weight": torch.zeros(2)}, shared=False, match=False)
    with pytest.raises(ValueError, match="they are not a pre-training model's"):
        towers_from_pretraining(towers(shared=False, match=False).state_dict(), shared=False, match=False)
    with pytest.raises(ValueError, match="must be a matrix"):
        towers_from_pretraining(state | {"patches.weight": torch.zeros(24)}, shared=False, match=False)
