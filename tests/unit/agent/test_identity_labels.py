"""Cilium's default label filter, key by key."""

from __future__ import annotations

import pytest

from l7proxy.agent.identity_labels import labels_of, relevant
from l7proxy.model.facts import Pod


@pytest.mark.parametrize(
    ("key", "counts"),
    [
        ("app", True),
        ("app.kubernetes.io/name", True),
        ("example.org/kubernetes.io", True),
        ("io.kubernetes.pod.namespace", True),
        ("io.kubernetes.pod.name", False),
        ("kubernetes.io/arch", False),
        ("node.beta.kubernetes.io/x", False),
        ("k8s.io/x", False),
        ("pod-template-hash", False),
        ("pod-template-generation", False),
        ("controller-revision-hash", False),
        ("controller-uid", False),
        ("statefulset.kubernetes.io/pod-name", False),
        ("apps.kubernetes.io/pod-index", False),
        ("batch.kubernetes.io/job-completion-index", False),
        ("batch.kubernetes.io/job-name", True),
        ("topology.kubernetes.io/zone", False),
        ("annotation.x", False),
        ("etcd_node", False),
    ],
)
def test_which_keys_count(key: str, counts: bool) -> None:
    assert relevant(key) is counts


def test_the_namespaces_own_label_wins_over_nothing_and_is_always_there() -> None:
    labels = labels_of(Pod("shop", "a"), {"team": "x"}, cluster="west")
    assert labels.get("k8s", "io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name") == "shop"
    assert labels.get("k8s", "io.cilium.k8s.namespace.labels.team") == "x"
    assert labels.get("k8s", "io.cilium.k8s.policy.cluster") == "west"
