"""Which clips a run reads, from where, and how each becomes pixels and words."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from simvtp_ds.urls import without_secrets


def require(holds: bool, message: str) -> None:
    """ValueError with `message` where something does not hold."""
    if not holds:
        raise ValueError(message)


@dataclass(frozen=True)
class StorageConfig:
    """Where clips lie that the manifest names relative to itself, and how URLs are read.

    Args:
        root: Folder or URL (s3://, gs://, hf://, http:// ... of fsspec) that relative names of a manifest start from;
            empty: the manifest's folder. Without passwords or tokens: the run saves it.
        cache_dir: Local folder that keeps what was read from URLs; empty: nothing is kept.
        cache_gib: Most that `cache_dir` may hold, in GiB; what was used longest ago goes first.
        timeout: Seconds that one read from a URL may take.
        retries: Further tries of a read that failed.
    """

    root: str = ""
    cache_dir: str = ""
    cache_gib: float = 50.0
    timeout: float = 20.0
    retries: int = 3

    def __post_init__(self) -> None:
        for name in ("cache_gib", "timeout"):
            value = getattr(self, name)
            require(0 < value <= 1e9, f"data.storage.{name} is {value}; it must be above 0, and at most 1e9")
        require(
            without_secrets(self.root) == self.root,
            f"data.storage.root {without_secrets(self.root)} holds a password or a token, and the run saves its "
            "configuration: give them as the store's environment variables or in ~/.config/fsspec",
        )
        require(self.retries >= 0, f"data.storage.retries is {self.retries}; give a number, or 0 for none")


@dataclass(frozen=True)
class DataConfig:
    """Which clips, and how each becomes pixels and words.

    Args:
        manifest: Folder that `launch/prepare.py` wrote (manifest.arrow and the tokenizer).
        mixture: Several such folders in place of `manifest`, each with its weight: {folder: weight}. Weights are shares
            of the clips shown, whatever the sizes; each folder has epochs of its own. Pre-training only.
        tokenizer: Name or folder of a Hugging Face BERT tokenizer; empty: the one beside the manifest.
        num_frames: Frames of a clip (T).
        frame_stride: Distance between two frames of a clip, in frames of the file. Short files repeat their last frame.
        image_size: Height and width of a clip after crop and resize, in pixels.
        crop_scales: Crop sides as shares of the short side; one is drawn a clip (multi-scale crop). [1.0] with
            `random_crop` false is a centre crop.
        random_crop: Draw scale and position of the crop; false takes the whole short side in the centre.
        flip: Mirror half of the clips. Off: captions say left and right.
        max_words: Longest caption in tokens, [CLS] and [SEP] included; longer ones are cut.
        views: Masked views of each decoded clip; the micro batch counts views, so a step decodes a `views`-th of it.
            Pre-training only.
        backend: Who decodes. cpu: worker processes (PyAV); dali: NVIDIA DALI (NVDEC) beside them; auto: dali where
            there is a GPU and DALI is installed, else cpu.
        host_share: Share of the clips that the worker processes decode where DALI decodes the others; auto: as many
            as they can.
        storage: Where and how the bytes of the clips are read.
        workers: Decoder processes of each rank.
        prefetch: Batches prepared ahead, a rank.
        decode_timeout: Seconds after which a decoder counts as hung: it is killed and its clip counted as bad.
        max_bad_share: Share of bad clips (after 200 clips, or at the end) past which the run stops with an error.
    """

    manifest: str = ""
    mixture: dict[str, float] = field(default_factory=dict)
    tokenizer: str = ""
    num_frames: int = 16
    frame_stride: int = 4
    image_size: int = 224
    crop_scales: tuple[float, ...] = (1.0, 0.875, 0.75, 0.66)
    random_crop: bool = True
    flip: bool = False
    max_words: int = 64
    views: int = 1
    backend: Literal["cpu", "dali", "auto"] = "auto"
    host_share: float | Literal["auto"] = "auto"
    storage: StorageConfig = field(default_factory=StorageConfig)
    workers: int = 4
    prefetch: int = 4
    decode_timeout: float = 30.0
    max_bad_share: float = 0.05

    def __post_init__(self) -> None:
        for name in ("num_frames", "frame_stride", "image_size", "views", "workers", "prefetch"):
            require(getattr(self, name) >= 1, f"data.{name} is {getattr(self, name)}; it must be at least 1")
        require(self.max_words >= 3, f"data.max_words is {self.max_words}; [CLS], a word and [SEP] need 3")
        scales = self.crop_scales
        require(
            bool(scales) and all(0.0 < s <= 1.0 for s in scales),
            f"data.crop_scales is {list(scales)}; give shares of the short side, above 0 and at most 1",
        )
        require(
            not (self.manifest and self.mixture),
            f"data.manifest is {self.manifest!r} and data.mixture names {len(self.mixture)} folders; give one of them",
        )
        for folder, weight in self.mixture.items():
            require(
                0 < weight < float("inf"),
                f"data.mixture gives {folder} the weight {weight}; give a number above 0, or leave it out",
            )
        share = self.host_share
        require(share == "auto" or 0 <= share <= 1, f"data.host_share is {share}; give a share from 0 to 1, or auto")
        require(self.decode_timeout > 0, f"data.decode_timeout is {self.decode_timeout}; give seconds above 0")
