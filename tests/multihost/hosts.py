"""Several hosts on one machine: namespaces of their own (network, processes, names, IPC, mounts) and an sshd in each.

They have one file system, as hosts of a cluster with a shared one have, and otherwise nothing but the network in
common. All of it hangs on one process a host: ending that ends whatever runs there, and nothing else is left behind.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAD = "head"  # where a person sits and types `deepspeed --hostfile`; its bridge is the network
PROGRAMS = {"ip": "iproute2", "nsenter": "util-linux", "pdsh": "pdsh", "ssh": "openssh-client"}
SSHD = "/usr/sbin/sshd"
# The first process of a host. It waits for the network before sshd starts, and collects processes that lost their
# parent. $1 name, $2 folder of the files that differ from the machine's own, $3 sshd's configuration or nothing.
INIT = """
set -e
hostname "$1"
mount -t tmpfs tmpfs /dev/shm
mount --bind "$2/hosts" /etc/hosts
mount --bind "$2/ssh_config" /etc/ssh/ssh_config
ip link set lo up
echo ready
read -r _
if [ -n "$3" ]; then mkdir -p /run/sshd; /usr/sbin/sshd -D -e -f "$3" & fi
while :; do sleep infinity & wait; done
"""


def require_hosts() -> None:
    """Skip the test, or under CI fail it, where hosts cannot be made."""
    missing = [package for program, package in PROGRAMS.items() if shutil.which(program) is None]
    missing += [] if Path(SSHD).is_file() else ["openssh-server"]
    reason = f"hosts need the system packages {', '.join(missing)}" if missing else ""
    if os.geteuid() != 0:
        reason = "hosts need root: they are namespaces"
    if not reason:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@dataclass(frozen=True)
class Host:
    """A running host: its name, its address, and the id of its first process as the tests see it."""

    name: str
    address: str
    init: int


class Hosts:
    """The head and the workers; see `hosts`, which makes and ends them.

    Attributes:
        names: The workers, in order.
        environment: Variables of every command that `start`, `run` and the launcher start on any host.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder, self.names = folder, list(names)
        self.environment = {
            "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
            "DS_ACCELERATOR": "cpu",
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "eth0",  # gloo would take the address of the host's name, which may be loopback
        }
        if "TORCH_EXTENSIONS_DIR" in os.environ:
            self.environment["TORCH_EXTENSIONS_DIR"] = os.environ["TORCH_EXTENSIONS_DIR"]
        self._started: list[subprocess.Popen[str]] = []
        self._hosts: dict[str, Host] = {}

    def up(self) -> None:
        """Make keys, start the hosts, connect them, wait until every sshd answers."""
        for key in ("client", "server"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "tests", "-f", str(self.folder / key)]
            subprocess.run(command, check=True)
        addresses = {name: f"10.77.0.{number}" for number, name in enumerate([HEAD, *self.names], 10)}
        lines = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in addresses.items())]
        (self.folder / "hosts").write_text("\n".join(lines) + "\n")
        key = " ".join((self.folder / "server.pub").read_text().split()[:2])
        (self.folder / "known_hosts").write_text("".join(f"{name} {key}\n" for name in self.names))
        (self.folder / "ssh_config").write_text(
            f"Include {ROOT}/hostfiles/ssh_config\n"  # what the documentation tells people to use
            f"Host *\n  IdentityFile {self.folder}/client\n  UserKnownHostsFile {self.folder}/known_hosts\n"
        )
        lines = [f"{name}={value}\n" for name, value in self.environment.items()]  # no empty line, no comment
        (self.folder / "deepspeed_env").write_text("".join(lines))
        self.environment["DS_ENV_FILE"] = str(self.folder / "deepspeed_env")
        for name, address in addresses.items():
            self._hosts[name] = self._start(name, address)
        self._connect()
        for process in self._started:
            assert process.stdin is not None
            process.stdin.write("the network is there\n")
            process.stdin.flush()
        deadline = time.monotonic() + 30
        for name in self.names:
            while (answer := self.run(["ssh", name, "true"], check=False)).returncode:
                assert time.monotonic() < deadline, f"sshd of {name} does not answer: {answer.stdout}"
                time.sleep(0.1)

    def _start(self, name: str, address: str) -> Host:
        config = ""
        if name != HEAD:
            config = str(self.folder / f"sshd_{name}")
            Path(config).write_text(
                f"ListenAddress {address}\nHostKey {self.folder}/server\nAuthorizedKeysFile {self.folder}/client.pub\n"
                "PasswordAuthentication no\nStrictModes no\nUsePAM no\nPidFile none\nMaxStartups 100\n"
            )
        # Whatever becomes of the tests' process: its end ends unshare, and that the host's first process.
        command = ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--mount", "--pid", "--uts", "--ipc", "--fork"]
        command += ["--kill-child", "--mount-proc", "bash", "-c", INIT, "init", name, str(self.folder), config]
        with (self.folder / f"log_{name}").open("w") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
            )
        self._started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", (self.folder / f"log_{name}").read_text()
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        return Host(name, address, int(children[0]))

    def _connect(self) -> None:
        """A bridge on the head, a cable from it to every worker's eth0."""
        self._ip(HEAD, "link", "add", "br0", "type", "bridge")
        self._ip(HEAD, "addr", "add", f"{self._hosts[HEAD].address}/24", "dev", "br0")
        self._ip(HEAD, "link", "set", "br0", "up")
        for name in self.names:
            host = self._hosts[name]
            self._ip(HEAD, "link", "add", self._cable(name), "type", "veth", "peer", "eth0", "netns", str(host.init))
            self._ip(HEAD, "link", "set", self._cable(name), "master", "br0", "up")
            self._ip(name, "addr", "add", f"{host.address}/24", "dev", "eth0")
            self._ip(name, "link", "set", "eth0", "up")

    def _ip(self, host: str, *words: str) -> None:
        command = ["nsenter", f"--target={self._hosts[host].init}", "--net", "ip", *words]
        subprocess.run(command, check=True, timeout=10)

    def _cable(self, name: str) -> str:
        return f"cable{self.names.index(name)}"

    def command(self, command: Sequence[str], host: str = HEAD, **variables: str) -> list[str]:
        """The command line that runs `command` on `host`, in the repository, for `subprocess` on the machine."""
        enter = ["nsenter", f"--target={self._hosts[host].init}", "--mount", "--uts", "--ipc", "--net", "--pid"]
        words = [f"{name}={value}" for name, value in {**self.environment, **variables}.items()]
        return [*enter, "env", f"--chdir={ROOT}", *words, *command]

    def run(
        self, command: Sequence[str], host: str = HEAD, timeout: float = 120, check: bool = True, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a host to its end; its output, stderr with it, is `stdout`."""
        return subprocess.run(
            self.command(command, host, **variables),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=check,
        )

    def hostfile(self, slots: int = 1, names: Sequence[str] = ()) -> Path:
        """A hostfile of these workers (all of them if none is named)."""
        path = self.folder / f"hostfile_{slots}_{'_'.join(names)}"
        path.write_text("".join(f"{name} slots={slots}\n" for name in names or self.names))
        return path

    def cut(self, host: str) -> None:
        """Pull a worker's cable out: what it and the others send is lost, and no connection is closed."""
        self._ip(HEAD, "link", "set", self._cable(host), "down")

    def restore(self, host: str) -> None:
        """Put the cable back."""
        self._ip(HEAD, "link", "set", self._cable(host), "up")

    def processes(self, host: str) -> dict[int, str]:
        """Ids, as the tests see them, and command lines of what runs on a host, besides its first process and sshd.

        (The sshd of a host whose link is cut keeps its side of a connection for as long as TCP does.)
        """
        return {p: words for p, words in self._all(host).items() if not words.startswith(("sleep infinity", "sshd: "))}

    def _all(self, host: str) -> dict[int, str]:
        init = self._hosts[host].init
        space = Path(f"/proc/{init}/ns/pid").readlink()
        found = {}
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and int(entry.name) != init and (entry / "ns/pid").readlink() == space:
                    words = (entry / "cmdline").read_text().replace("\0", " ").strip()
                    if words:  # else it has ended and waits for its parent
                        found[int(entry.name)] = words
            except OSError:
                continue
        return found

    def ranks(self, host: str, script: str = "launch/pretrain.py") -> list[int]:
        """Ids of the ranks on a host, as the tests see them, by local rank."""
        found = {
            words.split("--local_rank=")[1].split()[0]: process
            for process, words in self.processes(host).items()
            if f"{script} --local_rank=" in words and "deepspeed.launcher" not in words
        }
        return [found[rank] for rank in sorted(found)]

    def leftovers(self, patience: float = 10) -> dict[str, dict[int, str]]:
        """What still runs on any host after `patience` seconds, by host; empty as soon as nothing does."""
        deadline = time.monotonic() + patience
        while True:
            left = {name: found for name in self._hosts if (found := self.processes(name))}
            if not left or time.monotonic() > deadline:
                return left
            time.sleep(0.2)

    def clear(self) -> None:
        """End what still runs on the hosts, and put every cable back: the next test starts from nothing."""
        for name in self._hosts:
            for process in self.processes(name):
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
        for name in self.names:
            self.restore(name)

    def stop_sshd(self, host: str, sessions: bool = True) -> None:
        """End a worker's sshd and, with `sessions`, the connections that it serves."""
        for process, words in self._all(host).items():
            if words.startswith("sshd: /") or (sessions and words.startswith("sshd: ")):
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)

    def start_sshd(self, host: str) -> None:
        """Start a worker's sshd again."""
        self.run([SSHD, "-f", str(self.folder / f"sshd_{host}")], host)

    def inside(self, host: str, path: str | Path) -> Path:
        """Where the tests find what a host has at `path`, for what is mounted there only."""
        return Path(f"/proc/{self._hosts[host].init}/root{path}")

    def down(self) -> None:
        """End every host, and so all that runs there."""
        for process in self._started:
            process.kill()
        for process in self._started:
            process.communicate()


@contextmanager
def hosts(folder: Path, names: Sequence[str]) -> Iterator[Hosts]:
    """Hosts named `names` and a head, whose files are in `folder`; all are gone afterwards, however it ends."""
    require_hosts()
    made = Hosts(folder, names)
    try:
        made.up()
        yield made
    finally:
        made.down()


def workers(count: int) -> list[str]:
    """Names as hostfiles/8node has them."""
    return [f"worker-{number}" for number in range(1, count + 1)]
