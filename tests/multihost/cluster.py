"""The real launch commands, typed on one of several hosts."""

from __future__ import annotations

from typing import Any

from tests.integration.conftest import Launch, Launcher, free_port
from tests.multihost.hosts import HEAD, Hosts


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
