"""Sum up a run on one page: python launch/report.py runs/quickstart  writes report.json there and prints it."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main() -> None:
    """Read what the run left, write RUN/report.json, print a page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of the run (--run.dir)")
    run = parser.parse_args().run

    from simvtp_ds.evaluation.report import build_report, summary
    from simvtp_ds.files import replacing
    from simvtp_ds.launching import one_line

    with one_line(ValueError, OSError):
        report = build_report(run)
        with replacing(run / "report.json") as temporary:
            temporary.write_text(json.dumps(report, indent=1) + "\n")
        print(summary(report, run))
        print(f"\nthe same as JSON: {run / 'report.json'}")


if __name__ == "__main__":
    main()
