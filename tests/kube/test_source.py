"""The source against a real API server: `L7PROXY_KUBE_BIN=DIR pytest tests/kube/test_source.py`."""

from __future__ import annotations

import asyncio
import time
import urllib.error
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pytest

from l7proxy.model.resources import KINDS, PolicyDocument, ResourceKey
from l7proxy.sources.kubernetes.connection import Connection
from l7proxy.sources.kubernetes.credentials import Access
from l7proxy.sources.kubernetes.reflector import Timing
from l7proxy.sources.kubernetes.source import KubernetesSource
from tests.kube.api_server import ApiServer, missing
from tests.support.source_reader import Reader

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

QUICK: Final = Timing(first=0.05, longest=1.0, grace=2.0)
CRDS: Final = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
CNPS: Final = "/apis/cilium.io/v2/namespaces/default/ciliumnetworkpolicies"
PODS: Final = "/api/v1/namespaces/default/pods"
RBAC: Final = "/apis/rbac.authorization.k8s.io/v1"
CRD: Final = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "ciliumnetworkpolicies.cilium.io"},
    "spec": {
        "group": "cilium.io",
        "scope": "Namespaced",
        "names": {"kind": "CiliumNetworkPolicy", "plural": "ciliumnetworkpolicies", "singular": "ciliumnetworkpolicy"},
        "versions": [
            {
                "name": "v2",
                "served": True,
                "storage": True,
                "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
        ],
    },
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    api = ApiServer(tmp_path_factory.mktemp("kube"))
    yield api
    api.close()


@asynccontextmanager
async def reading(access: Path, state: Path | None = None, *, synced: bool = True) -> AsyncIterator[Reader]:
    async with Connection(Access(str(access))) as api:
        source = KubernetesSource(api, state_dir=state, timing=QUICK)
        async with aclosing(source.watch()) as batches:
            reader = Reader(batches, source, patience=60)
            if synced:
                await reader.until(lambda: set(reader.synced) == set(KINDS))
            yield reader


def problems(reader: Reader) -> list[str]:
    return [str(problem) for problem in reader.health.problems]


def has(reader: Reader, kind: str, name: str) -> bool:
    return ResourceKey(kind, "default", name) in reader.resources


def pod(name: str) -> Mapping[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"containers": [{"name": "c", "image": "x", "ports": [{"containerPort": 80, "name": "http"}]}]},
    }


def start_pod(server: ApiServer, name: str, address: str) -> None:
    server.ask("POST", PODS, pod(name))
    server.ask(
        "PATCH",
        f"{PODS}/{name}/status",
        {"status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}},
    )


def policy(name: str, **metadata: Any) -> Mapping[str, Any]:
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": name} | metadata,
        "spec": {"endpointSelector": {}, "ingress": [{}]},
    }


