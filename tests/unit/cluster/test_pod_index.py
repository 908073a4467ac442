"""What the index of pods keeps: nothing of namespaces and nodes that are gone, and a stamp for each change."""

from __future__ import annotations

import pytest

from l7proxy.cluster.identity_labels import LabelFilter
from l7proxy.cluster.pod_index import PodIndex
from l7proxy.model.resources import Pod


def pod(namespace: str, name: str = "p", *, host_network: bool = False) -> Pod:
    return Pod(namespace, name, f"node-of-{namespace}", ("10.0.1.5",), {}, phase="Running", host_network=host_network)


def index() -> PodIndex:
    return PodIndex(cluster="c", kept=LabelFilter())


def kept(pod_index: PodIndex) -> list[int]:
    return [len(value) for value in vars(pod_index).values() if isinstance(value, dict)]


@pytest.mark.parametrize("host_network", [False, True])
def test_namespaces_and_nodes_that_are_gone_leave_nothing(host_network: bool) -> None:
    pod_index = index()
    assert pod_index.identities() is not None
    before = kept(pod_index)
    for number in range(100):
        passing = pod(f"ci-{number}", host_network=host_network)
        pod_index.upsert(passing)
        pod_index.delete(passing.key)
        pod_index.stamp(f"services-{number}")
        pod_index.identities()
    assert kept(pod_index) == before


def test_every_change_of_a_namespace_gives_another_stamp() -> None:
    pod_index, seen = index(), [index().stamp("shop")]
    for change in (pod_index.upsert, pod_index.upsert, lambda one: pod_index.delete(one.key)):
        change(pod("shop"))
        assert pod_index.stamp("shop") is not seen[-1]
        seen.append(pod_index.stamp("shop"))
        pod_index.upsert(pod("other"))
        assert pod_index.stamp("shop") is seen[-1]
    pod_index.upsert(pod("shop", "a"))
    pod_index.upsert(pod("shop", "b"))
    two = pod_index.stamp("shop")
    pod_index.delete(pod("shop", "a").key)
    assert pod_index.stamp("shop") is not two
