"""Ten thousand pods end at once while requests go on, and a policy changes meanwhile.

The pods are objects of the real API server only: they are bound to a Node that has no kubelet, and have addresses and
labels that the policy admits.
"""

from __future__ import annotations

import http.client
import json
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from ipaddress import IPv4Address
from typing import Any, Final
from urllib.parse import urlsplit

import pytest
import yaml

from deploy.cluster.plan import Machine
from tests.kube.handle import Handle, eventually
from tests.kube.test_bad_days import (
    NARROWER,
    counts,
    pod_on,
    release,  # noqa: F401 -- fixtures
    traffic,  # noqa: F401
    under_traffic,
)
from tests.kube.test_helm import POLICY

PODS: Final = 10_000
NODE: Final = "without-kubelet"
FIRST: Final = IPv4Address("10.250.0.0")
CLIENTS: Final = 8
"""Connections to the API server."""
PARTS: Final = 80
MERGE: Final = "application/merge-patch+json"

pytestmark = [pytest.mark.usefixtures("traffic"), pytest.mark.timeout(900)]


class Api:
    """One connection to the API server, as the cluster's administrator. To be closed."""

    def __init__(self, cluster: Handle) -> None:
        config = yaml.safe_load(cluster.cluster.kubeconfig.read_text())
        self._place = urlsplit(config["clusters"][0]["cluster"]["server"])
        pki = cluster.cluster.pki
        self._tls = ssl.create_default_context(cafile=str(pki / "ca.crt"))
        self._tls.load_cert_chain(pki / "admin.crt", pki / "admin.key")
        self._connection = self._connect()

    def close(self) -> None:
        self._connection.close()

    def ask(self, method: str, path: str, body: Any = None, kind: str = "application/json") -> None:
        content = None if body is None else json.dumps(body)
        self._connection.request(method, path, content, {"Content-Type": kind, "Accept": "application/json"})
        answer = self._connection.getresponse()
        text = answer.read()
        assert answer.status < 300, f"{method} {path}: {answer.status} {text[:300]!r}"

    def _connect(self) -> http.client.HTTPSConnection:
        assert self._place.hostname
        return http.client.HTTPSConnection(self._place.hostname, self._place.port, context=self._tls, timeout=300)


@pytest.fixture
def crowd(cluster: Handle, namespace: str) -> Iterator[str]:
    """The pods' namespace."""
    cluster.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}})
    try:
        with ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(lambda share: create(cluster, namespace, share), shares()))
        yield namespace
    finally:
        delete_all(cluster, namespace)
        cluster.kubectl("delete", "node", NODE)


def delete_all(cluster: Handle, namespace: str) -> None:
    """In parts, since the API server ends a request after 60 s."""
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(lambda first: delete(cluster, namespace, range(first, PARTS, CLIENTS)), range(CLIENTS)))


def delete(cluster: Handle, namespace: str, parts: Sequence[int]) -> None:
    with closing(Api(cluster)) as api:
        for part in parts:
            which = f"gracePeriodSeconds=0&labelSelector=part%3D{part}"
            api.ask("DELETE", f"/api/v1/namespaces/{namespace}/pods?{which}")


def shares() -> list[range]:
    return [range(first, PODS, CLIENTS) for first in range(CLIENTS)]


def create(cluster: Handle, namespace: str, numbers: Sequence[int]) -> None:
    path = f"/api/v1/namespaces/{namespace}/pods"
    spec = {"nodeName": NODE, "containers": [{"name": "c", "image": "example/none:1"}]}
    with closing(Api(cluster)) as api:
        for number in numbers:
            metadata = {"name": f"p{number}", "labels": {"role": "client", "part": f"{number % PARTS}"}}
            api.ask("POST", path, {"metadata": metadata, "spec": spec})
            address = str(FIRST + number)
            status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}
            api.ask("PATCH", f"{path}/p{number}/status", {"status": status}, MERGE)


def known(cluster: Handle, node: Machine) -> int:
    """How many of them the kernel of a node has as peers."""
    return cluster.in_node(node, "nft", "list", "map", "inet", "l7proxy", "host4").count("10.250.")


def seconds_until(holds: Callable[[], object], what: str, since: float) -> float:
    eventually(holds, what, 120)
    return round(time.monotonic() - since, 1)


def test_ten_thousand_pods_are_deleted_at_once(
    cluster: Handle, crowd: str, record_property: Callable[[str, object], None]
) -> None:
    for node in cluster.nodes:
        eventually(lambda node=node: known(cluster, node) == PODS, f"{node.name} knows them", 120)  # type: ignore[misc]
    agents = [pod_on(cluster, node, "agent")["status"]["containerStatuses"] for node in cluster.nodes]
    with under_traffic(cluster, may_fail=True):
        before = counts(cluster, "client-1")
        start = time.monotonic()
        with ThreadPoolExecutor(1) as pool:
            deleting = pool.submit(delete_all, cluster, crowd)
            cluster.kubectl("patch", "cnp", "web", "--type=json", "-p", json.dumps(NARROWER))
            found = {"new policy": seconds_until(lambda: forbidden_now(cluster), "the new policy holds", start)}
            deleting.result()
        found["deleted by the API server"] = round(time.monotonic() - start, 1)
        for node in cluster.nodes:
            gone = seconds_until(lambda node=node: not known(cluster, node), f"{node.name} has none", start)  # type: ignore[misc]
            found[f"gone on {node.name}"] = gone
        new = counts(cluster, "client-1") - before
        assert {what for what in new if what.startswith("allowed")} == {"allowed: 200", "allowed: 403"}, new
        cluster.apply(POLICY)
    for what, seconds in found.items():
        record_property(what, seconds)
    print(f"{PODS} pods deleted at once, seconds: {found}")
    assert agents == [pod_on(cluster, node, "agent")["status"]["containerStatuses"] for node in cluster.nodes]


def forbidden_now(cluster: Handle) -> bool:
    return counts(cluster, "client-1")["allowed: 403"] > 0