async def ask(server: ApiServer, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
    return await asyncio.to_thread(server.ask, method, path, body)


@pytest.fixture
def definition(server: ApiServer) -> Iterator[None]:
    with suppress(urllib.error.HTTPError):
        server.ask("POST", CRDS, CRD)
    yield
    with suppress(urllib.error.HTTPError):
        server.ask("DELETE", f"{CRDS}/{CRD['metadata']['name']}")  # type: ignore[index]
    while _exists(server, f"{CRDS}/ciliumnetworkpolicies.cilium.io"):
        time.sleep(0.1)


def _exists(server: ApiServer, path: str) -> bool:
    try:
        server.ask("GET", path)
    except urllib.error.HTTPError:
        return False
    return True


async def create(server: ApiServer, body: Mapping[str, Any]) -> None:
    """A definition that was just made is not served at once."""
    for _ in range(100):
        try:
            await ask(server, "POST", CNPS, body)
        except urllib.error.HTTPError as error:
            if error.code not in (404, 429):
                raise
            await asyncio.sleep(0.1)
        else:
            return
    raise AssertionError("the definition is not served")


async def test_pods_come_change_and_go(server: ApiServer) -> None:
    await asyncio.to_thread(start_pod, server, "early", "10.0.0.5")
    async with reading(server.kubeconfig()) as reader:
        assert has(reader, "Pod", "early")
        assert ResourceKey("Namespace", "", "default") in reader.resources
        await asyncio.to_thread(start_pod, server, "late", "10.0.0.6")
        await reader.until(lambda: has(reader, "Pod", "late") and "10.0.0.6" in repr(reader.resources))
        seen = len(reader.events)
        for name in ("early", "late"):
            await ask(server, "DELETE", f"{PODS}/{name}?gracePeriodSeconds=0")
        await reader.until(lambda: not has(reader, "Pod", "early") and not has(reader, "Pod", "late"))
        assert sorted(reader.events[seen:]) == ["-Pod default/early", "-Pod default/late"]
        assert problems(reader) == []


async def test_a_definition_that_appears_and_goes_is_followed(server: ApiServer) -> None:
    async with reading(server.kubeconfig()) as reader:
        await ask(server, "POST", CRDS, CRD)
        await create(server, policy("p"))
        await reader.until(lambda: has(reader, "CiliumNetworkPolicy", "p"))
        await ask(server, "DELETE", f"{CRDS}/ciliumnetworkpolicies.cilium.io")
        await reader.until(lambda: not has(reader, "CiliumNetworkPolicy", "p"))
        await reader.until(lambda: "ciliumnetworkpolicies.cilium.io" not in reader.health.detail)
        assert problems(reader) == []
        assert reader.health.reachable
        await asyncio.to_thread(_gone, server)
        await ask(server, "POST", CRDS, CRD)
        await create(server, policy("q"))
        await reader.until(lambda: has(reader, "CiliumNetworkPolicy", "q"))
        await ask(server, "DELETE", f"{CRDS}/ciliumnetworkpolicies.cilium.io")
        await asyncio.to_thread(_gone, server)


def _gone(server: ApiServer) -> None:
    while _exists(server, f"{CRDS}/ciliumnetworkpolicies.cilium.io"):
        time.sleep(0.1)


async def test_status_written_by_us_is_no_change(server: ApiServer, definition: None) -> None:
    await create(server, policy("p"))
    async with reading(server.kubeconfig()) as reader:
        seen = len(reader.events)
        await ask(server, "PATCH", f"{CNPS}/p/status", {"status": {"conditions": [{"type": "l7proxy.io/Enforced"}]}})
        await create(server, policy("q"))
        await reader.until(lambda: has(reader, "CiliumNetworkPolicy", "q"))
        assert len(reader.events) == seen + 1
        found = reader.resources[ResourceKey("CiliumNetworkPolicy", "default", "q")]
        assert isinstance(found, PolicyDocument)
        assert found.document["metadata"]["generation"] == 1


async def test_a_killed_server_is_found_again_and_nothing_is_lost_meanwhile(
    server: ApiServer, definition: None, tmp_path: Path
) -> None:
    await create(server, policy("p"))
    await create(server, policy("gone"))
    async with reading(server.kubeconfig(), tmp_path) as reader:
        await asyncio.to_thread(server.kill)
        await reader.until(lambda: not reader.health.reachable)
        assert has(reader, "CiliumNetworkPolicy", "p")
        before = dict(reader.resources)
        async with reading(server.kubeconfig(), tmp_path) as restarted:  # an agent that starts meanwhile
            assert restarted.resources.keys() == before.keys()
            await asyncio.to_thread(server.start)
            await ask(server, "DELETE", f"{CNPS}/gone")
            await create(server, policy("new"))
            for one in (reader, restarted):
                await one.until(lambda one=one: has(one, "CiliumNetworkPolicy", "new"))  # type: ignore[misc]
                await one.until(lambda one=one: not has(one, "CiliumNetworkPolicy", "gone"))  # type: ignore[misc]
                await one.until(lambda one=one: one.health.reachable)  # type: ignore[misc]
                assert problems(one) == []


async def test_an_object_of_a_megabyte(server: ApiServer, definition: None) -> None:
    rules = [{"fromCIDR": [f"10.{i // 65536 % 256}.{i // 256 % 256}.{i % 256}/32"]} for i in range(12_000)]
    big = {**policy("big"), "spec": {"endpointSelector": {}, "ingress": rules, "description": "x" * 500_000}}
    async with reading(server.kubeconfig()) as reader:
        await create(server, big)
        await reader.until(lambda: has(reader, "CiliumNetworkPolicy", "big"))
        await ask(server, "DELETE", f"{CNPS}/big")
        await reader.until(lambda: not has(reader, "CiliumNetworkPolicy", "big"))


async def test_a_policy_that_is_wrong_names_object_and_field(server: ApiServer, definition: None) -> None:
    async with reading(server.kubeconfig()) as reader:
        await create(server, {**policy("wrong"), "spec": {"endpointSelector": {}, "ingress": [{"fromEndpoint": [{}]}]}})
        await reader.until(lambda: bool(problems(reader)))
        (problem,) = problems(reader)
        assert problem.startswith("CiliumNetworkPolicy default/wrong: spec.ingress[0]")


ACCOUNT: Final = "/api/v1/namespaces/default/serviceaccounts"
ROLE: Final = {
    "apiVersion": "rbac.authorization.k8s.io/v1",
    "kind": "ClusterRole",
    "metadata": {"name": "l7proxy"},
    "rules": [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["list", "watch"]}],
}
BINDING: Final = {
    "apiVersion": "rbac.authorization.k8s.io/v1",
    "kind": "ClusterRoleBinding",
    "metadata": {"name": "l7proxy"},
    "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "l7proxy"},
    "subjects": [{"kind": "ServiceAccount", "namespace": "default", "name": "l7proxy"}],
}


