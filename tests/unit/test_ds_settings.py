"""Every refusal of the DeepSpeed JSON, by its message; and no refusal of files that DeepSpeed documents."""

from __future__ import annotations

import ast
import copy
import inspect
import json
import random
import string
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from simvtp_ds.ds_schema import deepspeed_schema, removed_keys
from simvtp_ds.ds_settings import SettingsError, check_accelerator, load_settings

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "ds_configs").glob("*.json"))
BASE: dict[str, Any] = {
    "train_micro_batch_size_per_gpu": 4,
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "betas": [0.9, 0.95], "weight_decay": 0.05}},
    "gradient_clipping": 0.0,
    "bf16": {"enabled": True},
    "zero_optimization": {"stage": 2},
}


def write(folder: Path, config: object, name: str = "ds.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(config))
    return path


def changed(**changes: Any) -> dict[str, Any]:
    """BASE with keys replaced; `a__b=v` sets a.b, and None deletes."""
    config = copy.deepcopy(BASE)
    for key, value in changes.items():
        *parents, last = key.split("__")
        section = config
        for parent in parents:
            section = section.setdefault(parent, {})
        section.pop(last, None)
        if value is not None:
            section[last] = value
    return config


def refusal(folder: Path, config: object, world_size: int = 2) -> str:
    path = write(folder, config)
    with pytest.raises(SettingsError) as caught:
        load_settings(path, world_size)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.count(str(path)) == 1
    assert "\n" not in message
    return message


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_are_accepted(path):
    settings = load_settings(path, 2)
    given = json.loads(path.read_text())
    assert settings.raw == given
    assert settings.micro_batch == given["train_micro_batch_size_per_gpu"]
    assert settings.clipping == given["gradient_clipping"]
    assert settings.lr == given["optimizer"]["params"]["lr"]


def test_settings_are_read_from_the_file(tmp_path):
    config = changed(gradient_accumulation_steps=3, gradient_clipping=0.5, zero_optimization__stage=1)
    settings = load_settings(write(tmp_path, config), 8)
    assert (settings.micro_batch, settings.accumulation, settings.global_batch(8)) == (4, 3, 96)
    assert (settings.dtype, settings.zero_stage, settings.optimizer) == ("bf16", 1, "AdamW")
    assert (settings.lr, settings.weight_decay, settings.clipping) == (1e-3, 0.05, 0.5)


def test_the_command_of_the_paper_has_1024_clips_a_step_and_its_learning_rate():
    settings = load_settings(next(path for path in CONFIGS if path.stem == "zero2"), 64)
    assert (settings.global_batch(64), settings.dtype, settings.zero_stage) == (1024, "fp16", 2)
    assert settings.lr == pytest.approx(1.5e-4 * 1024 / 256)


def test_twins_of_zero2_differ_in_the_dtype_section_only():
    by_name = {path.stem: json.loads(path.read_text()) for path in CONFIGS}
    dtypes = {}
    for name in ("zero2", "zero2_bf16", "zero2_fp32"):
        config = by_name[name]
        dtypes[name] = {key: config.pop(key)["enabled"] for key in ("fp16", "bf16") if key in config}
        assert config == by_name["zero2"]
    assert dtypes == {"zero2": {"fp16": True}, "zero2_bf16": {"bf16": True}, "zero2_fp32": {}}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1,\n  "b": }', "not valid JSON at line 2, column 8"),
        ('{"gradient_clipping": 1.0, // none\n}', "not valid JSON at line 1, column 28"),
        ("[1, 2]", "expected a JSON object {...}, found list"),
        ('{"fp16": {"enabled": true, "enabled": false}}', "key 'enabled' stands twice"),
        ("", "not valid JSON at line 1, column 1"),
    ],
)
def test_files_that_are_no_json_object_say_where(tmp_path, text, words):
    path = tmp_path / "ds.json"
    path.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load_settings(path, 1)
    assert str(caught.value).startswith(f"{path}: ")
    assert words in str(caught.value)


