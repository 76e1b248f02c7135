"""Zero-shot retrieval: how well a pre-trained model finds the clip of a caption, without training for it.

The embeddings are those that the contrast trains, from the whole clip and the whole caption: nothing is hidden.
One view a clip, its middle in time and space. Dimensions: B clips, V clips in all, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simvtp_ds.config import DataConfig
from simvtp_ds.data.captions import Caption, collate
from simvtp_ds.data.decode import Source, decode_into
from simvtp_ds.data.manifest import Clip, Manifest
from simvtp_ds.data.sampling import View, centre_box, centre_indices
from simvtp_ds.data.text import Tokenizer
from simvtp_ds.evaluation.ranks import score_both_ways
from simvtp_ds.model.simvtp import SimVTP

BATCH = 32
NOTHING = np.empty(0, dtype=np.int64)


def read_centre(clip: Clip, data: DataConfig) -> np.ndarray:
    """The view that evaluation sees, uint8 [T, H, W, 3]: middle frames, largest central square, not mirrored.

    Raises:
        DecodeError: the clip cannot be decoded. Evaluation replaces nothing: a score is of all clips or of none.
    """
    view = View(
        centre_indices(clip.frames, data.num_frames, data.frame_stride), centre_box(clip.width, clip.height), flip=False
    )
    frames = np.empty((data.num_frames, data.image_size, data.image_size, 3), dtype=np.uint8)
    decode_into(frames, Source(clip.uri, clip.offset, clip.length), view)
    return frames


def read_captions(captions: Sequence[str], tokenizer: Tokenizer, max_words: int) -> tuple[Tensor, Tensor]:
    """Token ids int64 [B, L] with no word hidden, and bool [B, L], False on padding."""
    encoded = [Caption(tokenizer.encode(caption, max_words), NOTHING, NOTHING) for caption in captions]
    padded = collate(encoded, tokenizer.pad_id, max_words)
    return torch.from_numpy(padded.words), torch.from_numpy(padded.word_mask)


def _batches(manifest: Manifest, data: DataConfig) -> Iterator[tuple[list[Clip], np.ndarray]]:
    """Clips and frames uint8 [B, T, H, W, 3] in the manifest's order; the next batch is decoded meanwhile."""
    parts = [range(first, min(first + BATCH, len(manifest))) for first in range(0, len(manifest), BATCH)]
    with ThreadPoolExecutor(max_workers=max(1, data.workers)) as pool:

        def start(rows: range) -> tuple[list[Clip], list[Any]]:
            clips = [manifest[row] for row in rows]
            return clips, [pool.submit(read_centre, clip, data) for clip in clips]

        ahead = start(parts[0])
        for number in range(len(parts)):
            clips, pending = ahead
            if number + 1 < len(parts):
                ahead = start(parts[number + 1])
            yield clips, np.stack([each.result() for each in pending])


@torch.inference_mode()
def embed_manifest(model: SimVTP, manifest: Manifest, tokenizer: Tokenizer, data: DataConfig) -> tuple[Tensor, Tensor]:
    """Unit vectors of captions and of clips, each float32 [V, D] on the CPU; row i of both is row i of the manifest.

    Raises:
        ValueError: a clip has several captions; scoring those is another protocol.
        DecodeError: a clip cannot be decoded.
    """
    ids: set[str] = set()
    for row in range(len(manifest)):
        clip = manifest[row]
        if clip.clip_id in ids:
            raise ValueError(
                f"{manifest.folder} has several captions for clip {clip.clip_id!r}: zero-shot evaluation takes one "
                "caption a clip; prepare a manifest with one"
            )
        ids.add(clip.clip_id)
    device = next(model.parameters()).device
    training = model.training
    model.eval()  # no dropout
    videos, texts = [], []
    try:
        for clips, frames in _batches(manifest, data):
            words, word_mask = read_captions([clip.caption for clip in clips], tokenizer, data.max_words)
            videos.append(model.embed_video(torch.from_numpy(frames).to(device)).cpu())
            texts.append(model.embed_text(words.to(device), word_mask.to(device)).cpu())
    finally:
        model.train(training)
    return torch.cat(texts), torch.cat(videos)


def zero_shot(model: SimVTP, manifest: Manifest, tokenizer: Tokenizer, data: DataConfig) -> dict[str, Any]:
    """Scores of zero-shot retrieval, both ways; recalls and chance in percent.

    Returns:
        {"queries", "chance_R@1", "t2v": {"R@1", "R@5", "R@10", "MdR", "MnR"}, "v2t": the same}
    """
    texts, videos = embed_manifest(model, manifest, tokenizer, data)
    count = len(manifest)
    return {"queries": count, "chance_R@1": 100 / count, **score_both_ways(texts @ videos.T)}
