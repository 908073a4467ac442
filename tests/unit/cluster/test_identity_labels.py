"""Cilium's default label filter, key by key."""

from __future__ import annotations

import pytest

from l7proxy.cluster.identity_labels import LabelFilter, labels_of
from l7proxy.errors import ConfigError
from l7proxy.model.resources import Pod


@pytest.mark.parametrize(
    ("key", "counts"),
    [
        ("app", True),
        ("app.kubernetes.io/name", True),
        ("example.org/kubernetes.io", True),
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
    assert LabelFilter().keeps(key) is counts


def test_a_namespace_does_not_call_itself_another() -> None:
    labels = labels_of(Pod("evil", "a"), {"kubernetes.io/metadata.name": "shop"}, cluster="c")
    assert labels.get("k8s", "io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name") == "evil"


def test_the_namespaces_own_label_wins_over_nothing_and_is_always_there() -> None:
    labels = labels_of(Pod("shop", "a"), {"team": "x"}, cluster="west")
    assert labels.get("k8s", "io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name") == "shop"
    assert labels.get("k8s", "io.cilium.k8s.namespace.labels.team") == "x"
    assert labels.get("k8s", "io.cilium.k8s.policy.cluster") == "west"


@pytest.mark.parametrize("key", ["io.kubernetes.pod.namespace", "io.cilium.k8s.policy.cluster", "io.cilium.k8s.x"])
def test_a_pod_does_not_write_what_says_where_and_who_it_is(key: str) -> None:
    assert not LabelFilter((key,)).keeps(key)
    assert "me" not in {
        label.value for label in labels_of(Pod("shop", "a", labels={key: "me"}), {}, cluster="c").labels
    }


FILTERS = [
    ("2.2 one that ignores leaves the others", ("!team",), {"team": False, "app": True, "pod-template-hash": False}),
    ("2.2 one that includes leaves out the others", ("k8s:app",), {"app": True, "team": False}),
    ("2.2 the default ones still include", ("app$",), {"app.kubernetes.io/name": True, "application": False}),
    ("2.2 the longer one wins: included", ("!team", "team-a"), {"team-a": True, "team-b": False}),
    ("2.2 the longer one wins: ignored", ("team", "!team-a"), {"team-b": True, "team-a": False}),
    ("2.2 a source may stand before it", ("k8s:!team",), {"team": False, "app": True}),
    ("2.2 as long is not longer", ("pod-template-hash", ".*"), {"app": True, "pod-template-hash": False}),
]


@pytest.mark.parametrize(("patterns", "expected"), [row[1:] for row in FILTERS], ids=[row[0] for row in FILTERS])
def test_an_operator_s_filter(patterns: tuple[str, ...], expected: dict[str, bool]) -> None:
    kept = LabelFilter(patterns)
    assert {key: kept.keeps(key) for key in expected} == expected


@pytest.mark.parametrize("pattern", ["(", "!", "k8s:"])
def test_a_filter_that_is_none_is_named(pattern: str) -> None:
    with pytest.raises(ConfigError, match="labels: "):
        LabelFilter((pattern,))
