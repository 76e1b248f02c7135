"""DeepSpeed checkpoints of any ZeRO stage and number of ranks as one state dict in fp32, on the CPU.

DeepSpeed puts the shards together itself (`deepspeed.utils.zero_to_fp32`), but loads its pickles so that they may run
anything. Here torch is told to load them with `weights_only` whoever asks (TORCH_FORCE_WEIGHTS_ONLY_LOAD), and the
classes that DeepSpeed keeps in them, which hold values, are allowed by name.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simvtp_ds.interop.reading import HARMLESS, check_archive, read_pickle, refusal

MODEL_FILES, OPTIMIZER_FILES = "*model_states.pt", "*_optim_states.pt"


def is_zero_checkpoint(folder: Path) -> bool:
    """Whether DeepSpeed wrote this folder: a checkpoint (a tag), or a folder of some with the name of the latest."""
    return any(folder.glob(MODEL_FILES)) or (folder / "latest").is_file()


def tag_folder(folder: Path) -> Path:
    """The folder of the files, which `latest` names where `folder` is the one above.

    Raises:
        ValueError: `latest` names no folder beside it.
    """
    if any(folder.glob(MODEL_FILES)):
        return folder
    tag = (folder / "latest").read_text(errors="replace").strip()
    if not tag or Path(tag).name != tag or not any((folder / tag).glob(MODEL_FILES)):
        raise ValueError(f"{folder / 'latest'} names {tag!r:.80}, which is no DeepSpeed checkpoint beside it: name one")
    return folder / tag


def read_zero_checkpoint(folder: Path) -> dict[str, Tensor]:
    """The whole model of a checkpoint in fp32, from the optimizer's master copy where it was sharded.

    Args:
        folder: Has the files `*_model_states.pt`.

    Raises:
        ValueError: a shard is missing or damaged, or wants code to be run.
    """
    if len({path.name.split("mp_rank_")[-1] for path in folder.glob(MODEL_FILES)}) != 1:
        raise ValueError(f"{folder} is of a model that tensor parallelism split: this reads ZeRO checkpoints only")
    if not any(folder.glob(OPTIMIZER_FILES)):  # stage 0: one file has it all
        (path,) = folder.glob(MODEL_FILES)
        held = read_pickle(path)
        state = held.get("module") if isinstance(held, dict) else None
        if not isinstance(state, dict):
            raise ValueError(f"{path} holds no model: it is no checkpoint of DeepSpeed's, or a damaged one")
    else:
        state = _consolidated(folder)
    # Our task modules hold the model as `model`.
    return {name.removeprefix("model."): value for name, value in state.items()}


def allowed_in_shards() -> list[Any]:
    """What a shard may name besides tensors, for `torch.serialization.safe_globals`."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    def member(of: object, name: object) -> object:
        # Python 3.11.2 (Debian 12) writes the ZeRO stage as getattr(ZeroStageEnum, "gradients"); no other use of it.
        if of is not ZeroStageEnum or name not in ZeroStageEnum.__members__:
            raise pickle.UnpicklingError("it wants getattr called")
        return ZeroStageEnum[str(name)]

    return [*HARMLESS, DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address, (member, "builtins.getattr")]


def _consolidated(folder: Path) -> dict[str, Tensor]:
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    allowed = allowed_in_shards()
    for path in sorted([*folder.glob(MODEL_FILES), *folder.glob(OPTIMIZER_FILES)]):
        check_archive(path)
    try:
        # It prints much, and shows progress of its own.
        with _weights_only(), torch.serialization.safe_globals(allowed), contextlib.redirect_stdout(io.StringIO()):
            return dict(get_fp32_state_dict_from_zero_checkpoint(str(folder.parent), tag=folder.name) or {})
    except Exception as error:  # whatever damaged or hostile shards make torch and DeepSpeed raise
        raise refusal(folder, error, "a whole ZeRO checkpoint") from None


@contextmanager
def _weights_only() -> Iterator[None]:
    """Every torch.load of the block with weights_only=True."""
    wanted, unwanted = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
    before = {name: os.environ.pop(name, None) for name in (wanted, unwanted)}
    os.environ[wanted] = "1"
    try:
        yield
    finally:
        del os.environ[wanted]
        os.environ.update({name: value for name, value in before.items() if value is not None})
