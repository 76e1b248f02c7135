"""A pre-training run before its model is built: what it reads, how long it is, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from simvtp_ds.config import ComputeConfig, ModelConfig, ObjectiveConfig, PretrainConfig, ScheduleConfig
from simvtp_ds.config_files import config_parser, instantiate, load_config, save_config
from simvtp_ds.data.loader import Loader
from simvtp_ds.data.manifest import Clip, write_manifest
from simvtp_ds.data.text import train_wordpiece
from simvtp_ds.data_config import DataConfig
from simvtp_ds.ds_settings import DeepSpeedSettings, load_settings
from simvtp_ds.engine.job import Job
from simvtp_ds.engine.pretrain import pretraining_job
from simvtp_ds.finetune_config import FinetuneConfig

SMALL = DataConfig(num_frames=2, image_size=32, max_words=8, workers=1)
WORDS = ["one", "two", "three"]


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders a (60 clips), b (40) and other (40, with words of its own)."""
    root = tmp_path_factory.mktemp("corpora")
    for name, size, words in (("a", 60, WORDS), ("b", 40, WORDS), ("other", 40, ["something", "else"])):
        (root / name).mkdir()
        one = Clip("", "/x.mp4", 0, 1, words[0], 40, 25.0, 64, 48, "h264")
        write_manifest(root / name, [replace(one, clip_id=f"{name}{i}") for i in range(size)])
        train_wordpiece(words, 100).save(root / name)
    return root


def settings(folder: Path, micro: int, accumulation: int = 1) -> DeepSpeedSettings:
    path = folder / f"ds_{micro}_{accumulation}.json"
    optimizer = {"type": "AdamW", "params": {"lr": 1e-3, "weight_decay": 0.05}}
    values: dict[str, Any] = {"train_micro_batch_size_per_gpu": micro, "gradient_accumulation_steps": accumulation}
    values |= {"gradient_clipping": 0.0, "optimizer": optimizer, "zero_optimization": {"stage": 0}}
    path.write_text(json.dumps(values))
    return load_settings(path, 2)


def job(corpora: Path, data: DataConfig, micro: int = 4, accumulation: int = 1, vtm: float = 1.0) -> Job:
    """For two ranks and one epoch."""
    config = PretrainConfig(
        data=data,
        model=ModelConfig(width=32, depth=1, heads=2),
        objectives=ObjectiveConfig(vtm=vtm),
        schedule=ScheduleConfig(epochs=1, warmup_epochs=0),
    )
    return pretraining_job(config, settings(corpora, micro, accumulation), 2)


def mixed(corpora: Path, *names: str, **fields: object) -> DataConfig:
    return replace(SMALL, mixture={str(corpora / name): 1.0 for name in names}, **fields)


@pytest.mark.parametrize(("views", "micro", "steps"), [(1, 4, 7), (2, 4, 15), (4, 8, 15), (3, 12, 7)])
def test_an_epoch_has_the_steps_that_the_rows_fill_with_their_views(
    corpora: Path, views: int, micro: int, steps: int
) -> None:
    data = replace(SMALL, manifest=str(corpora / "a"), views=views)
    planned = job(corpora, data, micro)
    assert planned.schedule.total_steps == steps
    assert Loader(planned.examples, data, micro, 1, 0, 2).steps_per_epoch == steps


def test_a_mixture_is_as_long_as_all_its_rows(corpora: Path) -> None:
    data = mixed(corpora, "a", "b", views=2)
    planned = job(corpora, data, 4, accumulation=2)
    assert len(planned.examples) == 100 and planned.schedule.total_steps == 12
    assert Loader(planned.examples, data, 4, 2, 1, 2).steps_per_epoch == 12


def test_a_resume_with_another_mixture_or_number_of_views_is_another_run(corpora: Path) -> None:
    both, one = mixed(corpora, "a", "b"), replace(SMALL, manifest=str(corpora / "a"))
    manifests = [job(corpora, data).manifest.fingerprint for data in (both, one, mixed(corpora, "a"))]
    manifests.append(job(corpora, replace(both, mixture=dict.fromkeys(both.mixture, 2.0))).manifest.fingerprint)
    assert len(set(manifests[:3])) == 3 and manifests[3] == manifests[0]
    assert job(corpora, one).identity != job(corpora, replace(one, views=2)).identity


