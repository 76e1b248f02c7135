"""What a pre-trained model makes of a clip of which it sees a part: hidden pixels rebuilt, hidden words named.

Masks and hidden words are drawn from the streams of training, keyed by (seed, epoch 0, clip id): the same seed gives
the same pictures anywhere. A mask of a higher ratio hides all that one of a lower ratio does.

Dimensions: T frames, H and W pixels, Nv visible and Nh hidden tokens of a clip, L words, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from simvtp_ds.data.captions import Caption, hide_words
from simvtp_ds.data.masks import tube_masks
from simvtp_ds.data.order import stream
from simvtp_ds.data.text import Tokenizer
from simvtp_ds.evaluation.compute import evaluating
from simvtp_ds.model.patches import gather_patches, paste_patches
from simvtp_ds.model.simvtp import SimVTP
from simvtp_ds.objectives.pixels import pixel_loss, pixel_target, pixels_from

GRAY = 118  # of hidden patches: seldom met in a picture, and told from black and white ones
# What a hidden word may be told from. The word head was trained on WITH alone; WITHOUT is the pass of the caption by
# itself, whose outputs the head has never seen; OTHER is of the kind it was trained on, with a video that is wrong.
WITH, WITHOUT, OTHER = "with the video", "without the video", "with another video"


@dataclass(frozen=True)
class Hiding:
    """How much is hidden, and from which seed it is drawn.

    Attributes:
        tube_ratios: Shares of the patches; each is rebuilt.
        words_at: The share at which words are told (the run's own).
        word_ratio: Probability that a word is hidden.
        seed: Of the streams.
    """

    tube_ratios: tuple[float, ...]
    words_at: float
    word_ratio: float
    seed: int


class Rebuilt(NamedTuple):
    """A clip of which a share was hidden, uint8 [T, H, W, 3] each."""

    ratio: float
    masked: np.ndarray  # hidden patches gray
    rebuilt: np.ndarray  # visible patches as they are, hidden ones as the model has them
    means: np.ndarray  # hidden patches in their mean colour: what is shown where the model adds nothing
    mvm: float  # the loss: mean squared error of normalised patches; 1 is what patches of one colour each get


class Guess(NamedTuple):
    """What is said of one hidden word."""

    probability: float  # of the word that stood there
    top: tuple[tuple[str, float], ...]  # the most probable words, best first


class HiddenWord(NamedTuple):
    """A hidden word and what is said of it, by condition."""

    position: int  # in the caption's tokens
    word: str
    guesses: dict[str, Guess]


@dataclass(frozen=True)
class Panel:
    """All that is shown of one clip."""

    clip_id: str
    caption: str
    tokens: tuple[str, ...]  # without [CLS] and [SEP]
    words: tuple[HiddenWord, ...]  # positions count in `tokens`
    words_at: float  # share of the patches hidden meanwhile
    original: np.ndarray  # uint8 [T, H, W, 3]
    rebuilt: tuple[Rebuilt, ...]  # by ratio


def check_ratio(model: SimVTP, ratio: float, name: str) -> None:
    """ValueError where a share of the patches hides none or all of them."""
    patches = model.grid[1] * model.grid[2]
    hidden = int(ratio * patches) if 0 < ratio < 1 else 0
    if not hidden:
        raise ValueError(
            f"{name} {ratio:g} hides {'none' if ratio < 1 else 'all'} of the {patches} patches: give a share between "
            f"{1 / patches:.2g} and 1, such as 0.9"
        )


def make_panel(
    model: SimVTP,
    tokenizer: Tokenizer,
    max_words: int,
    clip_id: str,
    caption: str,
    frames: np.ndarray,
    hiding: Hiding,
    other: np.ndarray | None = None,
    top: int = 1,
) -> Panel:
    """Hide, rebuild, and guess; the model is in evaluation mode meanwhile, and no random number is drawn from torch.

    Args:
        model: On any device, in any precision.
        tokenizer: The model's.
        max_words: Longest caption, in tokens.
        clip_id, caption: Of the clip; the id decides what is hidden.
        frames: uint8 [T, H, W, 3].
        hiding: How much.
        other: Another clip's frames, for the words told with another video.
        top: Words of each guess.
    """
    hidden = hide_words(stream(hiding.seed, 0, clip_id, "words"), tokenizer, caption, max_words, hiding.word_ratio)
    device = next(model.parameters()).device
    clip = torch.from_numpy(frames).to(device)[None]
    words = torch.from_numpy(hidden.words).to(device)[None]

    def masks(ratio: float) -> tuple[Tensor, Tensor]:
        return tube_masks([stream(hiding.seed, 0, clip_id, "tube")], model.grid, ratio, device)

    with evaluating(model), torch.no_grad():  # inference mode would spoil parameters that ZeRO-3 gathers meanwhile
        rebuilt = tuple(rebuild(model, clip, words, *masks(ratio), ratio) for ratio in hiding.tube_ratios)
        visible, _ = masks(hiding.words_at)
        told = {WITH: joint_logits(model, clip, visible, words)}
        told[WITHOUT] = model.word_logits(model.encode_text(words, torch.ones_like(words, dtype=torch.bool)))
        if other is not None:
            told[OTHER] = joint_logits(model, torch.from_numpy(other).to(device)[None], visible, words)
        guesses = {name: guess(logits[0], hidden, tokenizer, top) for name, logits in told.items()}
    whole = hidden.words.copy()
    whole[hidden.hidden] = hidden.hidden_ids
    return Panel(
        clip_id=clip_id,
        caption=caption,
        tokens=tuple(tokenizer.token(id) for id in whole[1:-1]),
        words=tuple(
            HiddenWord(int(place) - 1, tokenizer.token(id), {name: found[k] for name, found in guesses.items()})
            for k, (place, id) in enumerate(zip(hidden.hidden, hidden.hidden_ids, strict=True))
        ),
        words_at=hiding.words_at,
        original=frames,
        rebuilt=rebuilt,
    )


def rebuild(model: SimVTP, clip: Tensor, words: Tensor, visible: Tensor, hidden: Tensor, ratio: float) -> Rebuilt:
    """The joint pass and the pixel decoder on one clip.

    Args:
        model: In evaluation mode.
        clip: uint8 [1, T, H, W, 3].
        words: int64 [1, L], hidden ones replaced by [MASK].
        visible, hidden: int64 [1, Nv], [1, Nh].
        ratio: The share that is hidden.
    """
    sizes = model.config.tubelet_size, model.config.patch_size
    video_out, _ = model.encode_joint(clip, visible, words, torch.ones_like(words, dtype=torch.bool))
    out = model.decode_pixels(video_out, visible, hidden)
    real = gather_patches(clip, hidden, *sizes)

    def pasted(patches: Tensor) -> np.ndarray:
        return paste_patches(clip, hidden, patches, *sizes)[0].cpu().numpy()

    return Rebuilt(
        ratio=ratio,
        masked=pasted(torch.full_like(real, GRAY)),
        rebuilt=pasted(pixels_from(out, real)),
        means=pasted(pixels_from(torch.zeros_like(out), real)),
        mvm=float(pixel_loss(out, pixel_target(real))),
    )


def joint_logits(model: SimVTP, clip: Tensor, visible: Tensor, words: Tensor) -> Tensor:
    """Logits [1, L, V] of the words of a caption int64 [1, L] seen together with a clip uint8 [1, T, H, W, 3]."""
    _, text_out = model.encode_joint(clip, visible, words, torch.ones_like(words, dtype=torch.bool))
    return model.word_logits(text_out)


def guess(logits: Tensor, hidden: Caption, tokenizer: Tokenizer, top: int) -> list[Guess]:
    """What logits [L, V] say of each hidden word of a caption."""
    chances = logits[torch.from_numpy(hidden.hidden).to(logits.device)].float().softmax(dim=-1).cpu()
    best = chances.topk(min(top, chances.shape[-1]), dim=-1)
    return [
        Guess(float(own[id]), tuple((tokenizer.token(int(i)), float(p)) for p, i in zip(values, ids, strict=True)))
        for own, id, values, ids in zip(chances, hidden.hidden_ids, best.values, best.indices, strict=True)
    ]


def record(panel: Panel) -> dict[str, Any]:
    """What a panel says in words and numbers, JSON values: {clip_id, caption, mvm by ratio, words_at, words}."""
    return {
        "clip_id": panel.clip_id,
        "caption": panel.caption,
        "mvm": {f"{each.ratio:g}": each.mvm for each in panel.rebuilt},
        "words_at": panel.words_at,
        "words": [
            {
                "position": word.position,
                "word": word.word,
                "guesses": {name: {"probability": g.probability, "top": g.top} for name, g in word.guesses.items()},
            }
            for word in panel.words
        ],
    }


def sum_up(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Averages over all hidden words of all records, by condition, and over the clips' pixel losses, by ratio.

    Returns:
        clips; hidden_words; words: {condition: {right: share whose first guess is right, probability: mean of the
        right word's, perplexity: exp of the mean of its negative logarithm}}, conditions that not every word has left
        out; mvm: {ratio: mean}.
    """
    words = [word["guesses"] for each in records for word in each["words"]]
    names = [word["word"] for each in records for word in each["words"]]

    def averages(condition: str) -> dict[str, float]:
        chances = np.array([word[condition]["probability"] for word in words])
        right = [word[condition]["top"][0][0] == name for word, name in zip(words, names, strict=True)]
        perplexity = np.exp(-np.log(np.maximum(chances, 1e-30)).mean())
        return {
            "right": float(np.mean(right)),
            "probability": float(chances.mean()),
            "perplexity": float(perplexity),
        }

    return {
        "clips": len(records),
        "hidden_words": len(words),
        "words": {c: averages(c) for c in (WITH, WITHOUT, OTHER) if words and all(c in word for word in words)},
        "mvm": {ratio: float(np.mean([r["mvm"][ratio] for r in records])) for ratio in records[0]["mvm"]},
    }
