"""Tests on a real Kubernetes of this machine: `make test-kube CNI=… PROXY=…`, as root.

They run only when they are named (tests/conftest.py). The environment says on which cluster: CLUSTER_NAME, CNI, PROXY.
A cluster of that name which is up is used, and stays; else one is made, and removed at the end (not with KEEP=1).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, cast

import pytest

from deploy.cluster import cluster as clusters
from deploy.cluster import parts
from deploy.cluster.plan import Cluster
from tests.kube.handle import Handle


@pytest.fixture(scope="session")
def cluster() -> Iterator[Handle]:
    """A cluster of two nodes with DNS, and the images that it was made with."""
    made = Cluster(
        os.environ.get("CLUSTER_NAME", "test"),
        cast("Any", os.environ.get("CNI", "bridge")),
        cast("Any", os.environ.get("PROXY", "nftables")),
    )
    brought_up = clusters.up(made)
    yield Handle(made, parts.ready())
    if brought_up and not os.environ.get("KEEP"):
        clusters.down(made.name)


@pytest.fixture
def namespace(cluster: Handle, request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace of this test's own; removed with all that is in it."""
    name = request.node.originalname.replace("_", "-")[:50].strip("-")
    cluster.kubectl("create", "namespace", name)
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=true", timeout=180)
