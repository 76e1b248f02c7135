"""Sum up a run, or compare several, on one page.

  python launch/report.py runs/quickstart                      prints it; writes report.json and report.html there
  python launch/report.py runs/a runs/b --out comparison.html  the same page for several runs

report.html needs no network: settings, losses, speed, restarts, bad clips, retrieval and reconstructions.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main() -> None:
    """Read what the runs left, write the page; of a single pre-training run also RUN/report.json, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder of a run (--run.dir)")
    parser.add_argument("--out", type=Path, help="the page (default: RUN/report.html; needed for several runs)")
    options = parser.parse_args()
    runs = list(dict.fromkeys(options.runs))

    from simvtp_ds.evaluation.history import read_history, runs_within
    from simvtp_ds.evaluation.page import render
    from simvtp_ds.evaluation.report import build_report, summary
    from simvtp_ds.files import replacing
    from simvtp_ds.launching import one_line

    with one_line(ValueError, OSError):
        if len(runs) > 1 and options.out is None:
            raise ValueError(f"{len(runs)} runs are to share a page: name it with --out, such as --out comparison.html")
        out = options.out or runs[0] / "report.html"
        if out.is_dir():
            raise ValueError(f"--out {out} is a folder: name a file, such as {out / 'report.html'}")
        histories = [read_history(run) for run in (runs_within(runs[0]) if len(runs) == 1 else runs)]
        if len(runs) == 1 and histories[0].kind == "pre-training":
            report = build_report(runs[0])
            with replacing(runs[0] / "report.json") as temporary:
                temporary.write_text(json.dumps(report, indent=1) + "\n")
            print(summary(report, runs[0]))
            print(f"\nthe same as JSON: {runs[0] / 'report.json'}")
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as temporary:
            temporary.write_text(render(histories), encoding="utf-8")
        print(f"with curves and pictures, for a browser: {out}")


if __name__ == "__main__":
    main()
