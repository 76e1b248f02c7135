"""On which hosts the next start runs, and how many micro batches keep its global batch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simvtp_ds.ds_check import read_json
from simvtp_ds.engine.checkpoint import record_of, steps_of
from simvtp_ds.files import replacing
from simvtp_ds.hosts import ask_all
from simvtp_ds.supervise.command import FILTERS, NODES, Command, Hosts, number_of, value_of


class NotEnoughHostsError(RuntimeError):
    """Too few hosts answer; that may be over in a moment."""


@dataclass(frozen=True)
class Start:
    """What is started next.

    Attributes:
        words: The command.
        ranks: Their number; None: only the launcher knows.
        told: What differs from the command as it was given, for a person.
        dropped: Hosts of the hostfile that are not used.
    """

    words: list[str]
    ranks: int | None
    told: str = ""
    dropped: tuple[str, ...] = ()


def newest_position(run: Any) -> dict[str, Any] | None:
    """Position of the newest complete checkpoint of a run (its `RunConfig`), whichever of its two locations has it.

    The sha256 of its files are the training run's to check.
    """
    positions = []
    for place in (run.dir, run.mirror):
        for folder in steps_of(Path(place)) if place else ():
            try:
                positions.append(record_of(folder)["position"])
            except (ValueError, OSError):
                continue
            break
    return max(positions, key=lambda position: position["step"], default=None)


def read_batch(path: str) -> dict[str, Any]:
    """The DeepSpeed JSON, whose numbers of clips are numbers; everything else in it is the training script's to check.

    Raises:
        ValueError: it is missing, is no JSON, or a number of clips is none.
    """
    raw = read_json(Path(path))
    for name in ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "train_batch_size"):
        value = raw.get(name, 1)
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{path}: {name} is {json.dumps(value)}; write a whole number above 0")
    return raw


def micro_batches(raw: dict[str, Any], ranks: int, global_batch: int) -> int | None:
    """How many micro batches make the global batch on `ranks` ranks; None where none do."""
    clips = raw.get("train_micro_batch_size_per_gpu", 0) * ranks
    return global_batch // clips if clips and global_batch % clips == 0 else None


def own_global_batch(raw: dict[str, Any], ranks: int) -> int:
    """Global batch of a DeepSpeed JSON as it stands, on `ranks` ranks."""
    micro = raw.get("train_micro_batch_size_per_gpu", 0) * ranks
    return raw.get("train_batch_size") or micro * (raw.get("gradient_accumulation_steps") or 1)


def plan(command: Command, folder: Path, min_hosts: int | None) -> Start:
    """The next start: on the hosts that answer, with the global batch of the newest checkpoint.

    The user's hostfile and DeepSpeed JSON stay as they are; where others are needed they are written to `folder`.

    Args:
        command: As it was given.
        folder: Where changed files go.
        min_hosts: Fewest hosts to go on with; None: all of the hostfile, without asking them.

    Raises:
        ValueError: no number of these hosts makes the global batch, or a file is missing or damaged.
        NotEnoughHostsError: fewer than `min_hosts` answer.
    """
    hosts = wanted = command.hosts()
    limit = number_of(command.launcher, NODES)
    if hosts is not None and limit:
        wanted = dict(list(hosts.items())[:limit])
    raw = read_batch(command.deepspeed_config)
    full = command.ranks(wanted)
    position = newest_position(command.config.run)
    global_batch = position["global_batch"] if position else own_global_batch(raw, full) if full else None

    used = wanted
    if min_hosts is not None:
        if hosts is None or wanted is None or any(value_of(command.launcher, (name,)) for name in FILTERS):
            raise ValueError("--min-hosts needs a deepspeed command with --hostfile, and no --include or --exclude")
        wrong = {host: why for host, why in ask_all(hosts, value_of(command.launcher, ("--ssh_port",))).items() if why}
        alive = {host: slots for host, slots in hosts.items() if host not in wrong}
        if len(alive) < min_hosts:
            dead = "; ".join(f"{host}: {why}" for host, why in wrong.items())
            raise NotEnoughHostsError(f"{len(alive)} of {len(hosts)} hosts answer, --min-hosts is {min_hosts} ({dead})")
        used = most_that_fit(command, raw, list(alive.items())[: len(wanted)], min_hosts, global_batch)
    ranks = command.ranks(used)
    hostfile, told = None, []
    if used is not None and wanted is not None and used != wanted:
        hostfile = folder / "hostfile"
        with replacing(hostfile) as temporary:
            temporary.write_text("".join(f"{host} slots={slots}\n" for host, slots in used.items()))
        told.append(f"{len(used)} of {len(wanted)} hosts ({', '.join(used)})")
    settings = None
    if ranks and global_batch:
        accumulation = micro_batches(raw, ranks, global_batch)
        if accumulation is None:
            raise ValueError(no_fit(command, raw, ranks, global_batch))
        derived = accumulation if "train_batch_size" in raw else 1  # by DeepSpeed, where the file leaves it out
        if raw.get("gradient_accumulation_steps", derived) != accumulation:
            settings = folder / Path(command.deepspeed_config).name
            with replacing(settings) as temporary:
                temporary.write_text(json.dumps({**raw, "gradient_accumulation_steps": accumulation}, indent=2) + "\n")
            told.append(
                f"{ranks} ranks with {accumulation} micro batches a step keep its {global_batch} clips ({settings})"
            )
    dropped = tuple(host for host in wanted or () if host not in (used or ()))
    address = value_of(command.launcher, ("--master_addr",))
    if address in dropped:
        raise ValueError(f"--master_addr {address} does not answer: leave the option out, DeepSpeed finds the address")
    return Start(
        words=command.changed(hostfile, used is not None and len(used) == 1, settings),
        ranks=ranks,
        told="; ".join(told),
        dropped=dropped,
    )


def most_that_fit(
    command: Command, raw: dict[str, Any], alive: list[tuple[str, int]], min_hosts: int, global_batch: int | None
) -> Hosts:
    """The first of the living hosts, as many as make the global batch.

    Raises:
        ValueError: no number of them from `min_hosts` on does.
    """
    for count in range(len(alive), min_hosts - 1, -1):
        hosts = dict(alive[:count])
        if global_batch is None or micro_batches(raw, sum(hosts.values()), global_batch):
            return hosts
    raise ValueError(no_fit(command, raw, sum(dict(alive).values()), global_batch or 0))


def no_fit(command: Command, raw: dict[str, Any], ranks: int, global_batch: int) -> str:
    """Why there is no accumulation, with the numbers."""
    micro = raw.get("train_micro_batch_size_per_gpu", 0)
    return (
        f"{command.deepspeed_config}: {ranks} ranks x train_micro_batch_size_per_gpu {micro} = {ranks * micro} clips, "
        f"and the run's {global_batch} clips a step are no multiple of that: lower train_micro_batch_size_per_gpu, or "
        "wait for the missing hosts"
    )
