"""What became of an annotation file: the figures that prepare prints and keeps in summary.json."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from simvtp_ds.data.annotations import Annotations
from simvtp_ds.data.annotations_videos import clip_id
from simvtp_ds.data.manifest import Clip

_MISSING = "file missing"  # the kind of reason of a video that is not there


@dataclass(frozen=True)
class Summary:
    """What became of an annotation file.

    Attributes:
        format: Of the annotation file.
        published: Which published file it is by its counts, or how it differs; empty: not known for the format.
        annotated_videos: Videos that it names; here and below only those of the split and list asked for.
        captions: Captions that it holds for them.
        captions_per_video: Their "min", "mean" and "max".
        rows: Captions after those of a video were joined, where the format is read as paragraphs; else `captions`.
        not_annotated: Names of the list without a caption.
        missing_videos: Annotated videos of which there is no file.
        accepted: Captions (rows) in the manifest.
        videos: Distinct files in the manifest.
        hours: Their length (files of unknown frame rate left out).
        refused: Kind of reason -> captions (rows) refused for it, most frequent first.
        probed: Files opened in this run; the others were known from an earlier one.
        vocab_size: Token ids of the tokenizer; 0 where there is none because nothing is usable.
    """

    format: str
    published: str
    annotated_videos: int
    captions: int
    captions_per_video: dict[str, float]
    rows: int
    not_annotated: list[str]
    missing_videos: int
    accepted: int
    videos: int
    hours: float
    refused: dict[str, int]
    probed: int
    vocab_size: int


def summarize(
    found: Annotations, clips: list[Clip], refused: list[dict[str, str]], probed: int, vocab_size: int
) -> Summary:
    """The figures of one run.

    Args:
        found: The annotations.
        clips: Rows of the manifest.
        refused: The other rows, with "video" and "reason" ("kind: detail").
        probed, vocab_size: See `Summary`.
    """
    captions: Counter[str] = Counter()
    for row in found.rows:
        captions[clip_id(row.video)] += row.joined
    counts = captions.values()
    lengths = {clip.uri: clip.frames / clip.fps if clip.fps else 0.0 for clip in clips}
    return Summary(
        format=found.format,
        published=found.published,
        annotated_videos=len(counts),
        captions=sum(counts),
        captions_per_video={"min": min(counts), "mean": sum(counts) / len(counts), "max": max(counts)},
        rows=len(found.rows),
        not_annotated=found.not_annotated,
        missing_videos=len({clip_id(entry["video"]) for entry in refused if _kind(entry) == _MISSING}),
        accepted=len(clips),
        videos=len(lengths),
        hours=sum(lengths.values()) / 3600,
        refused=dict(Counter(map(_kind, refused)).most_common()),
        probed=probed,
        vocab_size=vocab_size,
    )


def _kind(refused: dict[str, str]) -> str:
    return refused["reason"].partition(":")[0]