def test_a_binary_file_is_refused(tmp_path):
    (tmp_path / "ds.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(SettingsError, match="not a text file in UTF-8"):
        load_settings(tmp_path / "ds.json", 1)


def test_a_missing_file_names_the_one_with_a_similar_name(tmp_path):
    write(tmp_path, BASE, "zero2_bf16.json")
    with pytest.raises(SettingsError, match=r"no such DeepSpeed config; did you mean '.*/zero2_bf16\.json'\?"):
        load_settings(tmp_path / "zero2_b16.json", 1)
    with pytest.raises(SettingsError, match="no such DeepSpeed config; the files of this project are in ds_configs/"):
        load_settings(tmp_path / "nothing" / "x.json", 1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"zero_optimisation": {"stage": 2}}, "unknown key 'zero_optimisation'; did you mean 'zero_optimization'?"),
        ({"gradient_cliping": 1.0}, "unknown key 'gradient_cliping'; did you mean 'gradient_clipping'?"),
        ({"zero_optimization__stge": 1}, "unknown key 'zero_optimization.stge'; did you mean 'stage'?"),
        ({"optimizer__param": {"lr": 1}}, "unknown key 'optimizer.param'; did you mean 'params'?"),
        ({"optimizer__params__weight_decy": 0}, "'optimizer.params.weight_decy'; did you mean 'weight_decay'?"),
        (
            {"zero_optimization__offload_optimizer": {"devise": "cpu"}},
            "'zero_optimization.offload_optimizer.devise'; did you mean 'device'?",
        ),
        ({"flops_profiler": {"enabled": True, "profile_stp": 1}}, "did you mean 'profile_step'?"),
        ({"activation_checkpointing": {"partitioned_activations": True}}, "did you mean 'partition_activations'?"),
        ({"checkpoint": {"load_universl": True}}, "'checkpoint.load_universl'; did you mean 'load_universal'?"),
        ({"checkpoint": {"writer": {"typ": "FAST"}}}, "'checkpoint.writer.typ'; did you mean 'type'?"),
        ({"schedular": {}}, "did you mean 'scheduler'?"),
        ({"stage": 2}, "unknown key 'stage'; it belongs at 'zero_optimization.stage'"),
        ({"optimizer__lr": 1e-3}, "unknown key 'optimizer.lr'; it belongs at 'optimizer.params.lr'"),
        ({"optimizer__params__foreach": True}, "unknown key 'optimizer.params.foreach'"),
        ({"optimizer__params__lr": "1e-3"}, "'optimizer.params.lr' must be a number above 0, not \"1e-3\""),
        ({"optimizer__params__lr": True}, "'optimizer.params.lr' must be a number above 0, not true"),
        ({"optimizer__params__betas": [0.9]}, "'optimizer.params.betas' must be two numbers from 0 up to"),
        ({"optimizer__params__betas": [0.9, 1.0]}, "not [0.9, 1.0]"),
        ({"optimizer__params__betas": 0.9}, "'optimizer.params.betas' must be two numbers"),
        ({"bf16__enabled": "false"}, "'bf16.enabled' must be true or false, not \"false\""),
        ({"bf16": None, "fp16": {"enabled": True, "loss_scale": "x"}}, "'fp16.loss_scale' must be a number, not \"x\""),
        ({"bf16": True}, "'bf16' must be an object {...}, not true"),
        ({"zero_optimization": True}, "'zero_optimization' must be an object {...}, not true"),
        ({"zero_optimization__stage": 4}, "'zero_optimization.stage': "),
        ({"zero_optimization__offload_optimizer": {"device": "gpu"}}, "'zero_optimization.offload_optimizer.device': "),
        ({"train_micro_batch_size_per_gpu": 16.5}, "'train_micro_batch_size_per_gpu' must be a whole number"),
        ({"gradient_accumulation_steps": 0}, "'gradient_accumulation_steps' must be a whole number of 1 or more"),
        ({"train_micro_batch_size_per_gpu": "auto"}, "'train_micro_batch_size_per_gpu' is \"auto\""),
        ({"optimizer__params__betas": [0.9, "auto"]}, "'optimizer.params.betas.1' is \"auto\""),
        ({"zero_optimization__reduce_bucket_size": "auto"}, "'zero_optimization.reduce_bucket_size' is \"auto\""),
        ({"scheduler": {"type": "WarmupLR"}}, "'scheduler' is not used here: the schedule belongs to the YAML"),
        ({"torch_autocast": {"enabled": True}}, "'torch_autocast' is not used here"),
        ({"data_efficiency": {"enabled": True}}, "'data_efficiency' is not used here"),
        ({"amp": {"enabled": True}}, "'amp': NVIDIA Apex AMP integration has been removed"),
        ({"zero_optimization__mics_shard_size": 1}, "'zero_optimization.mics_shard_size': MiCS"),
        ({"fp16": {"enabled": True}}, "'fp16.enabled' and 'bf16.enabled' are both true"),
        ({"bfloat16": {"enabled": True}}, "'bf16' and 'bfloat16' are one section under two names"),
        ({"bf16": None, "fp16": {"enabled": True}, "zero_optimization__stage": 0}, "never scales the loss there"),
        ({"bf16": None, "fp16": {"enabled": True}, "zero_optimization": None}, "to 1 or 2"),
        ({"zero_optimization__stage": 0}, "would be rounded to bf16"),
        ({"gradient_clipping": None}, "'gradient_clipping' is missing, and DeepSpeed would clip at 1.0 unasked"),
        ({"gradient_clipping": -1}, "'gradient_clipping' must be a number of 0 or more, not -1"),
        ({"optimizer": None}, "'optimizer' is missing"),
        ({"optimizer__type": "Lamb"}, '\'optimizer.type\' must be "Adam" or "AdamW", not "Lamb"'),
        ({"optimizer__type": None}, '\'optimizer.type\' must be "Adam" or "AdamW", not null'),
        ({"optimizer__params__lr": None}, "'optimizer.params.lr' is missing"),
        ({"optimizer__params": None}, "'optimizer.params.lr' is missing"),
        ({"train_micro_batch_size_per_gpu": None}, "'train_micro_batch_size_per_gpu' is missing"),
        ({"train_micro_batch_size_per_gpu": 1}, "'train_micro_batch_size_per_gpu' is 1, at least 2 are needed"),
        ({"managed_gradient_accumulation": False}, "'managed_gradient_accumulation' must be true"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_refusals_name_the_key_and_what_to_write(tmp_path, changes, words):
    assert words in refusal(tmp_path, changed(**changes))


def test_a_contradicting_global_batch_is_refused_with_all_four_numbers(tmp_path):
    config = changed(train_batch_size=100, gradient_accumulation_steps=3)
    message = refusal(tmp_path, config, world_size=8)
    assert "'train_batch_size' is 100" in message
    assert "'train_micro_batch_size_per_gpu' 4 x 'gradient_accumulation_steps' 3 x 8 ranks = 96" in message


def test_accumulation_follows_from_the_global_batch_as_deepspeed_has_it(tmp_path):
    from deepspeed.runtime.config import DeepSpeedConfig

    config = changed(train_batch_size=24)
    ours = load_settings(write(tmp_path, config), 1).accumulation
    assert ours == DeepSpeedConfig(config).gradient_accumulation_steps == 6
    # DeepSpeed would round 25 / 4 down and stop only after the model is built.
    assert "25" in refusal(tmp_path, changed(train_batch_size=25), world_size=1)


def test_params_follow_the_optimizer_that_deepspeed_would_choose(tmp_path):
    offloaded = changed(zero_optimization__offload_optimizer={"device": "cpu"}, optimizer__params__set_grad_none=True)
    assert "'optimizer.params.set_grad_none'" in refusal(tmp_path, offloaded)
    load_settings(write(tmp_path, changed(optimizer__params__set_grad_none=True)), 1)
    torch_adam = changed(optimizer__params__torch_adam=True, optimizer__params__foreach=False)
    load_settings(write(tmp_path, torch_adam), 1)
    torch_adam["optimizer"]["params"]["bias_correction"] = True
    assert "'optimizer.params.bias_correction'" in refusal(tmp_path, torch_adam)


def misspellings(key: str, rng: random.Random) -> list[str]:
    """Every deletion and swap of neighbours, and as many random substitutions."""
    deleted = [key[:i] + key[i + 1 :] for i in range(len(key))]
    swapped = [key[:i] + key[i + 1] + key[i] + key[i + 2 :] for i in range(len(key) - 1)]
    replaced = [key[:i] + rng.choice(string.ascii_lowercase) + key[i + 1 :] for i in range(len(key))]
    return [wrong for wrong in {*deleted, *swapped, *replaced} if wrong != key]


def renamed(config: dict[str, Any], path: tuple[str, ...], new: str) -> dict[str, Any]:
    if len(path) == 1:
        return {new if key == path[0] else key: value for key, value in config.items()}
    return {key: renamed(value, path[1:], new) if key == path[0] else value for key, value in config.items()}


def key_paths(config: dict[str, Any]) -> list[tuple[str, ...]]:
    inner = [(key, *rest) for key, value in config.items() if isinstance(value, dict) for rest in key_paths(value)]
    return [(key,) for key in config] + inner


def test_any_key_misspelt_by_one_letter_at_any_depth_is_named_with_its_right_spelling(tmp_path):
    rng = random.Random(0)
    tried = 0
    for source in CONFIGS:
        config = json.loads(source.read_text())
        for path in key_paths(config):
            for wrong in rng.sample(wrongs := sorted(misspellings(path[-1], rng)), min(6, len(wrongs))):
                if wrong in config or (len(path) == 1 and wrong in {"fp16", "bf16"}):
                    continue
                message = refusal(tmp_path, renamed(config, path, wrong))
                assert f"unknown key '{'.'.join([*path[:-1], wrong])}'; did you mean " in message
                assert f"'{path[-1]}'" in message.split("did you mean")[1], message
                tried += 1
    assert tried > 500


DOCUMENTED: dict[str, Any] = {
    "train_batch_size": 64,
    "train_micro_batch_size_per_gpu": 8,
    "gradient_accumulation_steps": 4,
    "steps_per_print": 2000,
    "optimizer": {
        "type": "Adam",
        "params": {"lr": 0.001, "betas": [0.8, 0.999], "eps": 1e-8, "weight_decay": 3e-7, "adam_w_mode": True},
    },
    "gradient_clipping": 1.0,
    "prescale_gradients": False,
    "gradient_predivide_factor": 1.0,
    "communication_data_type": "fp32",
    "bf16": {"enabled": True, "check_grad_overflow": True},
    "fp16": {
        "enabled": False,
        "auto_cast": False,
        "loss_scale": 0,
        "initial_scale_power": 16,
        "loss_scale_window": 1000,
        "hysteresis": 2,
        "consecutive_hysteresis": False,
        "min_loss_scale": 1,
    },
    "zero_optimization": {
        "stage": 3,
        "contiguous_gradients": True,
        "overlap_comm": True,
        "reduce_scatter": True,
        "reduce_bucket_size": 5e8,
        "allgather_bucket_size": 5e8,
        "sub_group_size": 1e9,
        "stage3_max_live_parameters": 1e9,
        "stage3_max_reuse_distance": 1e9,
        "stage3_prefetch_bucket_size": 1e7,
        "stage3_param_persistence_threshold": 1e5,
        "stage3_gather_16bit_weights_on_model_save": True,
        "ignore_unused_parameters": True,
        "round_robin_gradients": False,
        "zero_hpz_partition_size": 1,
        "offload_param": {
            "device": "nvme",
            "nvme_path": "/local_nvme",
            "pin_memory": True,
            "buffer_count": 5,
            "buffer_size": 1e8,
            "max_in_cpu": 1e9,
        },
        "offload_optimizer": {
            "device": "nvme",
            "nvme_path": "/local_nvme",
            "pin_memory": True,
            "buffer_count": 4,
            "fast_init": False,
            "pipeline_read": False,
            "pipeline_write": False,
            "ratio": 1.0,
        },
    },
    "activation_checkpointing": {
        "partition_activations": False,
        "cpu_checkpointing": False,
        "contiguous_memory_optimization": False,
        "number_checkpoints": None,
        "synchronize_checkpoint_boundary": False,
        "profile": False,
    },
    "flops_profiler": {
        "enabled": False,
        "recompute_fwd_factor": 0.0,
        "profile_step": 1,
        "module_depth": -1,
        "top_modules": 1,
        "detailed": True,
        "output_file": None,
    },
    "tensorboard": {"enabled": True, "output_path": "output/ds_logs/", "job_name": "train"},
    "wandb": {"enabled": False, "group": "g", "team": "t", "project": "p"},
    "csv_monitor": {"enabled": False, "output_path": "output/", "job_name": "train"},
    "comms_logger": {"enabled": True, "verbose": False, "prof_all": True, "debug": False, "prof_ops": ["all_reduce"]},
    "aio": {
        "block_size": 1048576,
        "queue_depth": 8,
        "intra_op_parallelism": 1,
        "single_submit": False,
        "overlap_events": True,
        "use_gds": False,
    },
    "checkpoint": {
        "tag_validation": "Warn",
        "load_universal": False,
        "use_node_local_storage": False,
        "parallel_write": {"pipeline_stage": False},
        "writer": {"type": "FAST", "io_buffer_size": 67108864, "decoupled": False, "data_parallel": "replica"},
    },
    "data_types": {"grad_accum_dtype": "fp32", "keep_in_fp32_modules": "auto"},
    "timers": {"throughput": {"enabled": True, "synchronized": True}},
    "autotuning": {"enabled": False, "results_dir": "r", "exps_dir": "e", "metric": "throughput", "fast": True},
    "data_efficiency": {"enabled": False, "seed": 1234, "data_routing": {"enabled": False}},
    "wall_clock_breakdown": False,
    "memory_breakdown": False,
    "dump_state": False,
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
}


def test_a_large_config_as_deepspeed_documents_it_is_accepted(tmp_path):
    settings = load_settings(write(tmp_path, DOCUMENTED), 2)
    assert (settings.zero_stage, settings.accumulation, settings.dtype) == (3, 4, "bf16")


def test_every_top_level_key_that_deepspeed_reads_is_known():
    """Read off DeepSpeed's source: the second argument of each get_scalar_param(param_dict, KEY, ...)."""
    from deepspeed.runtime import config, constants

    found = set()
    for node in ast.walk(ast.parse(inspect.getsource(config))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "get_scalar_param":
            section, key = node.args[:2]
            if isinstance(section, ast.Name) and section.id == "param_dict" and isinstance(key, ast.Name):
                found.add(getattr(constants, key.id, None))
    found.discard(None)  # `comm_type`, a variable
    assert len(found) > 15
    assert found <= set(deepspeed_schema().keys)
    assert not set(deepspeed_schema().keys) & set(removed_keys())


class FakeAccelerator:
    def __init__(self, name: str, fp16: bool, bf16: bool):
        self.name, self.fp16, self.bf16 = name, fp16, bf16

    def device_name(self) -> str:
        return self.name

    def is_fp16_supported(self) -> bool:
        return self.fp16

    def is_bf16_supported(self) -> bool:
        return self.bf16


@pytest.mark.parametrize(
    ("name", "fp16", "bf16", "file", "twins"),
    [
        ("cpu", False, True, "zero2", "use {0}/zero2_bf16.json or {0}/zero2_fp32.json"),
        ("cpu", False, True, "finetune_fp16", "use {0}/finetune_bf16.json"),
        ("npu", True, False, "zero2_bf16", "use {0}/zero2.json or {0}/zero2_fp32.json"),
        ("npu", True, False, "zero1_bf16", 'replace its section "bf16" by "fp16": {{"enabled": true}}'),
        ("cpu", False, False, "zero1_bf16", "delete that section"),
    ],
)
def test_a_dtype_that_the_accelerator_lacks_is_refused_in_one_line_that_names_the_twin(
    monkeypatch, name, fp16, bf16, file, twins
):
    monkeypatch.setattr("deepspeed.accelerator.get_accelerator", lambda: FakeAccelerator(name, fp16, bf16))
    settings = load_settings(next(path for path in CONFIGS if path.stem == file), 64)
    with pytest.raises(SettingsError) as caught:
        check_accelerator(settings)
    folder = CONFIGS[0].parent
    expected = f"{settings.path} asks for {settings.dtype}, which this machine's accelerator ({name}) cannot run: "
    assert str(caught.value) == expected + twins.format(folder)


def test_bf16_is_refused_on_a_v100_though_torch_would_emulate_it(monkeypatch):
    import torch

    monkeypatch.setattr("deepspeed.accelerator.get_accelerator", lambda: FakeAccelerator("cuda", True, True))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    settings = load_settings(next(path for path in CONFIGS if path.stem == "zero2_bf16"), 64)
    with pytest.raises(SettingsError, match=r"accelerator \(cuda\) cannot run: use .*/zero2\.json or .*/zero2_fp32"):
        check_accelerator(settings)


def test_dtypes_that_the_accelerator_has_pass(monkeypatch):
    monkeypatch.setattr("deepspeed.accelerator.get_accelerator", lambda: FakeAccelerator("cpu", True, True))
    for path in CONFIGS:
        check_accelerator(load_settings(path, 64))


def test_importing_the_module_leaves_deepspeed_and_torch_out():
    code = "import sys, simvtp_ds.ds_settings; print([m for m in ('torch', 'deepspeed') if m in sys.modules])"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=CONFIGS[0].parents[1]
        ).stdout
        == "[]\n"
    )
