"""The hosts of a hostfile before anything starts on them: their names, what reaches their shells, how they answer."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ANSWER_WITHIN = 10  # seconds
NO_PROJECT, NO_PYTHON = 3, 4  # exit codes of the question
# Prefixes of the variables that the deepspeed command passes on to every host (deepspeed.launcher.runner.EXPORT_ENVS).
PASSED_ON = ("MLFLOW", "PYTHON", "MV2", "UCX", "NCCL")


def read_hostfile(path: Path) -> dict[str, int]:
    """Hosts and slots, in the order of a DeepSpeed hostfile.

    Raises:
        ValueError: the file is missing, or a line is not a host's name (of letters, digits, - . _ : and at most one
            user@) and its slots, or names a host again. DeepSpeed hands names to ssh and shells as they are.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"hostfile {path} cannot be read: {error}") from None
    hosts: dict[str, int] = {}
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line or line.startswith("#"):
            continue
        match = re.fullmatch(r"((?:\w[\w.-]*@)?\w[\w.:-]*)\s+slots=(\d+)(?:\s+#.*)?", line, re.ASCII)
        if match is None or match[1] in hosts:
            raise ValueError(f"{path}, line {number}: {line!r}; expected a host once, as in 'worker-1 slots=8'")
        hosts[match[1]] = int(match[2])
    if not hosts:
        raise ValueError(f"hostfile {path} names no host: write lines like 'worker-1 slots=8'")
    return hosts


def check_passed_on(environment: Mapping[str, str] = os.environ) -> None:
    """Refuse values that the deepspeed command would hand to the hosts' shells, and these would not take as they are.

    It writes `export NAME="value"` for the lines of .deepspeed_env and some variables; what stands in double quotes is
    expanded, commands in it are run.

    Raises:
        ValueError: there is such a value, a line of .deepspeed_env that DeepSpeed cannot read, or
            such a path of the project or of this Python.
    """
    for path in (Path.cwd(), Path(sys.executable)):
        if found := re.search(r"[^\w@%+=:,./-]", str(path)):
            raise ValueError(f"the path {path} holds {found[0]!r}, which the hosts' shells would not take as it is")
    name = environment.get("DS_ENV_FILE", ".deepspeed_env")
    values = [("the environment", k, v) for k, v in environment.items() if k.startswith(PASSED_ON)]
    for file in dict.fromkeys([Path.home() / name, Path(name).absolute()]):
        for number, line in enumerate(file.read_text().splitlines() if file.is_file() else [], 1):
            key, given, value = line.partition("=")
            if not given or not re.fullmatch(r"\s*[A-Za-z_]\w*\s*", key, re.ASCII):
                raise ValueError(f"{file}, line {number}: {line!r}; every line must be NAME=value, also no empty ones")
            values.append((f"{file}, line {number}", key.strip(), value))
    for place, key, value in values:
        if found := re.search(r"[\"$`\\\n]", value):
            raise ValueError(f"{place}: {key} holds {found[0]!r}, which the hosts' shells would expand: {value!r}")


def check_words(words: Iterable[str]) -> None:
    """Refuse words of a command that the deepspeed command would hand to the hosts' shells unquoted.

    Raises:
        ValueError: there is one. (DeepSpeed puts double quotes around words with spaces, and nothing around others.)
    """
    for word in words:
        special = r"[\"$`\\\n]" if " " in word else r"[^\w@%+=:,./\[\]{}~^-]"
        if found := re.search(special, word):
            raise ValueError(f"{word!r} holds {found[0]!r}, which the hosts' shells would not take as it is; rename it")


def ask_all(hosts: Iterable[str], port: str = "") -> dict[str, str]:
    """What is wrong with each host, asked all at once through ssh without a password; empty: nothing."""
    hosts = list(hosts)
    with ThreadPoolExecutor(len(hosts)) as threads:
        return dict(zip(hosts, threads.map(lambda host: ask(host, port), hosts), strict=True))


def ask(host: str, port: str = "") -> str:
    """Whether ssh lets us in, and the project and this Python are there; what is wrong, in words."""
    project, python = Path.cwd(), sys.executable
    question = (
        f"test -d {shlex.quote(str(project))} || exit {NO_PROJECT}; test -x {shlex.quote(python)} || exit {NO_PYTHON}"
    )
    options = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={ANSWER_WITHIN}", *(["-p", port] if port else [])]
    try:
        answer = subprocess.run(
            ["ssh", *options, "--", host, question],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=3 * ANSWER_WITHIN,
            check=False,
        )
    except FileNotFoundError:
        return "the command ssh is not there: install openssh-client"
    except subprocess.TimeoutExpired:
        return f"no answer within {3 * ANSWER_WITHIN} s: its sshd or its file system hangs"
    if answer.returncode == 0:
        return ""
    told = (answer.stderr.strip().splitlines() or [""])[-1].strip()
    if answer.returncode == NO_PROJECT:
        return f"it has no {project}: all hosts need the project under the same path"
    if answer.returncode == NO_PYTHON:
        return f"it has no {python}: all hosts need the virtual environment under the same path"
    if "Host key verification failed" in told:
        return f"its key is not known here: connect once by hand (ssh {host}) and confirm it"
    if "Permission denied" in told:
        keys = ", ".join(locked_keys(host))
        if keys:
            return f"the key {keys} asks for a passphrase: load it into an agent (ssh-add) before the start"
        return f"it does not let us in without a password: ssh-copy-id {host} ({told})"
    return f"it cannot be reached: {told or f'ssh ended with {answer.returncode}'}"


def locked_keys(host: str) -> list[str]:
    """Private keys that ssh would use for a host and cannot without their passphrase."""
    told = subprocess.run(["ssh", "-G", "--", host], capture_output=True, text=True, check=False).stdout
    names = [line.split(maxsplit=1)[1] for line in told.splitlines() if line.startswith("identityfile ")]
    files = [file for file in (Path(name).expanduser() for name in names) if file.is_file()]
    command = ["ssh-keygen", "-y", "-P", "", "-f"]
    return [str(f) for f in files if subprocess.run([*command, str(f)], capture_output=True, check=False).returncode]
