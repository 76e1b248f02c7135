"""Draw the captioned corpus of the quickstart: python launch/render_corpus.py --out DIR."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main() -> int:
    """Render both splits with a progress line; exit 2 with one line where the folder belongs to another corpus."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the corpus")
    parser.add_argument("--train", type=int, default=2000, help="training clips")
    parser.add_argument("--test", type=int, default=200, help="test clips, each with a caption of its own")
    parser.add_argument("--seed", type=int, default=0, help="seed of all that is drawn")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes")
    args = parser.parse_args()

    from simvtp_ds.data.render import render_corpus

    columns = (TextColumn("rendering"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    start = time.monotonic()
    try:
        with Progress(*columns) as progress:
            task = progress.add_task("rendering", total=args.train + args.test)
            rendered, total = render_corpus(
                args.out,
                args.train,
                args.test,
                args.seed,
                args.workers,
                lambda done, _: progress.update(task, completed=done),
            )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.out}: {total} clips, {rendered} of them rendered now, {time.monotonic() - start:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
