"""Keep a training run going; `--help` tells how."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from simvtp_ds.supervise.command import read_command
from simvtp_ds.supervise.loop import MUST_CHANGE, Options, Supervisor

DESCRIPTION = """\
Start a training run, and start it again when it fails; it goes on from its newest undamaged checkpoint.

  python launch/supervise.py -- deepspeed --hostfile hostfiles/8node launch/pretrain.py \\
      --deepspeed_config ds_configs/zero2.json --data.manifest /shared/mine --run.dir /shared/runs/mine

SIGTERM, SIGINT and SIGUSR1 are passed on: the run saves and ends, and is not started again.

exit codes: 0 finished; 1 gave up; 2 the settings must change first; 75 stopped as asked, the same command goes on.
Every start and end is a line in RUN/supervise.jsonl. docs/recovery.md has more."""


def parse_options(arguments: list[str]) -> Options:
    """The supervisor's own options."""
    default = Options()
    parser = argparse.ArgumentParser(
        usage="%(prog)s [OPTIONS] -- COMMAND", description=DESCRIPTION, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--failures",
        type=int,
        default=default.failures,
        help=f"""\
failures in a row without a new checkpoint after which it gives up (default: {default.failures})""",
    )
    parser.add_argument(
        "--wait",
        type=float,
        default=default.wait,
        help=f"""\
seconds before the next start (default: {default.wait:g}), doubled with every failure
without a new checkpoint, up to ten minutes""",
    )
    parser.add_argument(
        "--grace",
        type=float,
        default=default.grace,
        help=f"""\
seconds that a run has to save and end when it is stopped (default: {default.grace:g})""",
    )
    parser.add_argument(
        "--min-hosts",
        type=int,
        help="""\
go on with fewer hosts than the hostfile names, but no fewer than this: those that do not
answer to ssh are left out until they do, and gradient accumulation keeps the global batch
(default: all hosts)""",
    )
    options = Options(**vars(parser.parse_args(arguments)))
    for name in ("failures", "min_hosts"):
        if (value := getattr(options, name)) is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} is {value}: give 1 or more")
    for name in ("wait", "grace"):
        if (value := getattr(options, name)) < 0:
            parser.error(f"--{name} is {value:g}: give seconds, 0 or more")
    return options


def main(arguments: list[str]) -> int:
    """Supervise; the exit code."""
    split = arguments.index("--") if "--" in arguments else len(arguments)
    options = parse_options(arguments[:split])
    try:
        return Supervisor(read_command(arguments[split + 1 :]), options).run()
    except (ValueError, OSError) as error:
        print(f"supervise: {error}", file=sys.stderr)
        return MUST_CHANGE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
