"""Panels as pictures: a contact sheet (PNG) and a film (MP4) of original, masked and rebuilt frames."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import TypeAlias

import av
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from simvtp_ds.evaluation.reconstruction import Guess, HiddenWord, Panel
from simvtp_ds.files import replacing

COLUMNS = 8  # frames of a sheet at most, evenly over the clip
MARGIN, GAP, FONT_SIZE = 12, 4, 15
LINE = FONT_SIZE + 7  # pixels from one line of text to the next
INK, FAINT, RIGHT, WRONG, BOX = (24, 24, 24), (110, 110, 110), (0, 112, 60), (178, 40, 30), (255, 214, 140)
Text: TypeAlias = tuple[str, tuple[int, int, int]]  # with its colour
SLOWEST = Fraction(2)  # frames a second of a film at least


def sheet(panel: Panel, low: int = 128, high: int = 224, means: bool = True) -> Image.Image:
    """Frames over time, the rows for each ratio below the original, then the caption and what was said of its words.

    Args:
        panel: The clip.
        low, high: Smaller frames are magnified by whole numbers up to at least `low` pixels, larger ones reduced to at
            most `high`.
        means: Whether to add what would be seen if the model added nothing to the last ratio.
    """
    rows = [("original", "", panel.original)]
    for each in panel.rebuilt:
        rows.append((f"{100 * each.ratio:g} % hidden", "", each.masked))
        rows.append(("rebuilt", f"mvm {each.mvm:.3f}", each.rebuilt))
    if means and panel.rebuilt:
        rows.append(("without model", "patch means", panel.rebuilt[-1].means))
    shown = np.linspace(0, len(panel.original) - 1, min(COLUMNS, len(panel.original))).round().astype(int)
    pictures = [[fitted(frames[t], low, high) for t in shown] for _, _, frames in rows]
    side, label = pictures[0][0].width, 8 * FONT_SIZE
    text = _words(panel, 2 * MARGIN + label + len(shown) * (side + GAP))
    width = text.width
    canvas = Image.new("RGB", (width, 2 * MARGIN + len(rows) * (side + GAP) + text.height), "white")
    draw = ImageDraw.Draw(canvas)
    for row, (title, note, _) in enumerate(rows):
        top = MARGIN + row * (side + GAP)
        draw.text((MARGIN, top + side // 2 - LINE), title, INK, font())
        draw.text((MARGIN, top + side // 2), note, FAINT, font())
        for column, picture in enumerate(pictures[row]):
            canvas.paste(picture, (MARGIN + label + column * (side + GAP), top))
    canvas.paste(text, (0, MARGIN + len(rows) * (side + GAP)))
    return canvas


def stacked(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures one below the other."""
    canvas = Image.new("RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)), "white")
    top = 0
    for picture in pictures:
        canvas.paste(picture, (0, top))
        top += picture.height
    return canvas


def fitted(frame: np.ndarray, low: int, high: int) -> Image.Image:
    """A frame uint8 [H, W, 3], magnified or reduced by a whole number so that its pixels stay pixels."""
    picture, side = Image.fromarray(frame), frame.shape[0]
    if side < low:
        factor = -(-low // side)
        return picture.resize((factor * picture.width, factor * picture.height), Image.Resampling.NEAREST)
    return picture.reduce(-(-side // high)) if side > high else picture


def _words(panel: Panel, width: int) -> Image.Image:
    """The caption, its hidden words in boxes, and a table of what was said of them; wider where it has to be."""
    columns = _columns(panel)
    widths = [max(int(font().getlength(text)) for cell in column for text, _ in cell) + 24 for column in columns]
    heights = [max(len(column[row]) for column in columns) for row in range(len(panel.words) + 1)]
    width = max(width, 2 * MARGIN + sum(widths))
    canvas = Image.new("RGB", (width, (len(panel.tokens) + sum(heights) + 4) * LINE), "white")
    draw = ImageDraw.Draw(canvas)
    top = _caption(draw, panel, width)
    if not panel.words:
        draw.text((MARGIN, top), "no word of it was hidden" if panel.tokens else "no caption", FAINT, font())
        return canvas.crop((0, 0, width, top + LINE + MARGIN))
    for row, height in enumerate(heights):
        for number, column in enumerate(columns):
            for line, (text, colour) in enumerate(column[row]):
                draw.text((MARGIN + sum(widths[:number]), top + line * LINE), text, colour, font())
        top += LINE * height
    return canvas.crop((0, 0, width, top + MARGIN))


def _caption(draw: ImageDraw.ImageDraw, panel: Panel, width: int) -> int:
    """Writes the caption and returns where it ends, in pixels from the top."""
    left, top = MARGIN, MARGIN
    hidden = {word.position for word in panel.words}
    for place, token in enumerate(panel.tokens):
        piece = token.removeprefix("##")
        length = font().getlength(piece)
        if left + length > width - MARGIN and left > MARGIN:
            left, top = MARGIN, top + LINE
        elif piece == token and place:
            left += 7
        if place in hidden:
            draw.rectangle((left - 2, top - 1, left + length + 2, top + LINE - 4), BOX)
        draw.text((left, top), piece, INK, font())
        left += length
    return top + LINE + 6


def _columns(panel: Panel) -> list[list[list[Text]]]:
    """The table of hidden words: columns of cells of lines, each with its colour."""
    conditions = list(panel.words[0].guesses) if panel.words else []
    first: list[list[Text]] = [[("hidden word", FAINT)], *([(word.word, INK)] for word in panel.words)]
    others = [[[(name, FAINT)], *(_lines(word, word.guesses[name]) for word in panel.words)] for name in conditions]
    return [first, *others]


def _lines(word: HiddenWord, guess: Guess) -> list[Text]:
    """The most probable words, and how probable the right one is where it is not among them."""
    lines = [
        (f"{'✓' if said == word.word else '✗'} {said} {100 * chance:.0f} %", RIGHT if said == word.word else WRONG)
        for said, chance in guess.top
    ]
    if word.word in [said for said, _ in guess.top]:
        return lines
    right = f"(right: {100 * guess.probability:.0f} %)"
    return [(f"{lines[0][0]} {right}", WRONG)] if len(lines) == 1 else [*lines, (right, FAINT)]


@cache
def font() -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings: captions are not always written in Latin letters."""
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), FONT_SIZE)


def write_png(picture: Image.Image, path: Path) -> None:
    """A PNG file, whole or not at all."""
    with replacing(path) as temporary:
        picture.save(temporary, format="PNG", optimize=True)


def write_film(panel: Panel, path: Path, rate: float) -> None:
    """Original, masked and rebuilt side by side for each ratio, as H.264 in an MP4 file.

    Args:
        panel: The clip.
        path: The file.
        rate: Frames a second, at least 2; 0 where it is not known.
    """
    pictures = []
    for t in range(len(panel.original)):
        rows = [np.concatenate([panel.original[t], r.masked[t], r.rebuilt[t]], axis=1) for r in panel.rebuilt]
        pictures.append(np.asarray(fitted(np.concatenate(rows), 128 * len(rows), 4096)))
    height, width = (size - size % 2 for size in pictures[0].shape[:2])
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=max(Fraction(rate).limit_denominator(1000), SLOWEST))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": "16"}
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture[:height, :width].copy(), format="rgb24")))
        container.mux(stream.encode())
    with replacing(path) as temporary:
        temporary.write_bytes(buffer.getvalue())
