"""What a run starts from: the weights in the model, or one line that says why not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_models import hf_pretraining, write_bert
from saved_runs import DATA, finetuning_run, pretraining_run, words
from tiny import IMAGE_SIZE, NUM_FRAMES, TINY, tiny_model

from simvtp_ds.config import MaskConfig, ModelConfig, PretrainConfig
from simvtp_ds.config_files import save_config
from simvtp_ds.data.text import train_wordpiece
from simvtp_ds.engine.convert import convert
from simvtp_ds.engine.start import Start, finetuning_source, pretraining_start, towers_start
from simvtp_ds.finetune_config import FinetuneConfig, RetrievalObjectiveConfig
from simvtp_ds.interop.authors import state_to_authors
from simvtp_ds.interop.autodetect import read_source
from simvtp_ds.model.retrieval import TwoTower
from simvtp_ds.model.simvtp import SimVTP


@pytest.fixture
def videomae(tmp_path: Path) -> str:
    """A folder of Hugging Face's VideoMAE of the tiny model's sizes."""
    hf_pretraining().save_pretrained(tmp_path / "videomae")
    return str(tmp_path / "videomae")


def started(**fields: Any) -> Start | None:
    config = PretrainConfig(data=DATA, model=fields.pop("model", TINY), **fields)
    return pretraining_start(config, words())


def test_pretraining_starts_from_videomae_and_bert_as_the_paper_does(videomae: str, tmp_path: Path) -> None:
    bert = write_bert(tmp_path / "bert")
    start = started(init=videomae, init_words=bert)
    assert start is not None
    model = SimVTP(TINY, NUM_FRAMES, IMAGE_SIZE, words().vocab_size)
    found = model.load_state_dict(start.state, strict=False)
    heads = {"word_head.weight", "word_head.bias", "match_head.weight", "match_head.bias"}
    assert set(found.missing_keys) == set(start.missing) == heads
    assert not found.unexpected_keys
    lines = start.lines()
    assert "VideoMAE of Hugging Face" in lines[0]
    assert "BERT embeddings" in lines[1]
    assert lines[2] == "init: 4 tensors start at random: match_head.*, word_head.*"
    assert [file["format"] for file in start.as_json()["files"]] == ["VideoMAE of Hugging Face", "BERT embeddings"]

    convert(videomae, tmp_path / "joined", "simvtp-ds", lambda line: None, words=bert)
    joined = started(init=str(tmp_path / "joined"))
    assert joined is not None
    assert joined.state.keys() == start.state.keys()
    assert all(torch.equal(joined.state[name], start.state[name]) for name in start.state)


def test_what_a_file_does_not_tell_is_taken_for_granted_aloud(tmp_path: Path) -> None:
    state = tiny_model().state_dict()
    state = {name: value for name, value in state.items() if not name.startswith(("words.", "word_head."))}
    torch.save({"model": state}, tmp_path / "bare.pth")
    start = started(init=str(tmp_path / "bare.pth"))
    assert start is not None
    assert f"init: {tmp_path / 'bare.pth'} does not tell its attention heads: 3 are taken" in start.lines()
    convert(write_bert(tmp_path / "bert"), tmp_path / "words", "simvtp-ds", lambda line: None)
    (tmp_path / "words" / "tokenizer.json").unlink()
    start = started(init_words=str(tmp_path / "words"))
    assert start is not None
    assert "comes without a tokenizer" in start.lines()[1]


def test_words_alone_are_a_start(tmp_path: Path) -> None:
    start = started(init_words=write_bert(tmp_path / "bert"))
    assert start is not None
    assert all(name.startswith("words.") for name in start.state)
    pretraining_run(tmp_path / "run")
    again = started(init_words=str(tmp_path / "run"))
    assert again is not None
    assert again.state.keys() == start.state.keys()


def test_an_encoder_alone_leaves_the_decoder_to_the_run(tmp_path: Path) -> None:
    state = {n: v for n, v in tiny_model().state_dict().items() if n.startswith(("patches.", "encoder."))}
    theirs = {name.removeprefix("encoder."): value for name, value in state_to_authors(state, TINY).items()}
    torch.save({"module": theirs}, tmp_path / "encoder.pth")  # as VideoMAE's fine-tuning calls them
    source = read_source(tmp_path / "encoder.pth")
    config = tmp_path / "sizes.yaml"
    save_config(PretrainConfig(data=DATA, model=TINY), config)
    assert "decoder_width" not in source.sizes
    convert(str(tmp_path / "encoder.pth"), tmp_path / "ours", "simvtp-ds", lambda line: None, config=config)
    wider = replace(TINY, decoder_width=16)
    for path in ("encoder.pth", "ours"):
        start = started(init=str(tmp_path / path), model=wider)
        assert start is not None
        assert start.state.keys() == state.keys()


def test_other_clip_lengths_and_sizes_start_from_the_same_weights(videomae: str) -> None:
    longer = replace(DATA, num_frames=8, image_size=24)
    start = pretraining_start(PretrainConfig(data=longer, model=TINY, init=videomae), words())
    assert start is not None
    model = SimVTP(TINY, 8, 24, words().vocab_size)
    model.load_state_dict(start.state, strict=False)
    assert model.positions.table.shape == (4 * 6 * 6, TINY.width)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": replace(TINY, width=48)}, "its model.width is 24, not 48; choose a --preset or --model"),
        ({"model": replace(TINY, heads=2)}, "its model.heads is 3, not 2"),
        ({"model": replace(TINY, decoder_depth=2)}, "its model.decoder_depth is 1, not 2"),
        (
            {"model": replace(TINY, patch_size=8), "masks": MaskConfig(tube_ratio=0.5)},
            "its model.patch_size is 4, not 8",
        ),
        ({"init_words": "WIDE"}, "are 32 wide, the encoder of .* is 24: name a BERT with 24"),
        ({"init": "", "init_words": "VIDEOMAE"}, "has no word embeddings of one encoder: name a BERT"),
        ({"init_words": "nobody/bert"}, "nothing is downloaded here"),
        ({"init": "TOWERS"}, "holds two towers, which pre-training cannot start from"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_to_change(
    videomae: str, tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    finetuning_run(tmp_path / "towers")
    write_bert(tmp_path / "wide", width=32)
    places = {"WIDE": str(tmp_path / "wide"), "VIDEOMAE": videomae, "TOWERS": str(tmp_path / "towers")}
    fields = {"init": videomae} | {name: places.get(str(value), value) for name, value in fields.items()}
    with pytest.raises(ValueError, match=message):
        started(**fields)


def test_other_vocabularies_are_refused(tmp_path: Path) -> None:
    model = pretraining_run(tmp_path / "run")
    config = PretrainConfig(data=DATA, model=TINY, init=str(tmp_path / "run"))
    start = pretraining_start(config, words())
    assert start is not None
    assert start.missing == []
    assert all(torch.equal(start.state[name], value) for name, value in model.state_dict().items())
    smaller = train_wordpiece(["a dog"], 100)
    with pytest.raises(ValueError, match=f"embeddings of {words().vocab_size} words, this run's tokenizer has"):
        pretraining_start(config, smaller)
    renamed = train_wordpiece(["a rqd ball rolls", "a dog", "two dogs run to a ball"], 100)
    assert renamed.vocab_size == words().vocab_size
    with pytest.raises(ValueError, match="was trained with other words than those of this run's tokenizer"):
        pretraining_start(config, renamed)


def finetuned(init: str, towers: Any = "untied", match: bool = False, **fields: Any) -> tuple[Start, ModelConfig]:
    objectives = RetrievalObjectiveConfig(vtm=float(match))
    config = FinetuneConfig(init=init, data=DATA, towers=towers, objectives=objectives, **fields)
    source = finetuning_source(config)
    assert source is not None
    return towers_start(config, source), source.model()


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("match", [False, True])
def test_fine_tuning_goes_on_from_fine_tuned_towers(tmp_path: Path, shared: bool, match: bool) -> None:
    model, towers = finetuning_run(tmp_path / "run", shared, match), "shared" if shared else "untied"
    for path in (tmp_path / "run", tmp_path / "exported"):
        start, sizes = finetuned(str(path), towers, match)
        assert sizes == TINY
        assert start.state.keys() == model.state_dict().keys()
        assert all(torch.equal(start.state[name], value) for name, value in model.state_dict().items())
        if not (tmp_path / "exported").exists():
            convert(str(path), tmp_path / "exported", "simvtp-ds", lambda line: None)
    without, _ = finetuned(str(tmp_path / "run"), towers)
    assert bool(without.reports[0].ignored) is match
    with pytest.raises(ValueError, match="set towers to that"):
        finetuned(str(tmp_path / "run"), "untied" if shared else "shared", match)
    if not match:
        with pytest.raises(ValueError, match=r"no matching head to start from: set objectives\.vtm to 0"):
            finetuned(str(tmp_path / "run"), towers, match=True)


def test_fine_tuning_starts_from_videomae_with_words_of_a_bert(videomae: str, tmp_path: Path) -> None:
    start, sizes = finetuned(videomae, init_words=write_bert(tmp_path / "bert"))
    assert (sizes.heads, sizes.patch_size, sizes.text_positions) == (TINY.heads, 4, TINY.text_positions)
    towers = TwoTower(sizes, NUM_FRAMES, IMAGE_SIZE, words().vocab_size)
    towers.load_state_dict(start.state)
    with pytest.raises(ValueError, match=r"has no words\.\*: name a BERT with --init_words"):
        finetuned(videomae)
    with pytest.raises(ValueError, match="has no matching head to start from"):
        finetuned(videomae, init_words=str(tmp_path / "bert"), match=True)
    with pytest.raises(ValueError, match="needs an encoder: name one with --init"):
        finetuning_source(FinetuneConfig(data=DATA, model=TINY, init_words="bert"))


def test_sizes_of_the_start_are_those_that_were_saved(tmp_path: Path) -> None:
    pretraining_run(tmp_path / "run")
    assert finetuned(str(tmp_path / "run"))[1] == TINY
    torch.save({"model": tiny_model().state_dict()}, tmp_path / "bare.pth")
    with pytest.raises(ValueError, match="does not tell decoder_heads, heads, patch_size, tubelet_size of its model"):
        finetuned(str(tmp_path / "bare.pth"))
