"""A node name that no object mentions: a typo must not silently leave a whole node open."""

from __future__ import annotations

import pytest

from l7proxy.cluster.state import ClusterState
from l7proxy.model.resources import Node, Pod, Resource, Upsert
from l7proxy.sources.source import SYNCED

N1 = Node("n1", ("192.168.0.1",))
WEB = Pod("shop", "web", "n1", ("10.0.1.5",))


def problems(*resources: Resource, node: str | None) -> list[str]:
    cluster_state = ClusterState()
    cluster_state.apply([*map(Upsert, resources), *SYNCED])
    return [str(problem) for problem in cluster_state.view(node).problems]


def test_a_name_that_nobody_speaks_of_is_a_problem() -> None:
    assert problems(N1, WEB, node="n2") == [
        "node n2: no Node object has this name and no Pod is on it: nothing is enforced (known nodes: n1)"
    ]
    assert problems(node="n2") == [
        "node n2: no Node object has this name and no Pod is on it: nothing is enforced (known nodes: none)"
    ]


@pytest.mark.parametrize("resources", [(N1,), (WEB,), (N1, WEB)])
def test_a_node_or_one_pod_on_it_is_enough(resources: tuple[Resource, ...]) -> None:
    assert problems(*resources, node="n1") == []


def test_trace_asks_of_no_node() -> None:
    assert problems(N1, node=None) == []
