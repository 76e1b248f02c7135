"""Weights of other models under our names: every tensor in its place, every name accounted for."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from einops import rearrange
from hf_models import hf_config, hf_pretraining, old_names, write_bert
from safetensors.torch import load_file, save_file
from saved_runs import randomised, words
from tiny import TINY, TOKENS, tiny_model
from torch import Tensor
from transformers import VideoMAEForVideoClassification, VideoMAEModel

from simvtp_ds.data.augment import PIXEL_MEAN, PIXEL_STD
from simvtp_ds.interop.authors import state_to_authors
from simvtp_ds.interop.autodetect import read_source
from simvtp_ds.interop.formats import to_our_names
from simvtp_ds.interop.reading import read_weights_file
from simvtp_ds.model.patches import gather_patches, sine_positions
from simvtp_ds.model.simvtp import SimVTP
from simvtp_ds.objectives.pixels import pixel_loss, pixel_target

VIDEO = ("patches.", "encoder.", "decoder.")


def videomae_state() -> dict[str, Tensor]:
    """VideoMAE's pre-training state dict of the tiny model."""
    state = {name: value for name, value in tiny_model().state_dict().items() if name.startswith(VIDEO)}
    return state_to_authors(state, TINY)


def assert_equal_states(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def reconstruction_as_theirs(theirs: Any, model: SimVTP, clips: int, visible: int) -> float:
    """The largest difference between their reconstruction and ours of the same clips and mask; losses are compared."""
    config, generator = theirs.config, torch.Generator().manual_seed(1)
    size = (clips, config.num_frames, config.image_size, config.image_size, 3)
    frames = torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)
    tokens = theirs.videomae.embeddings.num_patches
    order = torch.stack([torch.randperm(tokens, generator=generator) for _ in range(clips)])
    seen, hidden = order[:, :visible].sort().values, order[:, visible:].sort().values
    normalised = (frames.float() / 255 - torch.tensor(PIXEL_MEAN)) / torch.tensor(PIXEL_STD)
    mask = torch.zeros(clips, tokens, dtype=torch.bool).scatter(1, hidden, True)
    with torch.no_grad():
        expected = theirs(rearrange(normalised, "b t h w c -> b t c h w"), mask)
        rebuilt = model.decode_pixels(model.encode_video(frames, seen), seen, hidden)
    target = pixel_target(gather_patches(frames, hidden, config.tubelet_size, config.patch_size))
    torch.testing.assert_close(pixel_loss(rebuilt, target), expected.loss, rtol=1e-4, atol=1e-5)
    return float((rebuilt - expected.logits).abs().max())


@pytest.mark.parametrize("names", ["in memory", "in files"])
def test_huggingface_videomae_reconstructs_alike_under_both_namings_of_its_biases(tmp_path: Path, names: str) -> None:
    theirs = hf_pretraining()
    theirs.decoder.norm.eps = 1e-6  # they leave this one at torch's 1e-5
    theirs.config.save_pretrained(tmp_path)
    state = theirs.state_dict()
    assert any(name.endswith("query.bias") for name in state)
    save_file(old_names(state) if names == "in files" else state, tmp_path / "model.safetensors", {"format": "pt"})
    source = read_source(tmp_path)
    block = "encoder.blocks.layers.1.attn.qkv"
    attention = theirs.videomae.encoder.layer[1].attention.attention
    assert torch.equal(source.state[f"{block}.q_bias"], attention.query.bias)
    assert torch.equal(source.state[f"{block}.v_bias"], attention.value.bias)
    assert source.state[f"{block}.q_bias"].abs().min() > 0
    assert (source.sizes["heads"], source.sizes["patch_size"]) == (TINY.heads, TINY.patch_size)
    assert source.clip == {"num_frames": 4, "image_size": 16}

    model = tiny_model().eval()
    model.load_state_dict(source.state, strict=False)
    assert reconstruction_as_theirs(theirs, model, clips=3, visible=16) < 1e-5


