"""Eight hosts for all tests of a session, and the real launch command on them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.conftest import Launch, Launcher, corpus, free_port, launcher
from tests.multihost.hosts import HEAD, Hosts, hosts, workers

__all__ = ["cluster", "corpus", "eight_hosts", "launcher"]


class Cluster:
    """Starts runs from the head over the workers, through pdsh and ssh."""

    def __init__(self, hosts: Hosts, launcher: Launcher) -> None:
        self.hosts, self.launcher = hosts, launcher

    def deepspeed(
        self,
        run: str,
        config: dict[str, Any],
        *launch: str,
        driver: str = "launch/pretrain.py",
        host: str = HEAD,
        variables: dict[str, str] | None = None,
        **fields: Any,
    ) -> Launch:
        """`deepspeed LAUNCH... launch/pretrain.py ...` typed on `host`; fields as `Launcher.arguments` takes them."""
        command = ["deepspeed", f"--master_port={free_port()}", *launch, driver]
        return self.start(run, [*command, *self.launcher.arguments(driver, run, config, fields)], host, variables)

    def start(self, run: str, command: list[str], host: str, variables: dict[str, str] | None = None) -> Launch:
        """Any command on `host`, as the start of `run`."""
        return self.launcher.start(self.hosts.command(command, host, **(variables or {})), run)


@pytest.fixture(scope="session")
def eight_hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """worker-1 to worker-8, as hostfiles/8node names them."""
    with hosts(tmp_path_factory.mktemp("hosts"), workers(8)) as made:
        yield made


@pytest.fixture
def cluster(eight_hosts: Hosts, launcher: Launcher) -> Iterator[Cluster]:
    """The eight hosts with nothing running on them, before and after."""
    eight_hosts.clear()
    yield Cluster(eight_hosts, launcher)
    eight_hosts.clear()
