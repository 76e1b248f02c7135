"""Out and in again: every format that is written is read back bit for bit, and the golden files pass on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hf_models import hf_pretraining
from safetensors.torch import load_file
from saved_runs import CAPTIONS, finetuning_run, pretraining_run, words
from test_formats import assert_equal_states, reconstruction_as_theirs
from tiny import tiny_batch
from transformers import VideoMAEForPreTraining

import simvtp_ds
from simvtp_ds.engine.convert import convert
from simvtp_ds.interop import exporting, golden
from simvtp_ds.interop.autodetect import read_source
from simvtp_ds.interop.formats import VIDEOMAE
from simvtp_ds.interop.source import whole_model


def quietly(path: Path, out: Path, to: str = "simvtp-ds", **options: Any) -> list[str]:
    """Convert; the lines of the report."""
    lines: list[str] = []
    convert(str(path), out, to, lines.append, **options)
    return lines


@pytest.mark.parametrize("name", ["pretrain", "pretrain_padded", "finetune"])
def test_golden_files_pass_by_way_of_convert(
    shared: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture
) -> None:
    file = shared / "golden" / f"{name}.safetensors"
    authors = golden.load(file).section("weights")
    torch.save({"module": authors}, tmp_path / "checkpoint.pth")
    quietly(file, tmp_path / "ours")
    assert golden.main([str(file), "--weights", str(tmp_path / "ours")]) == 0
    assert "DIFFERS" not in capsys.readouterr().out
    assert_equal_states(read_source(tmp_path / "checkpoint.pth").state, read_source(tmp_path / "ours").state)

    quietly(tmp_path / "ours", tmp_path / "back.pth", "simvtp")
    back = torch.load(tmp_path / "back.pth", weights_only=True)["model"]
    unused = {n for n in authors if n.startswith(("video_encoder.text_embeddings.", "text_encoder.patch_embed."))}
    assert back.keys() == authors.keys()
    assert_equal_states({n: back[n] for n in back.keys() - unused}, {n: authors[n] for n in back.keys() - unused})
    assert unused == set() or name == "finetune"


def test_a_difference_on_the_way_fails_the_golden_check(shared: Path, tmp_path: Path) -> None:
    file = shared / "golden" / "pretrain.safetensors"
    quietly(file, tmp_path / "ours")
    weights = tmp_path / "ours" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 0x40
    weights.write_bytes(data)
    assert golden.main([str(file), "--weights", str(tmp_path / "ours")]) == 1


def test_huggingface_goes_in_and_out_bit_for_bit_and_rebuilds_alike(tmp_path: Path) -> None:
    hf_pretraining().save_pretrained(tmp_path / "theirs")
    quietly(tmp_path / "theirs", tmp_path / "ours")
    report = quietly(tmp_path / "ours", tmp_path / "back", "hf-videomae")
    assert report[-1].endswith("tensors written")  # nothing left out
    files = [load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "back")]
    assert_equal_states(files[1], files[0])

    pretraining_run(tmp_path / "run")
    report = quietly(tmp_path / "run", tmp_path / "out", "hf-videomae")
    assert "  left out word_head.bias" in report
    loaded = VideoMAEForPreTraining.from_pretrained(tmp_path / "out").eval()
    model: Any = whole_model(read_source(export(tmp_path / "run", tmp_path / "whole")))
    assert reconstruction_as_theirs(loaded, model, clips=3, visible=16) < 1e-4


def export(run: Path, out: Path) -> Path:
    quietly(run, out)
    return out


def test_transformers_that_reads_other_values_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretraining_run(tmp_path / "run")
    read = VideoMAEForPreTraining.from_pretrained

    def zero_biases(*args: Any, **kwargs: Any) -> Any:
        model: Any = read(*args, **kwargs)
        attention: Any = model.videomae.encoder.layer[0].attention
        torch.nn.init.zeros_(attention.attention.query.bias)
        return model

    monkeypatch.setattr(VideoMAEForPreTraining, "from_pretrained", zero_biases)
    with pytest.raises(ValueError, match=r"transformers does not read videomae\.encoder\.layer\.0\..*q_bias"):
        quietly(tmp_path / "run", tmp_path / "out", "hf-videomae")
    assert not (tmp_path / "out").exists()


def test_videomae_and_simvtp_checkpoints_go_out_and_in_bit_for_bit(tmp_path: Path) -> None:
    model = pretraining_run(tmp_path / "run")
    quietly(tmp_path / "run", tmp_path / "videomae.pth", "videomae")
    back = read_source(tmp_path / "videomae.pth")
    video = {n: value for n, value in model.state_dict().items() if n.startswith(VIDEOMAE.needs)}
    assert_equal_states(back.state, video)
    quietly(tmp_path / "run", tmp_path / "simvtp.pth", "simvtp")
    assert_equal_states(read_source(tmp_path / "simvtp.pth").state, dict(model.state_dict()))


@pytest.mark.parametrize("tied", [False, True])
def test_two_towers_go_out_to_the_authors_and_embed_alike(tmp_path: Path, tied: bool) -> None:
    model, batch = finetuning_run(tmp_path / "run", shared=tied, match=True), tiny_batch(3)
    report = quietly(tmp_path / "run", tmp_path / "simvtp.pth", "simvtp")
    assert "  left out match_head.weight" in report
    quietly(
        tmp_path / "simvtp.pth",
        tmp_path / "ours",
        config=tmp_path / "run" / "config.yaml",
        tokenizer=tmp_path / "run" / "tokenizer",
    )
    back = simvtp_ds.load(tmp_path / "ours")
    assert (back.kind, back.matches) == ("finetune", False)
    with torch.no_grad():
        torch.testing.assert_close(back.model.embed_video(batch.frames), model.embed_video(batch.frames))
        ids = torch.from_numpy(words().encode(CAPTIONS[0], 8))[None]
        seen = torch.ones_like(ids, dtype=torch.bool)
        torch.testing.assert_close(back.model.embed_text(ids, seen), model.embed_text(ids, seen))


def test_every_name_of_the_source_stands_in_the_report(tmp_path: Path) -> None:
    hf_pretraining().save_pretrained(tmp_path / "theirs")
    text = "\n".join(quietly(tmp_path / "theirs", tmp_path / "ours"))
    for line in (
        "VideoMAE of Hugging Face; tensors: 55 used, 11 reshaped, 0 ignored, 9 missing",
        "used     videomae.encoder.layer.*.attention.attention.key.weight -> encoder.blocks.layers.*.attn.qkv.weight "
        "(x 2); queries, keys and values joined",
        "used     mask_token -> decoder.mask_token; [1, 1, 12] to [12]",
        "missing  words.embeddings.word_embeddings.weight",
        "missing  match_head.bias",
    ):
        assert line in text, text


def test_a_start_without_words_is_no_model_to_search_with(tmp_path: Path) -> None:
    hf_pretraining().save_pretrained(tmp_path / "theirs")
    quietly(tmp_path / "theirs", tmp_path / "ours")
    with pytest.raises(ValueError, match=r"is no whole model, it has no match_head\.\*, word_head\.\*, words\.\*"):
        simvtp_ds.load(tmp_path / "ours")


def test_a_model_without_its_tokenizer_says_how_to_get_one(shared: Path, tmp_path: Path) -> None:
    quietly(shared / "golden" / "finetune.safetensors", tmp_path / "ours")
    with pytest.raises(ValueError, match="has no tokenizer: convert the model again, with --tokenizer"):
        simvtp_ds.load(tmp_path / "ours")
    words().save(tmp_path)
    with pytest.raises(ValueError, match="this run's tokenizer has"):
        quietly(shared / "golden" / "finetune.safetensors", tmp_path / "other", tokenizer=tmp_path)


def test_sizes_that_no_shape_tells_come_from_a_configuration(tmp_path: Path) -> None:
    pretraining_run(tmp_path / "run")
    bare = tmp_path / "run" / "checkpoints" / "step_00000001" / "weights.safetensors"
    with pytest.raises(ValueError, match="does not tell decoder_heads, heads, patch_size, tubelet_size of its model"):
        quietly(bare, tmp_path / "ours")
    quietly(bare, tmp_path / "ours", config=tmp_path / "run" / "config.yaml")
    expected = read_source(export(tmp_path / "run", tmp_path / "whole"))
    assert read_source(tmp_path / "ours").sizes == expected.sizes


def test_nothing_is_overwritten_and_nothing_half_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretraining_run(tmp_path / "run")
    with pytest.raises(ValueError, match="is there already: name another"):
        quietly(tmp_path / "run", tmp_path / "run")
    with pytest.raises(ValueError, match="there is no folder"):
        quietly(tmp_path / "run", tmp_path / "nowhere" / "out")

    def full(*_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(exporting, "write_exported", full)
    with pytest.raises(OSError, match="No space left"):
        quietly(tmp_path / "run", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_two_towers_have_no_pixel_decoder_to_give(tmp_path: Path) -> None:
    finetuning_run(tmp_path / "run")
    for to in ("hf-videomae", "videomae"):
        with pytest.raises(ValueError, match=f"--to {to} takes a pre-training model"):
            quietly(tmp_path / "run", tmp_path / "out", to)
