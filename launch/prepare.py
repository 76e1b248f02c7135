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

what --pack DIR holds (a folder to train from, like --out's; moving or copying it needs no change):
  shards/*.tar     the videos, each once, as the webdataset library reads them: KEY.mp4, KEY.txt, KEY.json
  manifest.arrow   as above, with the place of each video in its shard; tokenizer.json, refused.jsonl, summary.json
  SHA256SUMS       of the shards: sha256sum -c SHA256SUMS
  index/*.jsonl    what became of each video, and the sha256 of its bytes
  pack.json        the settings; work/ while it is packed: videos that are in no shard yet

examples:
  python launch/prepare.py captions.json --out data/webvid --videos /datasets/webvid --workers 32
  python launch/prepare.py clips.csv --out data/clips --tokenizer bert-base-uncased
  python launch/prepare.py MSRVTT_JSFUSION_test.csv --out data/1ka --videos MSRVTT/videos --tokenizer data/webvid
  python launch/prepare.py MSRVTT_data.json --list MSRVTT_train.9k.csv --out data/9k --videos MSRVTT/videos
  python launch/prepare.py captions.json --out data/webvid --pack data/webvid256 --short-side 256 --gop 16

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
        help="probing and packing processes (default: one a CPU)",
    )
    p.add_argument(
        "--timeout",
        metavar="S",
        type=float,
        default=120.0,
        help="seconds after which a probe counts as hung; transcoding may take ten times that (default: 120)",
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
    packing = p.add_argument_group("packing", "with none of the last three, the files go into the shards as they are")
    packing.add_argument("--pack", metavar="DIR", default="", help="also write the accepted videos into tar shards")
    packing.add_argument(
        "--shard-mib",
        metavar="M",
        type=float,
        default=512.0,
        help="most MiB of a shard (default: 512); a video is whole",
    )
    packing.add_argument(
        "--short-side", metavar="PIXELS", type=int, help="transcode, to a shorter side of at most this (default: kept)"
    )
    packing.add_argument(
        "--gop", metavar="N", type=int, help="transcode, with a key frame every N frames (default: 16)"
    )
    packing.add_argument(
        "--frames-per-second", metavar="F", type=float, help="transcode, to this constant rate (default: kept)"
    )
    return p


def pack_config(options: dict):
    """Takes the settings of packing out of the options; None where there is nothing to pack."""
    from simvtp_ds.data.pack import PackConfig
    from simvtp_ds.data.transcode import Encoding

    asked = {name: options.pop(name) for name in ("short_side", "gop", "frames_per_second")}
    encoding = {name: value for name, value in asked.items() if value is not None}
    shard_mib = options.pop("shard_mib")
    if encoding and not options["pack"]:
        raise ValueError(
            f"--{next(iter(encoding)).replace('_', '-')} is given without --pack; name a folder to pack into"
        )
    return PackConfig(Encoding(**encoding) if encoding else None, shard_mib)


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


def report_packed(summary, folder: str) -> None:
    """Prints the summary of a packed set."""
    print(f"packed          {summary.captions} captions of {summary.videos} videos, {summary.hours:.2f} hours")
    print(f"shards          {summary.shards}, {summary.gib:.3f} GiB, in {folder}")
    for kind, count in summary.refused.items():
        print(f"  {kind}: {count}, see {Path(folder) / 'refused.jsonl'}")


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0 at least one caption is usable, 1 none is or the input or DIR is at fault, 130 interrupted."""
    options = vars(parser().parse_args(arguments))
    from simvtp_ds.data.pack import check_out, check_settings, pack
    from simvtp_ds.data.prepare import PrepareError, prepare
    from simvtp_ds.progress import progress

    out = writing = options["out"]
    try:
        config = pack_config(options)
        check_out(out)
        if folder := options.pop("pack"):
            check_settings(out, folder, config)
        with progress("probing", "files") as on_progress:
            summary = prepare(**options, on_progress=on_progress)
        report(summary, out)
        if folder:
            writing = folder
            report_packed(pack(out, folder, config, options["workers"], 10 * options["timeout"], progress), folder)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where this one stopped", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"error: cannot write {writing}: {error}; what it held before is unchanged", file=sys.stderr)
        return 1
    except (ValueError, RuntimeError) as error:
        if isinstance(error, PrepareError) and error.summary is not None:
            report(error.summary, out)
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
