"""The same few clips again and again while a model is trained: a panel in TensorBoard and in the run's folder.

Nothing of the training is touched: masks come from streams of their own, dropout is off, and torch draws nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from simvtp_ds.config import PretrainConfig
from simvtp_ds.data.manifest import Clip, Manifest
from simvtp_ds.data.mixture import Mixture
from simvtp_ds.data.text import Tokenizer
from simvtp_ds.engine.ranks import Control, Rank
from simvtp_ds.evaluation.drawing import sheet, stacked, write_png
from simvtp_ds.evaluation.pictures import decoded, first_clips
from simvtp_ds.evaluation.reconstruction import Hiding, make_panel

CLIPS = 4


class Board(Protocol):
    """What the pictures need of a journal."""

    folder: Path
    board: Any  # SummaryWriter


@dataclass
class TrainingPictures:
    """Draws the first four videos of the training manifest; made before the model is.

    Args:
        config: Of the run.
        manifest: Its clips.
        tokenizer: Its words.
    """

    config: PretrainConfig
    manifest: Manifest | Mixture
    tokenizer: Tokenizer
    _shown: list[tuple[Clip, np.ndarray, np.ndarray | None]] | None = field(default=None, init=False)
    _reason: str = field(default="", init=False)

    def take(
        self, model: Any, step: int, rank: Rank, control: Control, together: bool, journal: Board | None
    ) -> list[str]:
        """Draw, on the main rank; every rank calls it.

        Args:
            model: The model in training.
            step: Steps done.
            rank, control: This process and the others.
            together: Whether the ranks hold parts of each parameter (ZeRO-3): then all of them run the model.
            journal: On the main rank.

        Returns:
            What the main rank should say: nothing, or why there is no picture. No picture ends a run.
        """
        if self._shown is None:
            self._shown, self._reason = self._look(rank, control)
            if self._reason:
                return [self._reason]
        if not self._shown or not (rank.is_main or together):
            return []
        masks, data = self.config.masks, self.config.data
        hiding = Hiding((masks.tube_ratio,), masks.tube_ratio, masks.word_ratio, self.config.run.seed)
        panels = [
            make_panel(model, self.tokenizer, data.max_words, clip.clip_id, clip.caption, frames, hiding, other)
            for clip, frames, other in self._shown
        ]
        if journal is None:
            return []
        picture = stacked([sheet(panel, low=96, high=128, means=False) for panel in panels])
        path = journal.folder / "pictures" / f"step_{step:08d}.png"
        try:
            path.parent.mkdir(exist_ok=True)
            write_png(picture, path)
        except OSError as error:
            return [f"no picture of step {step}: {path} cannot be written ({error.strerror}); training goes on"]
        journal.board.add_image("reconstruction", np.asarray(picture), step, dataformats="HWC")
        return []

    def _look(self, rank: Rank, control: Control) -> tuple[list[tuple[Clip, np.ndarray, np.ndarray | None]], str]:
        """The clips, decoded by the main rank; the others get black frames, which is enough to run the model along."""
        clips, missing, shown = first_clips(self.manifest, CLIPS), {}, []
        reason = ""
        if rank.is_main:
            try:
                shown = list(decoded(clips, self.config.data, missing))
            except (RuntimeError, OSError) as error:
                reason = str(error)
            if not shown:
                reason = reason or "; ".join(each.reason for each in missing.values())
        good, reason = control.gather(([clip.clip_id for clip, _, _ in shown], reason))[0]
        if reason:
            return [], f"no pictures: none of the first {len(clips)} videos can be decoded ({reason}); training goes on"
        if not rank.is_main:
            data = self.config.data
            black = np.zeros((data.num_frames, data.image_size, data.image_size, 3), np.uint8)
            shown = [(clip, black, black if len(good) > 1 else None) for clip in clips if clip.clip_id in good]
        return shown, ""