def _account(server: ApiServer) -> str:
    """A token of a new ServiceAccount."""
    server.ask("POST", ACCOUNT, {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "l7proxy"}})
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 600}}
    return str(server.ask("POST", f"{ACCOUNT}/l7proxy/token", request)["status"]["token"])


@pytest.fixture
def token(server: ApiServer) -> Iterator[str]:
    yield _account(server)
    for path in (f"{ACCOUNT}/l7proxy", f"{RBAC}/clusterrolebindings/l7proxy", f"{RBAC}/clusterroles/l7proxy"):
        with suppress(urllib.error.HTTPError):
            server.ask("DELETE", path)


async def test_what_it_must_not_read_is_named_and_never_synced(server: ApiServer, token: str) -> None:
    async with reading(server.kubeconfig(token, "limited"), synced=False) as reader:
        await reader.until(lambda: sum(": 403 " in problem for problem in problems(reader)) >= 9)
        assert reader.synced == []
        assert reader.resources == {}
        (pods,) = (problem for problem in problems(reader) if problem.startswith("pods: "))
        assert "grant it list and watch" in pods
        assert reader.health.reachable
        await ask(server, "POST", f"{RBAC}/clusterroles", ROLE)
        await ask(server, "POST", f"{RBAC}/clusterrolebindings", BINDING)
        await reader.until(lambda: set(reader.synced) == set(KINDS) and problems(reader) == [])


async def test_a_token_that_is_not_accepted_any_more(server: ApiServer, token: str) -> None:
    await ask(server, "POST", f"{RBAC}/clusterroles", ROLE)
    await ask(server, "POST", f"{RBAC}/clusterrolebindings", BINDING)
    path = server.kubeconfig(token, "limited")
    async with reading(path) as reader:
        await ask(server, "DELETE", f"{ACCOUNT}/l7proxy")
        fresh = await asyncio.to_thread(_account, server)
        await asyncio.to_thread(server.kill)  # so that it must log in again
        await asyncio.to_thread(server.start)
        await reader.until(lambda: any("does not accept the credentials" in problem for problem in problems(reader)))
        assert not reader.health.reachable
        assert reader.resources
        server.kubeconfig(fresh, "limited")
        await reader.until(lambda: problems(reader) == [] and reader.health.reachable)
