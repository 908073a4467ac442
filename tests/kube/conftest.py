"""Tests on a real Kubernetes of this machine: `make test-kube CNI=… PROXY=…`, as root.

They run only when they are named (tests/conftest.py). The environment says on which cluster: CNI, PROXY, and
CLUSTER_NAME. Without CLUSTER_NAME they make one of their own, which has a name that no other checkout uses, and remove
it at the end, also after Ctrl-C or SIGTERM (not with KEEP=1). A cluster that CLUSTER_NAME names is used if it is up,
and stays then.
"""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final, cast

import pytest

from deploy.cluster import cluster as clusters
from deploy.cluster import parts
from deploy.cluster.plan import Cluster
from l7proxy.errors import ConfigError
from tests.kube import logs
from tests.kube.handle import ROOT, Handle, name_of_this_checkout

LOCK: Final = ROOT / "build" / "test-kube.lock"
KEPT_LOGS: Final = pytest.StashKey[str]()


@pytest.fixture(scope="session")
def own_names() -> Iterator[None]:
    """The clusters with a `name_of_this_checkout` are of this run alone."""
    LOCK.parent.mkdir(exist_ok=True)
    with LOCK.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pytest.exit("tests/kube run already in this checkout: wait for their end, or use another checkout", 2)
        yield


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest, own_names: None) -> Iterator[Handle]:
    """A cluster of two nodes with DNS, and the images that it was made with."""
    named = os.environ.get("CLUSTER_NAME")
    made = Cluster(
        named or name_of_this_checkout("test"),
        cast("Any", os.environ.get("CNI", "bridge")),
        cast("Any", os.environ.get("PROXY", "nftables")),
    )
    if not named:
        clusters.down(made.name)  # what a killed run has left
    with _terminated_like_interrupted():
        yield from _up(made, request)


def _up(made: Cluster, request: pytest.FixtureRequest) -> Iterator[Handle]:
    handle = Handle(made, parts.ready())
    brought_up = True  # until it is known: an interrupted `up` leaves something
    failed = False
    try:
        brought_up = clusters.up(made)
        yield handle
        failed = request.session.testsfailed > 0
    except ConfigError:
        failed = True
        raise
    finally:
        if failed:
            request.config.stash[KEPT_LOGS] = str(logs.keep(handle))
        if brought_up and not os.environ.get("KEEP"):
            clusters.down(made.name)


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM ends the tests as Ctrl-C does: fixtures remove what they have made."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if directory := config.stash.get(KEPT_LOGS, ""):
        terminalreporter.write_line(f"Logs of the cluster, as it was when the tests ended: {directory}")


@pytest.fixture
def namespace(cluster: Handle, request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace of this test's own; removed with all that is in it."""
    name = request.node.originalname.replace("_", "-")[:50].strip("-")
    cluster.kubectl("create", "namespace", name)
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=true", timeout=180)
