"""Hosts of a hostfile, and which of them answer."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from simvtp_ds.files import replacing

Hosts: TypeAlias = dict[str, int]  # name: slots, in the order of the hostfile
ANSWER_WITHIN = 10  # seconds


def read_hostfile(path: Path, slots: int | None = None) -> Hosts:
    """Hosts and slots of a DeepSpeed hostfile. `slots`: used of every host, whatever the file says.

    Raises:
        ValueError: the file is missing, or a line names no host and slots, or a host that another one named.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--hostfile {path} cannot be read: {error}") from None
    hosts: Hosts = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.strip().startswith("#"):
            continue
        # The name goes to ssh as one word; one that starts with a dash would be an option there.
        match = re.match(r"([A-Za-z0-9_][\w.:-]*)\s+slots=(\d+)(\s|$)", line.strip(), re.ASCII)
        if match is None or match[1] in hosts:
            raise ValueError(f"{path}, line {number}: {line.strip()!r}; expected a host once, as in 'worker-1 slots=8'")
        hosts[match[1]] = slots or int(match[2])
    if not hosts:
        raise ValueError(f"--hostfile {path} names no host: write lines like 'worker-1 slots=8'")
    return hosts


def write_hostfile(path: Path, hosts: Mapping[str, int]) -> None:
    """The opposite of `read_hostfile`."""
    with replacing(path) as temporary:
        temporary.write_text("".join(f"{host} slots={slots}\n" for host, slots in hosts.items()))


def answering(hosts: Hosts, port: str = "") -> Hosts:
    """Those of the hosts that let us in through ssh within ten seconds, without a password."""
    ssh = ["ssh", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={ANSWER_WITHIN}", *(["-p", port] if port else [])]
    asked = {
        host: subprocess.Popen(
            [*ssh, "--", host, "true"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for host in hosts
    }
    alive = {}
    for host, process in asked.items():
        try:
            if process.wait(2 * ANSWER_WITHIN) == 0:
                alive[host] = hosts[host]
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    return alive
