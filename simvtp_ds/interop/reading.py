"""Files of weights as a dict of tensors, and nothing else: no code of a file runs, and none unpacks to more than it is.

Safetensors are read as they are, PyTorch's pickles with `weights_only=True`. What else a file might do is looked for
first: compressed members of a zip archive (torch writes none), or tensors larger than the file that describes them.
"""

from __future__ import annotations

import argparse
import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

INSIDE = ("model", "module", "state_dict", "model_state_dict")  # where training scripts put the model in their dicts
WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.)+|(?<=\.)_orig_mod\.")  # of DistributedDataParallel and torch.compile
HF_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # of a Hugging Face folder; the first that is there counts
_LFS_HEAD = b"version https://git-lfs.github.com/spec/"
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
_UNPICKLER = re.compile(r"WeightsUnpickler error: (.*)")
# The settings that VideoMAE's scripts save beside the weights: a class that holds values and does nothing.
HARMLESS: list[Any] = [argparse.Namespace]


def read_weights_file(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a .safetensors file or of a PyTorch checkpoint, on the CPU, and the metadata (safetensors only).

    Wrappers around the model (`model` or `module` keys, `module.` and `_orig_mod.` in names) are taken off.

    Raises:
        ValueError: there is no such file, it is damaged, it is no file of weights, or reading it would run code or fill
            the memory; the message names the file and what to do.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file of weights")
    with path.open("rb") as file:
        head = file.read(64)
    if head.startswith(_LFS_HEAD):
        raise ValueError(f"{path} is a Git LFS pointer, the weights themselves are not here: run git lfs pull")
    if head[8:9] == b"{" or path.suffix == ".safetensors":
        return _read_safetensors(path)
    return unwrapped(read_pickle(path), path), {}


def read_weights_folder(folder: Path) -> dict[str, Tensor]:
    """The tensors of a Hugging Face folder, in one file or in shards.

    Raises:
        ValueError: it has none, or one of them cannot be read.
    """
    for name in HF_WEIGHTS:
        if (folder / name).is_file():
            return read_weights_file(folder / name)[0]
        index = folder / f"{name}.index.json"
        if index.is_file():
            shards_of = read_json(index).get("weight_map")
            shards = {str(shard) for shard in shards_of.values()} if isinstance(shards_of, dict) else set()
            if not shards or any(Path(shard).name != shard for shard in shards):
                raise ValueError(f"{index} names no files of its folder: fetch the model again")
            return {
                key: value for shard in sorted(shards) for key, value in read_weights_file(folder / shard)[0].items()
            }
    raise ValueError(f"{folder} has no weights: none of {', '.join(HF_WEIGHTS)} is there")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; ValueError where the file holds none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no JSON object")
    return value


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
            return unwrapped(tensors, path), file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is not a whole safetensors file ({error}): it was cut short or damaged, fetch it again"
        ) from None


def read_pickle(path: Path) -> Any:
    """What `torch.save` wrote, on the CPU, tensors mapped from the file where the format allows it.

    Raises:
        ValueError: see `read_weights_file`.
    """
    archive = zipfile.is_zipfile(path)
    if archive:
        check_archive(path)
    try:
        with torch.serialization.safe_globals(HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except Exception as error:  # whatever a damaged or hostile file makes torch raise
        raise refusal(path, error, "a safetensors file or a whole PyTorch checkpoint") from None


def refusal(path: Path, error: Exception, expected: str) -> ValueError:
    """What to tell of a file that torch would not load with weights_only."""
    if found := _GLOBAL.search(str(error)):
        return ValueError(
            f"{path} is refused: it wants {found[1]} called while it is read, and weights need no code; if you trust "
            "its maker, convert it to safetensors in a container first, as docs/weights.md shows"
        )
    found = _UNPICKLER.search(str(error))
    lines = (found[1] if found else str(error)).strip().splitlines()
    reason = lines[0] if lines else "it is no pickle of tensors"
    return ValueError(f"{path} is not {expected} ({reason[:200]}): fetch it again, or name another")


def check_archive(path: Path) -> None:
    """Refuse a zip archive that unpacks to more than itself; torch stores its members as they are.

    Raises:
        ValueError: members are compressed or overlap, or the archive is damaged.
    """
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise ValueError(f"{path} is a damaged zip archive ({error}): fetch it again") from None
    unpacked = sum(member.file_size for member in members)
    if unpacked > size or any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ValueError(
            f"{path} is refused: it is a zip archive of {size} bytes that unpacks to {unpacked}, and torch.save "
            "compresses nothing; if it is no zip bomb, convert it to safetensors in a container first, as "
            "docs/weights.md shows"
        )


def unwrapped(loaded: Any, path: Path) -> dict[str, Tensor]:
    """The state dict in what a file held, without wrappers in its names.

    Raises:
        ValueError: there is none, or its tensors would take more memory than the file has bytes.
    """
    state = loaded
    for _ in INSIDE:  # a dict in a dict in a dict
        key = next((key for key in INSIDE if isinstance(state, Mapping) and isinstance(state.get(key), Mapping)), None)
        if key is None:
            break
        state = state[key]
    if not isinstance(state, Mapping) or not any(isinstance(value, Tensor) for value in state.values()):
        held = f"keys such as {', '.join(map(repr, list(state)[:4]))}" if isinstance(state, Mapping) else type(state)
        raise ValueError(f"{path} holds no state dict, but {held}: name a file of a model's weights")
    size, tensors = path.stat().st_size, {}
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(f"{path}: {name!r} of its state dict is a {type(value).__name__}, not a tensor")
        if value.layout != torch.strided or value.is_meta or value.nbytes > size:
            raise ValueError(
                f"{path} is refused: {name} claims {value.nbytes} bytes in a file of {size}; weights are stored whole"
            )
        bare = WRAPPERS.sub("", name)
        if bare in tensors:
            raise ValueError(f"{path} has {bare} twice, once behind a wrapper's prefix: save the model without one")
        tensors[bare] = value
    return tensors
