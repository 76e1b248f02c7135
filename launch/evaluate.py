"""Score a model on a manifest by text-to-video and video-to-text retrieval.

  python launch/evaluate.py --checkpoint runs/mine --manifest data/msrvtt_1kA --out runs/mine/zero_shot.json
  deepspeed --num_accelerators 8 launch/evaluate.py --checkpoint runs/mine --manifest data/msrvtt_1kA

The model is a run of launch/pretrain.py (zero-shot) or launch/finetune.py, or one of its checkpoints.
docs/evaluation.md says what is measured. torchrun and srun start it as well; more ranks give the same scores sooner.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

VIEWS = {"honest": (1, 1), "authors": (15, 3)}  # segments, crops
TIMEOUT = 1800.0  # seconds that a rank waits for another; their parts are of the same size


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument(
        "--checkpoint",
        type=Path,
        required=True,
        help="a run folder (its newest), one of its checkpoints, or a folder of launch/convert.py",
    )
    p.add_argument("--manifest", type=Path, required=True, help="folder that launch/prepare.py wrote")
    p.add_argument("--out", type=Path, help="where to write the scores as JSON")
    p.add_argument(
        "--protocol",
        choices=list(VIEWS),
        default="honest",
        help="honest: one checkpoint, one view, ties against us. authors: the best checkpoint on this very set, 15 x 3 "
        "views, ties in our favour (how the paper's figure was kept: too high)",
    )
    p.add_argument("--segments", type=int, metavar="K", help="places in time (default: 1; authors 15)")
    p.add_argument("--crops", type=int, choices=[1, 3], help="places in space (default: 1; authors 3)")
    p.add_argument(
        "--rerank",
        type=int,
        nargs="?",
        const=20,
        default=0,
        metavar="K",
        help="order the first K places anew with the matching head (K: 20; default: not done)",
    )
    p.add_argument("--no-cache", action="store_true", help="compute the embeddings even where they are kept")
    p.add_argument("--local_rank", type=int, default=-1, help="set by the launcher")
    return p


def main(arguments: list[str]) -> None:
    """Connect the ranks, score, print a table, write JSON.

    Decoder processes import this file again (multiprocessing's spawn), so everything heavy is imported in here.
    """
    options = parser().parse_args(arguments)
    segments, crops = VIEWS[options.protocol]
    segments = segments if options.segments is None else options.segments
    crops = crops if options.crops is None else options.crops

    from simvtp_ds.data.manifest import Manifest
    from simvtp_ds.data.videos import Videos
    from simvtp_ds.engine.ranks import find_rank
    from simvtp_ds.evaluation import protocol
    from simvtp_ds.evaluation.connection import connected
    from simvtp_ds.evaluation.table import table
    from simvtp_ds.launching import one_line
    from simvtp_ds.progress import progress, silence

    with one_line(ValueError, OSError):
        if segments < 1 or options.rerank < 0:
            raise ValueError(f"--segments {segments} --rerank {options.rerank}: give at least 1 segment, and 0 or more")
        if options.out:  # told now, not after the work
            if options.out.is_dir():
                raise ValueError(f"--out {options.out} is a folder: name a file, such as {options.out / 'scores.json'}")
            options.out.parent.mkdir(parents=True, exist_ok=True)
            if not os.access(options.out.parent, os.W_OK):
                raise ValueError(f"--out {options.out} cannot be written: {options.out.parent} is not writable")
        rank = find_rank()
        videos = Videos(Manifest.open(options.manifest))
        with connected(rank, TIMEOUT) as (share, device):
            setting = protocol.Setting(
                videos=videos,
                share=share,
                device=device,
                say=(lambda line: print(line, flush=True)) if rank.is_main else (lambda line: None),
                progress=progress if rank.is_main else silence,
            )
            request = protocol.Request(segments, crops, options.rerank, cache=not options.no_cache)
            found = getattr(protocol, options.protocol)(options.checkpoint, request, setting)
        if rank.is_main:
            print(f"{found['checkpoint']} on {options.manifest}")
            print(table(found))
            if options.out:
                write(options.out, found)


def write(path: Path, found: dict) -> None:
    """Scores as JSON, whole or not at all."""
    from simvtp_ds.files import replacing

    try:
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(found, indent=1) + "\n")
    except OSError as error:
        raise OSError(f"--out {path} cannot be written: {error.strerror}") from error


if __name__ == "__main__":
    from simvtp_ds.process import run_main

    run_main(lambda: main(sys.argv[1:]), "interrupted: nothing was written")
