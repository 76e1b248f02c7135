"""Presets load into their configuration, and say what the paper says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from simvtp_ds.config import PretrainConfig
from simvtp_ds.config_files import PRESETS as FOLDER
from simvtp_ds.config_files import config_parser, instantiate, saved_class
from simvtp_ds.finetune_config import FinetuneConfig

PRESETS = sorted(FOLDER.glob("*.yaml"))


def load(path: Path, *options: str) -> Any:
    parser = config_parser(saved_class(path), path.stem, "")
    return instantiate(parser, parser.parse_args([*options]), saved_class(path))


def test_the_presets_of_webvid_are_there():
    names = {path.stem for path in PRESETS}
    assert {"pretrain_webvid", "pretrain_webvid_small", "pretrain_webvid_large"} <= names


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_loads_and_makes_a_model_whose_parts_fit(path):
    config = load(path)
    assert config.model.width % config.model.heads == 0
    assert config.model.decoder_width % config.model.decoder_heads == 0
    assert config.data.image_size % config.model.patch_size == 0
    assert config.data.num_frames % config.model.tubelet_size == 0
    assert config.data.max_words <= config.model.text_positions
    assert config.schedule.max_steps or config.schedule.warmup_epochs < config.schedule.epochs


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_every_value_that_a_preset_writes_reaches_the_config(path):
    def reaches(given: dict, config: object) -> None:
        for key, value in given.items():
            found = getattr(config, key)
            if isinstance(value, dict):
                reaches(value, found)
            else:
                assert found == (tuple(value) if isinstance(value, list) else value), key

    reaches(yaml.safe_load(path.read_text()), load(path))


def test_the_base_preset_is_the_paper():
    config = load(FOLDER / "pretrain_webvid.yaml")
    assert (config.model.width, config.model.depth, config.model.heads) == (768, 12, 12)
    assert (config.model.decoder_width, config.model.decoder_depth, config.model.decoder_heads) == (384, 4, 6)
    assert (config.data.num_frames, config.data.frame_stride, config.data.image_size) == (16, 4, 224)
    assert (config.masks.tube_ratio, config.masks.word_ratio) == (0.9, 0.75)
    assert (config.schedule.epochs, config.schedule.warmup_epochs) == (200, 40)
    assert config.schedule.warmup_start == pytest.approx(1e-6 / 1.5e-4, abs=0)
    assert config.schedule.floor == pytest.approx(1e-5 / 1.5e-4, abs=0)


def test_the_command_line_wins_over_a_preset():
    config = load(FOLDER / "pretrain_webvid.yaml", "--schedule.epochs=3", "--data.manifest=x")
    assert (config.schedule.epochs, config.data.manifest) == (3, "x")


def test_the_preset_of_fine_tuning_is_the_paper():
    config = load(FOLDER / "finetune_msrvtt.yaml")
    assert (config.data.num_frames, config.data.frame_stride, config.data.image_size) == (16, 4, 224)
    assert (config.towers, config.layer_decay, config.drop_path) == ("untied", 0.75, 0.1)
    augment = config.augment
    assert (augment.magnitude, augment.operations, augment.magnitude_std, augment.erase) == (7, 4, 0.5, 0.25)
    assert (config.schedule.epochs, config.schedule.warmup_epochs) == (100, 5)
    assert (config.objectives.vtc, config.objectives.vtm, config.data.flip) == (1, 0, False)


def test_a_preset_of_another_kind_of_training_is_refused_with_those_that_fit():
    with pytest.raises(
        ValueError, match=r"finetune_msrvtt is one of another kind of training; the presets are .*webvid"
    ):
        config_parser(PretrainConfig, "finetune_msrvtt", "")
    with pytest.raises(ValueError, match=r"the presets are .*finetune_msrvtt"):
        config_parser(FinetuneConfig, "pretrain_webvid", "")
