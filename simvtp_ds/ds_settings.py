"""A read-only view of the user's DeepSpeed JSON, checked before any model is built.

The file is handed on to DeepSpeed as it is. DeepSpeed passes over misspelt keys, accepts `"lr": "1e-3"` and fills gaps
with defaults of its own; here each of these is one clear message that names the file and the key to edit.
"""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from simvtp_ds.ds_check import SettingsError, check_section, parse_section, read_json, refuse_auto, refuse_foreign
from simvtp_ds.ds_schema import deepspeed_schema, optimizer_params

Dtype = Literal["fp32", "fp16", "bf16"]


@dataclass(frozen=True)
class DeepSpeedSettings:
    """What the run needs to know from the DeepSpeed JSON; `raw` is what DeepSpeed itself is given."""

    path: str
    raw: dict[str, Any]
    micro_batch: int  # clips of one rank in one forward pass
    accumulation: int  # micro batches of one step
    dtype: Dtype
    zero_stage: int
    optimizer: str  # Adam or AdamW
    lr: float  # peak
    weight_decay: float
    clipping: float  # largest gradient norm; 0: no clipping

    def global_batch(self, world_size: int) -> int:
        """Clips of one step over all ranks."""
        return self.micro_batch * self.accumulation * world_size


def load_settings(path: str | Path, world_size: int) -> DeepSpeedSettings:
    """Read and check the DeepSpeed JSON at `path` for a run of `world_size` ranks.

    Raises:
        SettingsError: The file is missing, is not a JSON object, or has a key or value that would not do what it says.
    """
    raw = read_json(Path(path))
    try:
        refuse_foreign(raw)
        refuse_auto(raw, "")
        check_section(raw, deepspeed_schema(), "")
        return _gather(str(path), raw, world_size)
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from None


def _gather(path: str, raw: dict[str, Any], world_size: int) -> DeepSpeedSettings:
    """Refuse what is missing or contradicts itself in a file whose keys and kinds of values are right."""
    dtype, zero = _dtype(raw), parse_section(raw.get("zero_optimization", {}), "zero_optimization")
    if dtype == "fp16" and zero.stage == 0:
        raise SettingsError(
            "'fp16.enabled' with 'zero_optimization.stage' 0: DeepSpeed 0.19.8 never scales the loss there, so small "
            "gradients vanish; set 'zero_optimization.stage' to 1 or 2"
        )
    if dtype == "bf16" and zero.stage == 0:
        raise SettingsError(
            "'bf16.enabled' with 'zero_optimization.stage' 0: DeepSpeed 0.19.8 keeps its fp32 weights to itself, so "
            "checkpoints and the moving average would be rounded to bf16; set 'zero_optimization.stage' to 1 or 2"
        )
    if raw.get("managed_gradient_accumulation") is False:
        raise SettingsError("'managed_gradient_accumulation' must be true: the training loop relies on it")
    if "gradient_clipping" not in raw:
        raise SettingsError(
            "'gradient_clipping' is missing, and DeepSpeed would clip at 1.0 unasked: write a number, 0.0 for none"
        )
    offload = zero.offload_optimizer
    name, params = _optimizer(raw, offloaded=offload is not None and offload.device != "none")
    micro_batch, accumulation = _batch(raw, world_size)
    return DeepSpeedSettings(
        path=path,
        raw=raw,
        micro_batch=micro_batch,
        accumulation=accumulation,
        dtype=dtype,
        zero_stage=int(zero.stage),
        optimizer=name,
        lr=float(params["lr"]),
        weight_decay=float(params.get("weight_decay", 0.0)),
        clipping=float(raw["gradient_clipping"]),
    )


def _optimizer(raw: dict[str, Any], offloaded: bool) -> tuple[str, dict[str, Any]]:
    """Checked name and params of the optimizer section."""
    section = raw.get("optimizer")
    if section is None:
        raise SettingsError(
            "'optimizer' is missing: write for instance "
            '"optimizer": {"type": "AdamW", "params": {"lr": 6e-4, "betas": [0.9, 0.95], "weight_decay": 0.05}}'
        )
    name = {"adam": "Adam", "adamw": "AdamW"}.get(section.get("type", "").lower())
    if name is None:
        raise SettingsError(f'\'optimizer.type\' must be "Adam" or "AdamW", not {json.dumps(section.get("type"))}')
    params = section.get("params", {})
    torch_adam = isinstance(params, dict) and params.get("torch_adam") is True
    adam_w = name == "AdamW" or not (isinstance(params, dict) and params.get("adam_w_mode") is False)
    check_section(params, optimizer_params(torch_adam, adam_w, offloaded), "optimizer.params")
    if "lr" not in params:
        raise SettingsError("'optimizer.params.lr' is missing, and DeepSpeed would take 1e-3 unasked: write the peak")
    return name, params


