"""Captions and videos in, a folder for training out: probes every video once, lists what cannot be used and why."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from a clone, without installation

# Heavy imports stand inside the functions: probing processes import this file again and need none of them.

EPILOG = """\
what DIR holds afterwards:
  manifest.arrow   a row a caption: video, frames, rate, size (training reads it memory-mapped)
  tokenizer.json   the tokenizer that training uses unless it is told another
  refused.jsonl    every row that is not used, with its reason (a missing video: "file missing")
  summary.json     the figures printed at the end
  probe.jsonl      results by file, path, size and date; an interrupted run goes on from them

examples:
  python launch/prepare.py captions.json --out data/webvid --videos /datasets/webvid --workers 32
  python launch/prepare.py clips.csv --out data/clips --tokenizer bert-base-uncased
  python launch/prepare.py MSRVTT_JSFUSION_test.csv --out data/1ka --videos MSRVTT/videos --tokenizer data/webvid
  python launch/prepare.py MSRVTT_data.json --list MSRVTT_train.9k.csv --out data/9k --videos MSRVTT/videos

the formats, and where their videos are looked for: docs/annotations.md
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    from simvtp_ds.data.annotations import SPLITS
    from simvtp_ds.data.annotations_formats import READERS

    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    p = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument(
        "annotations",
        metavar="ANNOTATIONS",
        help='JSON {"video path": "caption" or ["caption", ...]}; JSONL or CSV with a path and a caption column; or a '
        "file as published of MSR-VTT, MSVD, ActivityNet Captions, DiDeMo, LSMDC, VATEX or WebVid",
    )
    p.add_argument(
        "--out", metavar="DIR", required=True, help="folder to write; an earlier run's results in it are used"
    )
    p.add_argument(
        "--videos",
        metavar="ROOT",
        default="",
        help="folder that the video paths start from (default: the annotations'); where a path is missing, the same "
        "name with another video extension will do",
    )
    p.add_argument(
        "--format",
        metavar="NAME",
        choices=["auto", *READERS],
        default="auto",
        help=f"of ANNOTATIONS: {', '.join(READERS)} (default: auto, by the file's content)",
    )
    p.add_argument(
        "--list",
        dest="names",
        metavar="FILE",
        default="",
        help="only the videos that FILE names, one a line or in a column video_id (such as MSRVTT_train.9k.csv)",
    )
    p.add_argument("--split", choices=SPLITS, default="", help="only this split, where ANNOTATIONS gives it (msrvtt)")
    p.add_argument(
        "--workers",
        metavar="N",
        type=int,
        default=cpus,
        help="probing processes (default: one a CPU)",
    )
    p.add_argument(
        "--timeout",
        metavar="S",
        type=float,
        default=120.0,
        help="seconds after which a probe counts as hung (default: 120)",
    )
    words = p.add_mutually_exclusive_group()
    words.add_argument(
        "--tokenizer", metavar="NAME", default="", help="folder or hub name of a BERT tokenizer (default: train one)"
    )
    words.add_argument(
        "--vocab-size",
        metavar="V",
        type=int,
        default=30522,
        help="most tokens of the trained tokenizer (default: 30522)",
    )
    return p


def report(summary, out: str) -> None:
    """Prints the summary as a small table."""
    from simvtp_ds.data.annotations_lists import shown

    each, missing = summary.captions_per_video, summary.not_annotated
    joined = f", joined to {summary.rows} paragraphs" if summary.rows < summary.captions else ""
    lines = [
        ("format", ", ".join(filter(None, (summary.format, summary.published)))),
        ("captions in", f"{summary.captions} of {summary.annotated_videos} videos{joined}"),
        ("  a video", f"{each['min']} to {each['max']}, on average {each['mean']:.2f}"),
        *(
            [("not annotated", f"{len(missing)} of the list's names: {shown(missing, len(missing))}")]
            if missing
            else []
        ),
        ("missing videos", f"{summary.missing_videos}"),
        ("accepted", f"{summary.accepted} captions of {summary.videos} videos, {summary.hours:.2f} hours"),
        (
            "refused",
            f"{sum(summary.refused.values())}" + (f", see {Path(out) / 'refused.jsonl'}" if summary.refused else ""),
        ),
        *((f"  {kind}", f"{count}") for kind, count in summary.refused.items()),
        ("tokenizer", f"{summary.vocab_size} tokens" if summary.vocab_size else "none written"),
        ("probed now", f"{summary.probed} files"),
    ]
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        print(f"{name:<{width}}  {value}")


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0 at least one caption is usable, 1 none is or the input or DIR is at fault, 130 interrupted."""
    args = parser().parse_args(arguments)
    from simvtp_ds.data.prepare import PrepareError, prepare
    from simvtp_ds.progress import progress

    try:
        with progress("probing", "files") as on_progress:
            summary = prepare(**vars(args), on_progress=on_progress)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where this one stopped", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"error: cannot write {args.out}: {error}; what it held before is unchanged", file=sys.stderr)
        return 1
    except (ValueError, RuntimeError) as error:
        if isinstance(error, PrepareError) and error.summary is not None:
            report(error.summary, args.out)
        print(f"error: {error}", file=sys.stderr)
        return 1
    report(summary, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