def test_corpora_with_different_words_need_a_tokenizer_by_name(corpora: Path) -> None:
    with pytest.raises(ValueError, match=r"tokenizers of \S+/a and \S+/other have different words.*data.tokenizer"):
        job(corpora, mixed(corpora, "a", "b", "other"))
    named = job(corpora, mixed(corpora, "a", "other", tokenizer=str(corpora / "other")))
    assert named.tokenizer.encode("something", 8).tolist() != named.tokenizer.encode("one", 8).tolist()


def test_a_micro_batch_that_views_do_not_fill_is_refused_before_the_model(corpora: Path) -> None:
    data = replace(SMALL, manifest=str(corpora / "a"), views=3)
    with pytest.raises(ValueError, match=r"micro_batch_size_per_gpu is 8.* 3 views .*set it to a multiple of 3"):
        job(corpora, data, 8)
    with pytest.raises(ValueError, match=r"is 3; matching needs 2 different clips with 3 views each.* set it to 6"):
        job(corpora, data, 3)
    assert job(corpora, data, 3, vtm=0.0).examples.least_clips == 1
    with pytest.raises(ValueError, match=r"60 captions in .*/a, one step takes 80 .* x 2 ranks / data.views 3\)"):
        job(corpora, data, 120)


def test_kernels_of_gpus_are_refused_where_there_are_none(corpora: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = job(corpora, mixed(corpora, "a", "b"))
    segments = replace(planned.config, compute=ComputeConfig(varlen=True))
    half = replace(planned.settings, dtype="bf16")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for capability, with_settings in (((8, 0), planned.settings), ((7, 0), half)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda c=capability: c)
        with pytest.raises(ValueError, match=rf"compute\.varlen is on, and needs .*has {with_settings.dtype}"):
            replace(planned, config=segments, settings=with_settings)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert replace(planned, config=segments, settings=half).config is segments
    fused = replace(planned.config, compute=ComputeConfig(liger=True))
    assert replace(planned, config=fused, settings=half).config is fused
    for unfit in ({"zero_stage": 3}, {"dtype": "fp16"}):
        with pytest.raises(ValueError, match=r"compute\.liger is on, and .*ds_4_1\.json has ZeRO stage"):
            replace(planned, config=fused, settings=replace(half, **unfit))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"compute\.liger is on, and needs a GPU and the package liger-kernel"):
        replace(planned, config=fused, settings=half)
    with pytest.raises(ValueError, match=r"compute\.varlen is on; it is for pre-training's step"):
        FinetuneConfig(compute=ComputeConfig(varlen=True))


def test_compiled_blocks_under_zero_3_are_refused_before_the_model(corpora: Path) -> None:
    planned = job(corpora, replace(SMALL, manifest=str(corpora / "a")))
    compiled = replace(planned.config, compute=ComputeConfig(compile=True))
    assert replace(planned, config=compiled).config is compiled
    with pytest.raises(ValueError, match=r"compute\.compile is on and .*ds_4_1\.json has ZeRO stage 3"):
        replace(planned, config=compiled, settings=replace(planned.settings, zero_stage=3))


def test_fine_tuning_refuses_views_and_mixtures_by_name() -> None:
    with pytest.raises(ValueError, match=r"data\.views is 2"):
        FinetuneConfig(data=DataConfig(views=2))
    with pytest.raises(ValueError, match=r"data\.mixture names 1 folders; .* data\.manifest"):
        FinetuneConfig(data=DataConfig(mixture={"a": 1.0}))


@pytest.mark.parametrize("weight", [0.0, -1.0, float("inf"), float("nan")])
def test_a_weight_that_is_no_share_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match=r"data\.mixture gives a the weight"):
        DataConfig(mixture={"a": weight})


def test_a_mixture_comes_from_the_command_line_and_from_yaml(tmp_path: Path) -> None:
    parser = config_parser(PretrainConfig, "pretrain_webvid", "")
    expected = {"data/a": 2.0, "../b.v1": 0.5}
    for arguments in (
        ["--data.mixture", '{"data/a": 2, "../b.v1": 0.5}'],
        ['--data.mixture={data/a: 2, "../b.v1": .5}'],
    ):
        assert instantiate(parser, parser.parse_args(arguments), PretrainConfig).data.mixture == expected
    (tmp_path / "mine.yaml").write_text("data:\n  mixture:\n    data/a: 2\n    ../b.v1: 0.5\n")
    config = instantiate(parser, parser.parse_args(["--config", str(tmp_path / "mine.yaml")]), PretrainConfig)
    assert config.data.mixture == expected
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == config
