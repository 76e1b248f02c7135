"""Check the hosts of a hostfile before a run starts on them; `--help` tells how."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

DESCRIPTION = """\
Ask every host of a hostfile whether a run can start there, in some seconds, before the deepspeed command tries:

  python launch/check_hosts.py hostfiles/8node && deepspeed --hostfile hostfiles/8node launch/pretrain.py ...

ssh has to let us in without a password or a passphrase, and the project and this Python must lie there under the same
paths. Names of hosts, lines of .deepspeed_env and variables that DeepSpeed hands to the hosts' shells may hold nothing
that a shell would expand; the words of a command given after -- are checked for that, too."""


def main(arguments: list[str]) -> None:
    """Exit code 1 and a line for every host that cannot be used."""
    from argparse import ArgumentParser, RawDescriptionHelpFormatter

    from simvtp_ds.hosts import ask_all, check_passed_on, check_words, read_hostfile
    from simvtp_ds.launching import one_line

    parser = ArgumentParser(description=DESCRIPTION, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("hostfile", type=Path)
    parser.add_argument("--ssh_port", default="", help="as for the deepspeed command")
    parser.add_argument("words", nargs="*", help="after --: the command that will be started")
    options = parser.parse_args(arguments)
    with one_line(ValueError):
        hosts = read_hostfile(options.hostfile)
        check_passed_on()
        check_words(options.words)
    wrong = {host: reason for host, reason in ask_all(hosts, options.ssh_port).items() if reason}
    for host, reason in wrong.items():
        print(f"error: host {host} of {options.hostfile}: {reason}", file=sys.stderr)
    if wrong:
        raise SystemExit(1)
    print(f"{len(hosts)} hosts with {sum(hosts.values())} slots answer")


if __name__ == "__main__":
    main(sys.argv[1:])