def _batch(raw: dict[str, Any], world_size: int) -> tuple[int, int]:
    """Micro batch and accumulation, the latter derived from the global batch where only that is given."""
    micro, total = raw.get("train_micro_batch_size_per_gpu"), raw.get("train_batch_size")
    if micro is None:
        raise SettingsError("'train_micro_batch_size_per_gpu' is missing: write the clips of one rank in one forward")
    if micro < 2:
        raise SettingsError(
            f"'train_micro_batch_size_per_gpu' is {micro}, at least 2 are needed: video-text matching pairs each "
            "caption with another clip of its micro batch"
        )
    accumulation = raw.get("gradient_accumulation_steps")
    if accumulation is None:  # DeepSpeed derives it in this way too, but rounds down
        accumulation = max(1, total // (micro * world_size)) if total else 1
    if total is not None and total != micro * accumulation * world_size:
        raise SettingsError(
            f"'train_batch_size' is {total}, but 'train_micro_batch_size_per_gpu' {micro} x "
            f"'gradient_accumulation_steps' {accumulation} x {world_size} ranks = {micro * accumulation * world_size}: "
            "delete 'train_batch_size' (it is derived), or make the four agree"
        )
    return micro, accumulation


def _dtype(raw: dict[str, Any]) -> Dtype:
    """The precision that a DeepSpeed JSON asks for, checked or not."""
    if "bf16" in raw and "bfloat16" in raw:
        raise SettingsError("'bf16' and 'bfloat16' are one section under two names: keep 'bf16'")
    sections = {key: raw.get(key) for key in ("fp16", "bf16", "bfloat16")}
    on = [key for key, section in sections.items() if isinstance(section, dict) and section.get("enabled") is True]
    if len(on) > 1:
        raise SettingsError(f"'{on[0]}.enabled' and '{on[1]}.enabled' are both true: keep one of the two")
    if not on:
        return "fp32"
    return "fp16" if on[0] == "fp16" else "bf16"


def check_accelerator(settings: DeepSpeedSettings) -> None:
    """Refuse a dtype that this machine's accelerator cannot run, naming a file beside it that it can.

    Raises:
        SettingsError: The accelerator lacks fp16 or bf16.
    """
    from deepspeed.accelerator import get_accelerator

    accelerator: Any = get_accelerator()
    usable = [dtype for dtype in ("bf16", "fp16", "fp32") if _runs(dtype, accelerator)]
    if settings.dtype in usable:
        return
    twins = " or ".join(str(twin) for twin in _twins(Path(settings.path), usable))
    section = f'"{usable[0]}": {{"enabled": true}}'
    change = f'replace its section "{settings.dtype}" by {section}' if usable[0] != "fp32" else "delete that section"
    raise SettingsError(
        f"{settings.path} asks for {settings.dtype}, which this machine's accelerator ({accelerator.device_name()}) "
        f"cannot run: {'use ' + twins if twins else change}"
    )


def _runs(dtype: str, accelerator: Any) -> bool:
    if dtype == "fp16":
        return bool(accelerator.is_fp16_supported())
    if dtype == "bf16" and accelerator.device_name() == "cuda":
        import torch

        # DeepSpeed's answer is yes on a V100 too: torch counts slow emulation unless told not to.
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return dtype == "fp32" or bool(accelerator.is_bf16_supported())


def _twins(path: Path, usable: list[str]) -> list[Path]:
    """Files beside `path` named like it (zero2, zero2_bf16, ...) whose dtype is usable, best first."""
    base = re.sub(r"_(fp16|bf16|fp32)$", "", path.stem)
    files = [path.with_name(f"{base}{end}.json") for end in ("", "_bf16", "_fp16", "_fp32")]
    found: dict[str, Path] = {}
    for file in files:
        with contextlib.suppress(SettingsError):  # a broken neighbour is no twin
            found.setdefault(_dtype(read_json(file)), file)
    return [found[dtype] for dtype in usable if dtype in found]
