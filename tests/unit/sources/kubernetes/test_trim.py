"""A pod is read from its trimmed object as from the whole one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from l7proxy.model.resources import Pod
from l7proxy.policy.lang.options import Options
from l7proxy.sources import objects
from l7proxy.sources.kubernetes import trim
from l7proxy.sources.kubernetes.trim import Trimmer

PROBED = {
    "name": "web",
    "image": "registry.example/web:1",
    "env": [{"name": "A", "value": "b"}],
    "ports": [{"name": "web", "containerPort": 8080, "protocol": "TCP"}],
    "livenessProbe": {"httpGet": {"path": "/livez", "port": "web", "scheme": "HTTP"}, "periodSeconds": 10},
    "readinessProbe": {"grpc": {"port": 9000, "service": ""}},
    "startupProbe": {"tcpSocket": {"port": 7000}},
    "lifecycle": {"preStop": {"httpGet": {"path": "/drain", "port": 8081}}, "postStart": {"exec": {"command": ["x"]}}},
}
SIDECAR = {"name": "mesh", "restartPolicy": "Always", "livenessProbe": {"httpGet": {"port": 15021, "host": "x"}}}


def document(status: dict[str, Any], **meta: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "web-abc-1",
            "namespace": "shop",
            "uid": "u1",
            "labels": {"pod-template-hash": "abc"},
            "ownerReferences": [{"kind": "ReplicaSet", "name": "web-abc", "controller": True, "uid": "u0"}],
            "managedFields": [{"manager": "kubelet"}],
            **meta,
        },
        "spec": {"nodeName": "n1", "containers": [PROBED], "initContainers": [SIDECAR], "volumes": [{"name": "v"}]},
        "status": {"conditions": [{"type": "Ready", "status": "True"}], **status},
    }


@pytest.mark.parametrize("probes_only", [False, True])
@pytest.mark.parametrize(
    "whole",
    [
        document({"phase": "Pending"}),
        document({"phase": "Running", "podIP": "10.0.1.5", "podIPs": [{"ip": "10.0.1.5"}, {"ip": "fd00::5"}]}),
        document({"phase": "Running", "podIP": "10.0.1.5"}, deletionTimestamp="2026-01-01T00:00:00Z"),
    ],
    ids=["starting", "running", "terminating"],
)
def test_nothing_that_is_read_is_trimmed(whole: dict[str, Any], probes_only: bool) -> None:
    options = Options(probes_only=probes_only)
    shape = trim.ProbedPod if probes_only else trim.Pod
    trimmed, _ = Trimmer(shape, "Pod", "v1")(json.dumps(whole).encode())
    found, wanted = (objects.read(one, objects.NOWHERE, dict, options) for one in (trimmed, whole))
    assert isinstance(wanted, Pod)
    assert (found, bool(wanted.probes)) == (wanted, probes_only)
    assert (wanted.uid, wanted.terminating) == (
        "" if wanted.addresses else "u1",
        "deletionTimestamp" in whole["metadata"],
    )
    assert "managedFields" not in trimmed["metadata"]
