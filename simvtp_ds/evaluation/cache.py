"""Embeddings kept beside the run, so that scoring again costs no decoding."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from simvtp_ds.data_config import DataConfig
from simvtp_ds.evaluation.embed import Embeddings
from simvtp_ds.files import replacing

VERSION = 1  # raise it when the same model and clips give other embeddings
FOLDER = "embeddings"


def cache_key(identity: str, manifest: str, data: DataConfig, segments: int, crops: int, device: str) -> str:
    """Hex digest of all that decides embeddings.

    Args:
        identity: Of the model, its weights and its tokenizer.
        manifest: Fingerprint.
        data: How clips and captions are read.
        segments, crops: Views.
        device: Kind of device, such as cuda: another one rounds otherwise.
    """
    clip = (data.num_frames, data.frame_stride, data.image_size, data.max_words)
    return hashlib.sha256(repr((VERSION, identity, manifest, clip, segments, crops, device)).encode()).hexdigest()


def read_cache(run: Path, key: str) -> Embeddings | None:
    """What was kept under the key; None where nothing whole is."""
    try:
        with safe_open(_path(run, key), framework="pt") as file:
            if (file.metadata() or {}).get("key") != key:
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        if tensors.pop("digest").numpy().tobytes() != _digest(tensors):
            return None
        return Embeddings(**{"average": None, **tensors}, missing=[])
    except (SafetensorError, OSError, KeyError, TypeError, RuntimeError):
        return None


def write_cache(run: Path, key: str, embeddings: Embeddings) -> Path:
    """Keep embeddings of a set without missing videos: those are tried again every time.

    Raises:
        OSError: the run's folder cannot be written.
    """
    tensors = {name: value for name, value in vars(embeddings).items() if isinstance(value, torch.Tensor)}
    digest = torch.from_numpy(np.frombuffer(_digest(tensors), dtype=np.uint8).copy())
    path = _path(run, key)
    path.parent.mkdir(exist_ok=True)
    with replacing(path) as temporary:
        try:
            save_file({**tensors, "digest": digest}, temporary, metadata={"key": key})
        except SafetensorError as error:  # a full disk, for one
            raise OSError(f"{path}: {error}") from error
    return path


def _path(run: Path, key: str) -> Path:
    return run / FOLDER / f"{key}.safetensors"


def _digest(tensors: Mapping[str, Tensor]) -> bytes:
    """sha256 of the values: a flipped bit on disk must not become a score."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].contiguous().numpy().tobytes())
    return digest.digest()
