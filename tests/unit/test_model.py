"""The behaviour that the model's passes promise; test_formats.py compares it with Hugging Face's VideoMAE."""

from __future__ import annotations

import pytest
import torch
from einops import rearrange
from tiny import TINY, TOKENS, tiny_batch, tiny_model
from tiny_towers import tiny_towers

from simvtp_ds.config import ModelConfig
from simvtp_ds.model.blocks import Blocks
from simvtp_ds.model.params import parameter_groups
from simvtp_ds.model.simvtp import SimVTP


def test_base_model_has_the_number_of_parameters_of_the_paper() -> None:
    with torch.device("meta"):
        model = SimVTP(ModelConfig(), num_frames=16, image_size=224, vocab_size=30522)
    assert model.grid == (8, 14, 14)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == 141.52


def test_padding_changes_nothing_for_the_words_and_the_video() -> None:
    model, batch = tiny_model().eval(), tiny_batch(2, padded=False)
    words, seen = batch.words[:, :5], batch.word_mask[:, :5]
    longer = torch.nn.functional.pad(words, (0, 3), value=7)  # any id: nobody may look at it
    padding = torch.nn.functional.pad(seen, (0, 3), value=False)
    with torch.no_grad():
        video, text = model.encode_joint(batch.frames, batch.visible, words, seen)
        video_padded, text_padded = model.encode_joint(batch.frames, batch.visible, longer, padding)
        torch.testing.assert_close(video_padded, video)
        torch.testing.assert_close(text_padded[:, :5], text)
        match = model.match(video, text, seen)
        torch.testing.assert_close(model.match(video_padded, text_padded, padding), match)
        torch.testing.assert_close(model.embed_text(longer, padding), model.embed_text(words, seen))


def test_joint_pass_lets_video_and_text_see_each_other() -> None:
    model, batch = tiny_model().eval(), tiny_batch(2)
    with torch.no_grad():
        video, text = model.encode_joint(batch.frames, batch.visible, batch.words, batch.word_mask)
        other_video, _ = model.encode_joint(batch.frames, batch.visible, batch.words.flip(0), batch.word_mask)
        _, other_text = model.encode_joint(batch.frames.flip(0), batch.visible, batch.words, batch.word_mask)
    assert (video - other_video).abs().max() > 1e-3
    assert (text - other_text).abs().max() > 1e-3


def test_evaluation_embeddings_are_unit_vectors_of_all_tokens() -> None:
    model, batch = tiny_model().eval(), tiny_batch(2)
    every = torch.arange(TOKENS).expand(2, TOKENS)
    with torch.no_grad():
        video = model.embed_video(batch.frames)
        text = model.embed_text(batch.words, batch.word_mask)
        pooled = model.encode_video(batch.frames, every).mean(dim=1)
        for b in range(2):
            length = int(batch.word_mask[b].sum())
            alone = model.encode_text(batch.words[b : b + 1, :length], batch.word_mask[b : b + 1, :length]).mean(dim=1)
            torch.testing.assert_close(text[b], alone[0] / alone.norm())
    torch.testing.assert_close(video, pooled / pooled.norm(dim=1, keepdim=True))


def test_hidden_pixels_never_reach_the_encoder() -> None:
    model, batch = tiny_model().eval(), tiny_batch(2)
    grid = rearrange(batch.frames.clone(), "b (t p) (h q) (w r) c -> b (t h w) p q r c", p=2, q=4, r=4)
    for b in range(2):
        grid[b, batch.hidden[b]] = 0
    blanked = rearrange(grid, "b (t h w) p q r c -> b (t p) (h q) (w r) c", t=2, h=4)
    assert not torch.equal(blanked, batch.frames)
    with torch.no_grad():
        assert torch.equal(model.encode_video(blanked, batch.visible), model.encode_video(batch.frames, batch.visible))


def test_matching_of_pairs_sees_every_token_and_no_padding() -> None:
    model, batch = tiny_model().eval(), tiny_batch(3)
    with torch.no_grad():
        logits = model.match_pairs(batch.frames, batch.words, batch.word_mask)
        for b in range(3):
            words = batch.words[b : b + 1, : int(batch.word_mask[b].sum())]
            every = torch.arange(TOKENS)[None]
            tokens = [model.embed_patches(batch.frames[b : b + 1], every), model.embed_words(words)]
            pooled = model.encoder(torch.cat(tokens, dim=1)).mean(dim=1)
            torch.testing.assert_close(logits[b : b + 1], model.match_head(pooled))


