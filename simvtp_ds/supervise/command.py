"""The command that is supervised: what it runs, on how many ranks, and the same command with a value changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from simvtp_ds.config import PretrainConfig
from simvtp_ds.finetune_config import FinetuneConfig
from simvtp_ds.hosts import read_hostfile
from simvtp_ds.launching import parse

Hosts: TypeAlias = dict[str, int]  # name: slots, in the order of the hostfile
# The training scripts: class of their configuration, preset where none is named.
SCRIPTS = {
    "pretrain.py": (PretrainConfig, "pretrain_webvid"),
    "finetune.py": (FinetuneConfig, "finetune_msrvtt"),
}
HOSTFILE, NODES, ACCELERATORS = ("--hostfile", "-H"), ("--num_nodes",), ("--num_gpus", "--num_accelerators")
DEFAULT_HOSTFILE = Path("/job/hostfile")  # DeepSpeed reads it unasked
FILTERS = ("--include", "-i", "--exclude", "-e")
JSON = ("--deepspeed_config",)


@dataclass(frozen=True)
class Command:
    """Words of a command that starts a training script.

    Attributes:
        words: All of them.
        script: Index of the training script.
        config: The run's configuration.
        deepspeed_config: Path of the DeepSpeed JSON.
    """

    words: tuple[str, ...]
    script: int
    config: Any
    deepspeed_config: str

    @property
    def launcher(self) -> tuple[str, ...]:
        """What stands before the script."""
        return self.words[: self.script]

    @property
    def by_deepspeed(self) -> bool:
        """Whether the deepspeed command starts it."""
        return any(Path(word).name in ("deepspeed", "ds") for word in self.launcher[:2])

    def hosts(self) -> Hosts | None:
        """The hosts of the hostfile, in its order, with the slots that are used; None without one.

        Raises:
            ValueError: the hostfile is missing or has a line that names no host and slots.
        """
        if not self.by_deepspeed:
            return None
        path = Path(value_of(self.launcher, HOSTFILE) or DEFAULT_HOSTFILE)
        if path == DEFAULT_HOSTFILE and not path.is_file():
            return None
        slots = number_of(self.launcher, ACCELERATORS)  # of every host, whatever the file says
        return {host: slots or given for host, given in read_hostfile(path).items()}

    def ranks(self, hosts: Hosts | None) -> int | None:
        """How many ranks the command starts, of a hostfile on `hosts`; None where only the launcher knows."""
        if self.by_deepspeed:
            if any(value_of(self.launcher, (name,)) for name in FILTERS):
                return None
            return number_of(self.launcher, ACCELERATORS) if hosts is None else sum(hosts.values())
        if any(word.endswith(("torchrun", "torch.distributed.run")) for word in self.launcher):
            each = number_of(self.launcher, ("--nproc_per_node", "--nproc-per-node"))
            nodes = value_of(self.launcher, ("--nnodes",)) or "1"
            return each * int(nodes) if each and nodes.isdecimal() else None
        return None

    def changed(self, hostfile: Path | None, force_multi: bool, deepspeed_config: Path | None) -> list[str]:
        """The words with another hostfile and another DeepSpeed JSON; None: as it is."""
        launcher, arguments = list(self.launcher), list(self.words[self.script :])
        if hostfile is not None:
            launcher = replaced(replaced(launcher, HOSTFILE, None), NODES, None)
            launcher += ["--hostfile", str(hostfile)]
            launcher += ["--force_multi"] * (force_multi and "--force_multi" not in launcher)
        if deepspeed_config is not None:
            arguments = replaced(arguments, JSON, str(deepspeed_config))
        return launcher + arguments


def read_command(words: Sequence[str]) -> Command:
    """Find the training script in a command and parse its arguments, as the script itself will.

    Raises:
        ValueError: it starts none of the training scripts, or a setting is impossible.
    """
    for index, word in enumerate(words):
        if word.endswith(".py") and Path(word).name in SCRIPTS:
            config_class, preset = SCRIPTS[Path(word).name]
            options = parse(list(words[index + 1 :]), config_class, preset, "")
            if options.resume == "none":
                raise ValueError("--resume none cannot be supervised: every start but the first has to resume")
            return Command(tuple(words), index, options.config, options.deepspeed_config)
    raise ValueError(
        f"nothing to supervise in {' '.join(words) or 'an empty command'!r}: after -- write the command that starts "
        "launch/pretrain.py or launch/finetune.py"
    )


def value_of(words: Sequence[str], names: Sequence[str]) -> str:
    """Value of an option (`--name value` or `--name=value`), the last one given; empty: it is not there."""
    found = ""
    for index, word in enumerate(words):
        name, given, value = word.partition("=")
        if name in names:
            found = value if given else words[index + 1] if index + 1 < len(words) else ""
    return found


def number_of(words: Sequence[str], names: Sequence[str]) -> int | None:
    """The same as a number above 0; None: it is not there, or none."""
    value = value_of(words, names)
    return int(value) if value.isdecimal() and int(value) > 0 else None


def replaced(words: Sequence[str], names: Sequence[str], value: str | None) -> list[str]:
    """The words with an option's value changed wherever it is given; None takes the option away."""
    result, skip = [], False
    for word in words:
        name, given, _ = word.partition("=")
        if skip:
            skip = False
        elif name in names:
            result += [] if value is None else [name, value]
            skip = not given
        else:
            result.append(word)
    return result