def test_what_transformers_saves_is_read(tmp_path: Path) -> None:
    theirs = hf_pretraining()
    theirs.save_pretrained(tmp_path)
    expected = to_our_names(theirs.state_dict(), "memory").state
    assert_equal_states(read_source(tmp_path).state, expected)
    assert_equal_states(read_source(tmp_path / "model.safetensors").state, expected)
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert not (tmp_path / "shards" / "model.safetensors").exists()
    assert_equal_states(read_source(tmp_path / "shards").state, expected)


def test_the_encoder_alone_and_a_classifier_of_huggingface_are_starts(tmp_path: Path) -> None:
    bare = randomised(VideoMAEModel(hf_config()))
    bare.save_pretrained(tmp_path / "bare")  # pyright: ignore[reportCallIssue] (a Module to pyright)
    classifier: Any = randomised(VideoMAEForVideoClassification(hf_config(use_mean_pooling=True)))
    classifier.save_pretrained(tmp_path / "classifier")
    for name, norm in (("bare", bare.layernorm), ("classifier", classifier.fc_norm)):
        source = read_source(tmp_path / name)
        assert source.has("patches.", "encoder.")
        assert not source.has("decoder.")
        assert torch.equal(source.state["encoder.norm.weight"], norm.weight)  # pyright: ignore
    assert source.reports[0].ignored == ["classifier.bias", "classifier.weight"]
    hf_pretraining(use_mean_pooling=True).save_pretrained(tmp_path / "normless")
    with pytest.raises(ValueError, match="use_mean_pooling its encoder ends without a norm"):
        read_source(tmp_path / "normless")


@pytest.mark.parametrize(
    ("key", "prefix"), [("model", ""), ("module", "_orig_mod."), ("model", "module."), (None, "module._orig_mod.")]
)
def test_videomae_checkpoints_are_read_through_their_wrappers(tmp_path: Path, key: str | None, prefix: str) -> None:
    state = {prefix + name: value for name, value in videomae_state().items()}
    held = state if key is None else {"epoch": 1, "args": argparse.Namespace(lr=1.0), key: state}
    torch.save(held, tmp_path / "videomae.pth")
    source = read_source(tmp_path / "videomae.pth")
    assert_equal_states(source.state, {n: v for n, v in tiny_model().state_dict().items() if n.startswith(VIDEO)})
    assert (source.sizes["tubelet_size"], source.sizes["patch_size"]) == (2, 4)
    (report,) = source.reports
    assert report.format == "VideoMAE, pre-training"
    assert set(report.used) == set(videomae_state())
    assert {name.split(".")[0] for name in report.missing} == {"words", "word_head", "match_head"}
    assert set(report.reshaped) == {"encoder.patch_embed.proj.weight", "mask_token"}


def test_a_fine_tuned_videomae_starts_an_encoder_and_its_classifier_is_ignored() -> None:
    state = {n.removeprefix("encoder."): v for n, v in videomae_state().items() if n.startswith("encoder.")}
    state = {name.replace("norm.", "fc_norm.") if name.startswith("norm.") else name: v for name, v in state.items()}
    state |= {"head.weight": torch.zeros(400, 24), "head.bias": torch.zeros(400)}
    read = to_our_names(state, "finetuned.pth")
    assert read.report.ignored == ["head.bias", "head.weight"]
    ours = tiny_model().state_dict()
    assert_equal_states(read.state, {n: v for n, v in ours.items() if n.startswith(("patches.", "encoder."))})


def test_half_precision_becomes_fp32_and_is_reported() -> None:
    read = to_our_names({name: value.half() for name, value in videomae_state().items()}, "half.pth")
    assert all(value.dtype == torch.float32 for value in read.state.values())
    assert read.report.reshaped["encoder.norm.weight"] == "float16 to float32"


