"""Eight hosts for all tests of a session, and drills on two of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import Launcher, corpus, launcher
from tests.multihost.cluster import Cluster
from tests.multihost.drills import CONFIG, DRIVER, LAST, Drill, stop_at
from tests.multihost.hosts import Hosts, hosts, workers

__all__ = ["cluster", "corpus", "eight_hosts", "launcher"]


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


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Collects a row of every drill: drills.jsonl in pytest's base folder."""
    return tmp_path_factory.getbasetemp() / "drills.jsonl"


@pytest.fixture
def drill(cluster: Cluster, table: Path) -> Drill:
    """Two hosts to try faults on."""
    return Drill(cluster, table)


@pytest.fixture(scope="module")
def undisturbed(launcher: Launcher) -> Path:
    """The same two ranks, on one host and left alone."""
    launch = launcher.torchrun("undisturbed", CONFIG, driver=DRIVER, **stop_at(LAST))
    launch.succeed()
    return launch.run
