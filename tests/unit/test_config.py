"""Configurations survive the way to YAML and back; impossible ones are refused by the name of the field."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from simvtp_ds.config import ContrastiveConfig, MaskConfig, ModelConfig, PretrainConfig, RunConfig, ScheduleConfig
from simvtp_ds.config_files import load_config, save_config
from simvtp_ds.data_config import DataConfig


def test_a_saved_configuration_is_read_back_as_it_was(tmp_path: Path) -> None:
    config = PretrainConfig(
        data=DataConfig(manifest="a: b #c", crop_scales=(1.0, 0.5)), run=replace(RunConfig(), dir="runs/ä", seed=7)
    )
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config


@pytest.mark.parametrize("text", ["data: {manifst: x}", "{", "data: {num_frames: many}", "[]"])
def test_a_file_that_is_no_configuration_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"config\.yaml is not a configuration"):
        load_config(path)
    with pytest.raises(ValueError, match="no such configuration file"):
        load_config(tmp_path / "nosuch.yaml")


@pytest.mark.parametrize(
    ("field", "make"),
    [
        ("data.num_frames", lambda: DataConfig(num_frames=0)),
        ("data.max_words", lambda: DataConfig(max_words=2)),
        ("data.crop_scales", lambda: DataConfig(crop_scales=(1.5,))),
        ("masks.tube_ratio", lambda: MaskConfig(tube_ratio=1.0)),
        ("masks.word_ratio", lambda: MaskConfig(word_ratio=-0.1)),
        ("run.keep", lambda: RunConfig(keep=0)),
        ("run.step_timeout", lambda: RunConfig(step_timeout=0)),
        ("schedule.warmup_epochs", lambda: ScheduleConfig(warmup_epochs=-1)),
        ("contrastive.temperature", lambda: ContrastiveConfig(temperature=0.0)),
        ("contrastive.temperature", lambda: ContrastiveConfig(temperature=-1.0)),
        ("model.depth", lambda: ModelConfig(depth=0)),
        ("model.text_dropout", lambda: ModelConfig(text_dropout=2.0)),
        ("data.image_size 225", lambda: PretrainConfig(data=DataConfig(image_size=225))),
        ("data.num_frames 15", lambda: PretrainConfig(data=DataConfig(num_frames=15))),
        ("model.width 770", lambda: PretrainConfig(model=ModelConfig(width=770))),
        ("masks.tube_ratio 0.001", lambda: PretrainConfig(masks=MaskConfig(tube_ratio=0.001))),
        (
            "masks.rebuild_half",
            lambda: PretrainConfig(data=DataConfig(num_frames=12), masks=MaskConfig(rebuild_half=True)),
        ),
        ("data.max_words 600", lambda: PretrainConfig(data=DataConfig(max_words=600))),
    ],
)
def test_an_impossible_value_is_refused_by_the_name_of_its_field(field: str, make) -> None:
    with pytest.raises(ValueError, match=field):
        make()