def test_the_two_towers_do_not_share_weights_and_leave_padding_out() -> None:
    towers, batch = tiny_towers(drop_path=0.1).eval(), tiny_batch(2)
    assert not {id(p) for p in towers.video.parameters()} & {id(p) for p in towers.text.parameters()}
    with torch.no_grad():
        assert towers.encode_video(batch.frames).shape == (2, TINY.width)
        length = int(batch.word_mask[1].sum())
        assert length < 8
        alone = towers.encode_text(batch.words[1:, :length], batch.word_mask[1:, :length])
        torch.testing.assert_close(towers.encode_text(batch.words, batch.word_mask)[1:], alone)


def test_shared_towers_read_words_with_the_video_encoder_and_store_it_once() -> None:
    untied, shared, batch = tiny_towers(match=True), tiny_towers(shared=True, match=True, seed=1), tiny_batch(2)
    encoder = {name for name in untied.state_dict() if name.startswith(("text.blocks.", "text.fc_norm."))}
    assert encoder
    assert shared.state_dict().keys() == untied.state_dict().keys() - encoder
    assert shared.state_dict().keys() == dict(shared.named_parameters()).keys()
    shared.encode_text(batch.words, batch.word_mask).sum().backward()
    assert all(p.grad is not None for module in (shared.video.blocks, shared.text.words) for p in module.parameters())

    stored = shared.state_dict()
    twin = {name.replace("video.", "text."): value for name, value in stored.items() if name.startswith("video.")}
    untied.load_state_dict(stored | {name: twin[name] for name in encoder})
    with torch.no_grad():
        for one, other in (
            (untied.embed_video(batch.frames), shared.embed_video(batch.frames)),
            (untied.embed_text(batch.words, batch.word_mask), shared.embed_text(batch.words, batch.word_mask)),
        ):
            torch.testing.assert_close(one, other)


def test_tower_embeddings_are_unit_vectors_in_fp32() -> None:
    towers, batch = tiny_towers().eval(), tiny_batch(2)
    with torch.no_grad():
        for model in (towers, towers.to(torch.bfloat16)):
            encoded = model.encode_video(batch.frames), model.encode_text(batch.words, batch.word_mask)
            found = model.embed_video(batch.frames), model.embed_text(batch.words, batch.word_mask)
            for vectors, pooled in zip(found, encoded, strict=True):
                assert vectors.dtype == torch.float32
                torch.testing.assert_close(vectors * pooled.float().norm(dim=1, keepdim=True), pooled.float())


def test_matching_without_a_head_is_refused() -> None:
    batch = tiny_batch(2)
    with pytest.raises(ValueError, match=r"no matching head: fine-tune with objectives\.vtm above 0"):
        tiny_towers().match_pairs(batch.frames, batch.words, batch.word_mask)


def test_stochastic_depth_grows_from_zero_to_the_last_block() -> None:
    layers = Blocks(24, depth=3, heads=3, mlp_ratio=4, drop_path=0.1).layers
    rates = [getattr(layer.drop_path1, "drop_prob", 0.0) for layer in layers]
    assert rates == pytest.approx([0.0, 0.05, 0.1])


def test_weight_decay_spares_biases_norms_and_vectors() -> None:
    model = tiny_model()
    model.match_head.weight.requires_grad_(False)
    decay, spared = parameter_groups(model, 0.05)
    names = {id(p): n for n, p in model.named_parameters()}
    decayed, others = ({names[id(p)] for p in group["params"]} for group in (decay, spared))
    assert (decay["weight_decay"], spared["weight_decay"]) == (0.05, 0.0)
    assert {"patches.weight", "encoder.blocks.layers.0.attn.qkv.weight", "word_head.weight"} <= decayed
    assert {"decoder.mask_token", "encoder.norm.weight", "encoder.blocks.layers.0.attn.qkv.q_bias"} <= others
    assert decayed | others == set(names.values()) - {"match_head.weight"}
    assert not decayed & others


def test_wrong_sizes_are_refused_with_the_field_to_change() -> None:
    with pytest.raises(ValueError, match="width of 24 cannot be split into 5"):
        Blocks(24, depth=1, heads=5, mlp_ratio=4)
    with pytest.raises(ValueError, match=r"captions of 21 words .* 20 positions: lower data\.max_words"):
        tiny_model().encode_text(torch.ones(1, 21, dtype=torch.long), torch.ones(1, 21, dtype=torch.bool))