def test_position_tables_of_sines_are_recomputed_and_learnt_ones_refused() -> None:
    table = sine_positions(TOKENS, TINY.width)[None]
    read = to_our_names(videomae_state() | {"encoder.pos_embed": table}, "a.pth")
    assert read.report.notes == ["encoder.pos_embed is the table of sines that the model computes itself"]
    with pytest.raises(ValueError, match=r"encoder\.pos_embed is learnt, ours are sines"):
        to_our_names(videomae_state() | {"encoder.pos_embed": torch.randn_like(table)}, "a.pth")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder.cls_token": torch.zeros(1)}, r"1 tensors that it has no place for, such as encoder\.cls_token"),
        ({"encoder.blocks.1.attn.v_bias": None}, r"lacks encoder\.blocks\.layers\.1\.attn\.qkv\.v_bias"),
        ({"mask_token": None}, r"lacks decoder\.mask_token"),
        ({"decoder.norm.weight": torch.zeros(7)}, r"decoder\.norm\.weight has the shape \[7\], the other tensors"),
        ({"encoder.patch_embed.proj.weight": torch.zeros(24, 3, 4, 4)}, "must be a matrix"),
        ({"encoder.norm.weight": torch.zeros(24, dtype=torch.int64)}, "holds torch.int64"),
    ],
)
def test_more_or_less_than_expected_is_an_error(change: dict[str, Tensor | None], message: str) -> None:
    state = {name: value for name, value in (videomae_state() | change).items() if value is not None}
    with pytest.raises(ValueError, match=rf"^a\.pth.*{message}"):
        to_our_names(state, "a.pth")


def test_word_embeddings_of_a_bert_come_with_its_tokenizer(tmp_path: Path) -> None:
    bert = Path(write_bert(tmp_path / "bert", width=384))
    source, tensors = read_source(bert), load_file(bert / "model.safetensors")
    assert torch.equal(
        source.state["words.embeddings.word_embeddings.weight"], tensors["embeddings.word_embeddings.weight"]
    )
    assert source.sizes == {"width": 384, "text_positions": TINY.text_positions}
    assert source.tokenizer is not None
    assert source.tokenizer.same_words(words())
    assert set(source.reports[0].used) | set(source.reports[0].ignored) == set(tensors)
    assert {name.split(".")[0] for name in source.reports[0].ignored} == {"encoder", "pooler"}
    torch.save({"model": videomae_state()}, tmp_path / "videomae.pth")
    with pytest.raises(ValueError, match=r"are 384 wide, the encoder of .* is 24: name a BERT with 24"):
        read_source(tmp_path / "videomae.pth").with_words_of(source)

    # As Google's first files have it.
    legacy = {f"bert.{name.replace('Norm.weight', 'Norm.gamma')}": value for name, value in tensors.items()}
    legacy = {name.replace("Norm.bias", "Norm.beta"): value for name, value in legacy.items()}
    read = to_our_names(legacy | {"cls.predictions.bias": torch.zeros(1)}, "legacy.bin")
    assert_equal_states(read.state, source.state)
    assert "cls.predictions.bias" in read.report.ignored


def test_a_bert_by_name_comes_from_the_local_cache_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="nor a model in the local cache of Hugging Face: nothing is downloaded"):
        read_source("nobody/no-such-bert")
    cache = tmp_path / "models--somebody--bert"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("abc")
    write_bert(cache / "snapshots" / "abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert read_source("somebody/bert").sizes["width"] == TINY.width


def test_a_bare_file_of_our_own_is_read() -> None:
    state = tiny_model().state_dict()
    assert_equal_states(to_our_names(state, "weights.safetensors").state, state)


def test_a_name_given_twice_is_refused(tmp_path: Path) -> None:
    state = videomae_state()
    torch.save(state | {"module.mask_token": state["mask_token"]}, tmp_path / "twice.pth")
    with pytest.raises(ValueError, match="has mask_token twice"):
        read_weights_file(tmp_path / "twice.pth")
