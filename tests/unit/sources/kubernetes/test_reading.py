"""The pure parts: the table of kinds, the fields that are decoded, lines of a watch, a collection."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l7proxy.errors import ApiError
from l7proxy.model.resources import KINDS as MODELS
from l7proxy.model.resources import Delete, Pod, ResourceKey, Upsert
from l7proxy.policy import lang
from l7proxy.sources import objects
from l7proxy.sources.decode import decode
from l7proxy.sources.kubernetes import transfer
from l7proxy.sources.kubernetes.collection import Collection
from l7proxy.sources.kubernetes.kinds import KINDS, SECRET, Kind, Place
from l7proxy.sources.kubernetes.sharing import SharedParts
from l7proxy.sources.kubernetes.transfer import Found, Mark, Removed
from l7proxy.sources.kubernetes.trim import Trimmer

PODS = Place("v1", "pods")
POD = next(kind for kind in KINDS if kind.name == "Pod")
CNP = next(kind for kind in KINDS if kind.name == "CiliumNetworkPolicy")


def test_every_kind_that_can_be_decoded_is_read() -> None:
    table = {(version, kind.api) for kind in (*KINDS, SECRET) for version in kind.versions}
    policies = {(f"{group}/{known.version}", kind) for (group, kind), known in lang.LANGUAGES.items() if known.parse}
    assert table == policies | set(objects.KINDS)
    assert {kind.resource for kind in (*KINDS, SECRET)} == set(MODELS)


@pytest.mark.parametrize("kind", [*KINDS, SECRET], ids=lambda kind: kind.name)
def test_the_table_agrees_with_the_keys_of_objects(kind: Kind) -> None:
    metadata = {"name": "n", "namespace": "s"}
    key = objects.key_of({"apiVersion": kind.versions[0], "kind": kind.api, "metadata": metadata})
    assert key == ResourceKey(kind.name, "s" if kind.namespaced else "", "n")


def test_paths() -> None:
    assert PODS.path == "/api/v1/pods"
    assert Place("cilium.io/v2", "x", "ns", "n").path == "/apis/cilium.io/v2/namespaces/ns/x"
    assert (PODS.resource, Place("cilium.io/v2", "x").resource) == ("pods", "x.cilium.io")


META: dict[str, Any] = {
    "name": "n", "namespace": "s", "labels": {"app": "x", "pod-template-hash": "h"}, "uid": "u", "generation": 3,
    "annotations": {"l7proxy.io/audit": "true", "other": "y"}, "managedFields": [{"a": 1}], "resourceVersion": "17",
    "ownerReferences": [{"kind": "ReplicaSet", "name": "d-h", "controller": True, "uid": "v", "apiVersion": "apps/v1"}],
}  # fmt: skip
PORT = {"name": "http", "containerPort": 80, "protocol": "TCP", "hostPort": 1}
WHOLE: list[dict[str, Any]] = [
    {"kind": "Pod", "spec": {"nodeName": "m", "hostNetwork": True, "serviceAccountName": "sa", "volumes": [{}],
        "containers": [{"name": "c", "ports": [PORT], "env": [{"value": 5}]}],
        "initContainers": [{"name": "i", "restartPolicy": "Always", "ports": [{**PORT, "name": "x"}]}]},
     "status": {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]}},
    {"kind": "Node", "spec": {"podCIDR": "10.0.0.0/24", "podCIDRs": ["10.0.0.0/24"], "taints": []},
     "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}, {"type": "Hostname", "address": "n"}]}},
    {"kind": "Namespace", "spec": {"finalizers": ["kubernetes"]}},
    {"kind": "ServiceAccount", "secrets": [{"name": "t"}]},
    {"kind": "Service", "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"],
        "externalIPs": ["192.0.2.7"], "selector": {"app": "x"}, "sessionAffinity": "None",
        "ports": [{"name": "a", "port": 80, "targetPort": "http", "nodePort": 30000}, {"port": 1, "targetPort": 2}]},
     "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.8"}]}}},
    {"kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1", "addressType": "IPv4",
     "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": True}, "nodeName": "m"},
                   {"addresses": ["10.0.0.2"], "conditions": {"ready": False}}],
     "ports": [{"name": "a", "port": 80, "protocol": "TCP"}]},
    {"kind": "Secret", "data": {"k": "dmFsdWU="}, "type": "Opaque"},
    {"kind": "CiliumCIDRGroup", "apiVersion": "cilium.io/v2", "spec": {"externalCIDRs": ["10.0.0.0/8"]}},
    {"kind": "Tier", "apiVersion": "projectcalico.org/v3", "spec": {"order": 5.5, "defaultAction": "Pass"}},
    {"kind": "NetworkSet", "apiVersion": "projectcalico.org/v3", "spec": {"nets": ["10.0.0.0/8"]}},
]  # fmt: skip


@pytest.mark.parametrize("value", WHOLE, ids=lambda value: value["kind"])
def test_the_decoded_fields_are_all_that_is_read_of_an_object(value: dict[str, Any]) -> None:
    whole = {"apiVersion": "v1", "metadata": META, **value}
    kind = next(kind for kind in (*KINDS, SECRET) if kind.api == whole["kind"])
    bare = {key: part for key, part in whole.items() if key not in ("apiVersion", "kind")}  # as in a list
    trimmed, version = Trimmer(kind.shape, kind.api, whole["apiVersion"])(json.dumps(bare).encode())
    assert decode(trimmed) == decode(whole)
    assert version == "17"
    assert len(json.dumps(trimmed)) < len(json.dumps(whole))


def test_a_policy_keeps_its_rules_and_what_its_status_needs() -> None:
    spec: dict[str, Any] = {"endpointSelector": {}, "ingress": [{"fromEndpoints": [{}]}]}
    whole = {"metadata": META, "spec": spec, "specs": [spec], "status": {"conditions": []}}
    trimmed, _ = Trimmer(CNP.shape, CNP.api, "cilium.io/v2")(json.dumps(whole).encode())
    assert (trimmed["spec"], trimmed["specs"]) == (spec, [spec])
    assert (trimmed["metadata"]["generation"], trimmed["metadata"]["uid"]) == (3, "u")
    assert not {"status"} & trimmed.keys()
    assert not {"managedFields", "resourceVersion"} & trimmed["metadata"].keys()


@pytest.mark.parametrize("spoiled", [{"metadata": 5}, {"metadata": META, "status": {"podIP": 7}}, {"metadata": None}])
def test_an_object_of_wrong_types_is_decoded_whole_and_named(spoiled: dict[str, Any]) -> None:
    trimmed, _ = Trimmer(POD.shape, "Pod", "v1")(json.dumps(spoiled).encode())
    collection = Collection(POD, lambda: None)
    collection.put(trimmed)
    (problem,) = collection.problems
    assert str(problem).startswith("Pod ")
    assert collection.take() == ([], [])


def test_a_pod_that_breaks_keeps_its_version_and_a_thousand_are_summed_up() -> None:
    collection = Collection(POD, lambda: None)
    head = {"apiVersion": "v1", "kind": "Pod"}
    for number in range(300):
        metadata = {"name": f"p{number}", "namespace": "s"}
        collection.put({**head, "metadata": metadata, "status": {"podIP": "10.0.0.1"}})
    gone, new = collection.take()
    assert (gone, len(new)) == ([], 300)
    for number in range(300):
        metadata = {"name": f"p{number}", "namespace": "s"}
        collection.put({**head, "metadata": metadata, "status": {"podIP": "x"}})
    assert collection.take() == ([], [])
    assert len(collection.problems) == 101
    assert "200 more objects" in str(collection.problems[-1])
    collection.keep_only({ResourceKey("Pod", "s", "p7")})
    gone, new = collection.take()
    assert (len(gone), new, len(collection.problems)) == (299, [], 1)


def test_what_comes_and_goes_within_a_batch_is_no_change() -> None:
    collection = Collection(POD, lambda: None)
    value = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "status": {"podIP": "10.0.0.1"}}
    collection.put(value)
    collection.remove(value)
    assert collection.take() == ([], [])
    collection.put(value)
    assert [type(change) for change in collection.take()[1]] == [Upsert]
    collection.remove(value)
    collection.put(value)
    assert collection.take() == ([], [])
    collection.remove(value)
    assert collection.take() == ([Delete(ResourceKey("Pod", "default", "a"))], [])


EVENTS: list[dict[str, Any]] = [
    {"type": "ADDED", "object": {"metadata": {"name": "a\n"}}},
    {"type": "MODIFIED", "object": {"metadata": {"name": "b" * 50}}},
    {"type": "DELETED", "object": {}},
    {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "7"}}},
    {"type": "BOOKMARK", "object": {"metadata": {"annotations": {transfer.INITIAL_END: "true"}}}},
]
STREAM = b"".join(json.dumps(event).encode() + b"\n" for event in EVENTS)


@given(st.lists(st.integers(1, len(STREAM) - 1)))
def test_events_are_the_same_in_every_split(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(STREAM)]
    left, lines = bytearray(), []
    for begin, end in pairwise(places):
        lines += transfer._lines(left, STREAM[begin:end], PODS)
    found = [transfer._event(line, PODS) for line in lines if line]
    assert [type(event) for event in found] == [Found, Found, Removed, Mark, Mark]
    assert [(mark.version, mark.initial_end) for mark in found if isinstance(mark, Mark)] == [("7", False), ("", True)]
    assert not left


@pytest.mark.parametrize("line", [b"{}", b"<html>", b'{"type": "ADDED"}', b'{"type": "NEW", "object": {}}', b"[]"])
def test_what_is_no_event_is_an_error(line: bytes) -> None:
    with pytest.raises(ApiError, match="pods"):
        transfer._event(line, PODS)


def test_an_error_of_a_watch_has_the_servers_code() -> None:
    gone = {"type": "ERROR", "object": {"code": 410, "reason": "Expired", "message": "too old"}}
    with pytest.raises(ApiError, match="watch of pods: 410 too old") as found:
        transfer._event(json.dumps(gone).encode(), PODS)
    assert found.value.status == 410


def test_an_endless_line_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "MAX_LINE", 10)
    with pytest.raises(ApiError, match="an event of more than 10 bytes"):
        transfer._lines(bytearray(b"12345678"), b"901", PODS)


def test_equal_parts_of_pods_are_one_object() -> None:
    share = SharedParts()
    trim, (whole, *_) = Trimmer(POD.shape, "Pod", "v1"), WHOLE

    def read(name: str) -> Pod:
        found = decode(trim(json.dumps({**whole, "metadata": {**META, "name": name}}).encode())[0])
        assert isinstance(found, Pod)
        return found

    one, other = read("a"), read("b")
    mine, theirs = share(one), share(other)
    assert (mine, theirs) == (one, other)
    for part in ("namespace", "node", "labels", "named_ports", "service_account", "workload", "phase"):
        assert getattr(mine, part) is getattr(theirs, part)
