"""What a node's kubelet asks of containers: which ports, and which paths can be told apart."""

from __future__ import annotations

from typing import Any

import pytest

from l7proxy.errors import SourceError
from l7proxy.model.endpoint import Probe
from l7proxy.model.resources import Pod
from l7proxy.policy.lang.options import Options
from l7proxy.sources import objects


def pod(*containers: dict[str, Any], init: tuple[dict[str, Any], ...] = (), **spec: Any) -> Pod:
    document = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "web"},
        "spec": {"containers": list(containers), "initContainers": list(init), **spec},
    }
    found = objects.read(document, objects.NOWHERE, dict, Options(probes_only=True))
    assert isinstance(found, Pod)
    return found


def http(port: object = 8080, **more: object) -> dict[str, Any]:
    return {"httpGet": {"port": port, **more}}


def test_every_kind_of_probe_of_every_running_container() -> None:
    one = {
        "ports": [{"name": "web", "containerPort": 8080}],
        "livenessProbe": http("web", path="/livez?full=1"),
        "readinessProbe": {"grpc": {"port": 9000, "service": "x"}},
        "startupProbe": {"tcpSocket": {"port": "7000"}},
        "lifecycle": {"preStop": http(8081, path="/drain"), "postStart": {"exec": {"command": ["true"]}}},
    }
    other = {"livenessProbe": {"exec": {"command": ["true"]}}, "readinessProbe": http(8080, scheme="HTTP")}
    sidecar = {"restartPolicy": "Always", "livenessProbe": http(15021, path="/healthz")}
    once = {"livenessProbe": http(1, path="/never")}
    found = pod(one, other, init=(sidecar, once)).probes
    assert found == (
        Probe(7000), Probe(8080, "/"), Probe(8080, "/livez?full=1"), Probe(8081, "/drain"), Probe(9000),
        Probe(15021, "/healthz"),
    )  # fmt: skip
    assert pod(one, other, init=(sidecar,)).probes is found, "equal probes are one object"


@pytest.mark.parametrize(
    "path", ["/a//b", "/a/../b", "/a/./b", "/..", "/a;b", "/%61", "/a b", "a", "/a#b", "/é", "/" + "a" * 300, "/?%41"]
)
def test_of_a_path_that_could_be_read_in_two_ways_only_the_port_is_known(path: str) -> None:
    assert pod({"livenessProbe": http(path=path)}).probes == (Probe(8080),)


@pytest.mark.parametrize("path", ["/", "/a", "/a/", "/.well-known/x", "/a.b/..c/...", "/-/healthy?x=1&y=/a?b", "/?q"])
def test_a_plain_path_is_known(path: str) -> None:
    assert pod({"livenessProbe": http(path=path)}).probes == (Probe(8080, path),)


def test_a_port_that_is_also_asked_without_a_path_is_open() -> None:
    container = {"livenessProbe": http(path="/a"), "readinessProbe": {"tcpSocket": {"port": 8080}}}
    assert pod(container).probes == (Probe(8080),)
    assert pod({"livenessProbe": http(path="/a", scheme="HTTPS")}).probes == (Probe(8080),)


def test_what_is_not_sent_to_the_pod_opens_nothing() -> None:
    elsewhere = {"livenessProbe": http(host="10.0.0.1"), "readinessProbe": {"tcpSocket": {"port": 1, "host": "h"}}}
    nameless = {"livenessProbe": http("web"), "readinessProbe": http("70000")}
    assert pod(elsewhere, nameless).probes == ()
    assert pod({"livenessProbe": http()}, hostNetwork=True).probes == ()


def test_a_port_name_is_the_containers_own() -> None:
    first = {"ports": [{"name": "web", "containerPort": 80}]}
    second = {"ports": [{"name": "web", "containerPort": 81}], "livenessProbe": http("web")}
    assert pod(first, second).probes == (Probe(81, "/"),)
    assert pod(first, {"livenessProbe": http("web")}).probes == ()


def test_too_many_paths_are_known_by_their_port() -> None:
    containers = [{"livenessProbe": http(path=f"/{number}")} for number in range(40)]
    assert pod(*containers[:32]).probes == tuple(sorted(Probe(8080, f"/{number}") for number in range(32)))
    assert pod(*containers).probes == (Probe(8080),)


def test_they_are_not_read_unless_they_count() -> None:
    document = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "web"},
        "spec": {"containers": [{"livenessProbe": "?"}]},
    }
    found = objects.read(document, objects.NOWHERE, dict)
    assert isinstance(found, Pod)
    assert found.probes == ()


def test_a_wrong_field_is_named() -> None:
    with pytest.raises(SourceError) as caught:
        pod({"livenessProbe": http(0)})
    assert caught.value.field == "spec.containers[0].livenessProbe.httpGet.port"
