"""What the source does when the API server is away, slow, forgetful, or refuses."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from l7proxy.model.resources import KINDS, EndpointSlice, Node, Pod, PolicyDocument, ResourceKey, Secret
from l7proxy.policy.lang import Read
from l7proxy.policy.lang.options import DEFAULT
from l7proxy.sources.kubernetes import connection, source
from l7proxy.sources.kubernetes.connection import Connection
from l7proxy.sources.kubernetes.credentials import Access
from l7proxy.sources.kubernetes.kinds import KINDS as KINDS_READ
from l7proxy.sources.kubernetes.reflector import Timing
from l7proxy.sources.kubernetes.saved import SavedObjects
from l7proxy.sources.kubernetes.source import KubernetesSource
from tests.support.certificates import self_signed
from tests.support.kube_api import QUICK, KubeApi
from tests.support.source_reader import Reader

CILIUM = ("cilium.io/v2", "CiliumNetworkPolicy", "ciliumnetworkpolicies")
ALL = set(KINDS)


def pod(name: str, address: str = "10.0.0.5") -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "status": {"podIP": address}}


def policy(name: str, *ingress: Mapping[str, Any], version: str = "cilium.io/v2") -> dict[str, Any]:
    spec = {"endpointSelector": {}, "ingress": [*ingress] or [{}]}
    metadata = {"name": name, "namespace": "default"}
    return {"apiVersion": version, "kind": "CiliumNetworkPolicy", "metadata": metadata, "spec": spec}


def naming(secret: str, namespace: str = "default") -> dict[str, Any]:
    named = {"name": "x-token", "secret": {"namespace": namespace, "name": secret}}
    http = {"http": [{"headerMatches": [named]}]}
    return {"toPorts": [{"ports": [{"port": "80", "protocol": "TCP"}], "rules": http}]}


def secret(name: str, **metadata: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name} | metadata, "data": {"t": "aHVudGVyMg=="}}


@asynccontextmanager
async def reading(
    access: Access, state: Path | None = None, *, synced: bool = True, timing: Timing = QUICK, **more: Any
) -> AsyncIterator[Reader]:
    async with Connection(access) as api:
        made = KubernetesSource(api, state_dir=state, timing=timing, **more)
        async with aclosing(made.watch()) as batches:
            reader = Reader(batches, made)
            if synced:
                await reader.until(lambda: set(reader.synced) == ALL)
            yield reader


def problems(reader: Reader) -> list[str]:
    return [str(problem) for problem in reader.health.problems]


def has(reader: Reader, kind: str, name: str) -> bool:
    return ResourceKey(kind, "default", name) in reader.resources


@pytest.mark.parametrize("streams", [True, False])
async def test_a_version_that_is_forgotten_is_listed_again_and_what_is_missing_is_gone(
    tmp_path: Path, *, streams: bool
) -> None:
    server = KubeApi(stream_lists=streams)
    access = Access(str(server.kubeconfig(tmp_path)))
    for name in ("a", "b"):
        server.put(name, pod(name, f"10.0.0.{ord(name)}"))
    async with reading(access) as reader:
        server.stop()
        server.delete("a")
        server.put("c", pod("c", "10.0.0.9"))
        server.forget()
        server.start()
        await reader.names("Pod default/b", "Pod default/c")
        await reader.until(lambda: reader.health.reachable)
        assert problems(reader) == []
        assert reader.events.count("+Pod default/b") == 1
    server.close()


async def test_a_list_whose_pages_expire_is_read_anew(tmp_path: Path) -> None:
    server = KubeApi(stream_lists=False)
    server.page = 2
    for number in range(7):
        server.put(f"{number}", pod(f"p{number}", f"10.0.0.{number + 1}"))
    server.trouble("continue=pods", 410, reason="Expired")
    async with reading(Access(str(server.kubeconfig(tmp_path)))) as reader:
        assert len(reader.resources) == 7
        assert sum("/pods?limit=500" in request and "continue" not in request for request in server.requests) == 2
    server.close()


async def test_a_watch_goes_on_from_the_last_bookmark(server: KubeApi, access: Access) -> None:
    server.put("a", pod("a"))
    async with reading(access) as reader:
        for number in range(5):
            server.put(f"n{number}", {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": f"n{number}"}})
        server.bookmark()
        server.put("b", pod("b", "10.0.0.6"))
        await reader.names("Pod default/a", "Pod default/b")
        server.put("m", {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "m"}})  # news for the others, too
        await reader.until(lambda: ResourceKey("Node", "", "m") in reader.resources)
        server.requests.clear()
        server.forget()  # only what is current can be resumed
        server.bookmark()
        await asyncio.sleep(0.05)
        server.end_watches()
        server.put("c", pod("c", "10.0.0.7"))
        await reader.names("Node m", "Pod default/a", "Pod default/b", "Pod default/c")
        assert any("/pods?" in request and "resourceVersion=" in request for request in server.requests)


async def test_at_rest_nothing_is_asked(server: KubeApi, access: Access) -> None:
    server.serve(*CILIUM)
    server.put("p", policy("p"))
    async with reading(access) as reader:
        await asyncio.sleep(0.05)  # discovery may still end
        before = len(server.requests)
        server.bookmark()
        server.put("b", pod("b"))
        await reader.until(lambda: has(reader, "Pod", "b"))
        assert len(server.requests) == before


async def test_a_refusal_with_retry_after_is_obeyed(server: KubeApi, access: Access) -> None:
    server.trouble("/pods", 429, headers={"Retry-After": "1"}, reason="TooManyRequests")
    began = time.monotonic()
    async with reading(access):
        assert time.monotonic() - began >= 1


async def test_one_kind_in_trouble_delays_only_itself(server: KubeApi, access: Access) -> None:
    trouble = server.trouble("/pods", 500, count=1 << 30)
    server.put("a", pod("a"))
    async with reading(access, synced=False) as reader:
        await reader.until(lambda: {Node, EndpointSlice} <= set(reader.synced) and not reader.health.reachable)
        await reader.until(lambda: "500" in str(reader.health.detail.get("pods")))
        assert Pod not in reader.synced
        assert problems(reader) == []
        trouble.count = 0
        await reader.until(lambda: set(reader.synced) == ALL and reader.health.reachable)
        assert has(reader, "Pod", "a")


async def test_a_server_that_hangs_is_not_waited_for(server: KubeApi, access: Access) -> None:
    server.trouble("/pods", hang=True)
    server.put("a", pod("a"))
    async with reading(access, timing=replace(QUICK, silence=0.3)) as reader:
        assert has(reader, "Pod", "a")


async def test_what_it_must_not_read_is_a_problem_and_never_synced(server: KubeApi, access: Access) -> None:
    server.put("a", pod("a"))
    trouble = server.trouble("networking.k8s.io/v1/networkpolicies", 403, count=1 << 30, message="forbidden")
    async with reading(access, synced=False) as reader:
        await reader.until(lambda: len(reader.synced) >= len(KINDS) - 2 and bool(problems(reader)))
        (problem,) = problems(reader)
        assert problem.startswith(
            "networkpolicies.networking.k8s.io: the agent may not read them: grant it list and watch"
        )
        assert not {PolicyDocument, Secret} & set(reader.synced)
        assert reader.health.reachable
        trouble.count = 0
        await reader.until(lambda: set(reader.synced) == ALL and problems(reader) == [])


async def test_rights_that_are_revoked_leave_what_was_read(server: KubeApi, access: Access) -> None:
    server.put("a", pod("a"))
    async with reading(access) as reader:
        server.trouble("/pods", 403, count=1 << 30, message="forbidden")
        server.end_watches()
        await reader.until(lambda: len(problems(reader)) == 1)
        assert has(reader, "Pod", "a")


async def test_a_token_that_expired_is_named_until_there_is_a_new_one(
    server: KubeApi, access: Access, tmp_path: Path
) -> None:
    server.put("a", pod("a"))
    async with reading(access) as reader:
        server.tokens = {"second"}
        server.end_watches()
        await reader.until(lambda: not reader.health.reachable and bool(problems(reader)))
        assert "does not accept the credentials" in problems(reader)[0]
        assert has(reader, "Pod", "a")
        server.kubeconfig(tmp_path, token="second")
        await reader.until(lambda: reader.health.reachable and problems(reader) == [])


async def test_a_definition_is_followed_as_it_comes_and_goes(server: KubeApi, access: Access) -> None:
    async with reading(access) as reader:
        server.serve(*CILIUM)
        server.put("p", policy("p"))
        await reader.names("CiliumNetworkPolicy default/p")
        server.unserve(*CILIUM[:2])
        await reader.names()
        server.serve(*CILIUM)
        server.put("q", policy("q"))
        await reader.names("CiliumNetworkPolicy default/q")
        await reader.until(lambda: reader.health.reachable)
        assert problems(reader) == []


async def test_a_definition_that_is_not_served_is_undecided(server: KubeApi, access: Access) -> None:
    server.serve(*CILIUM)
    served = server.resources.pop("cilium.io/v2")
    async with reading(access, synced=False) as reader:
        await reader.until(lambda: len(reader.synced) >= len(KINDS) - 2 and bool(problems(reader)))
        assert problems(reader)[0].startswith(
            "ciliumnetworkpolicies.cilium.io: its CustomResourceDefinition exists, but"
        )
        assert PolicyDocument not in reader.synced
        server.resources["cilium.io/v2"] = served
        server.put("p", policy("p"))
        await reader.until(lambda: set(reader.synced) == ALL and problems(reader) == [])
        assert has(reader, "CiliumNetworkPolicy", "p")


async def test_a_server_that_has_just_started_may_not_know_its_definitions(server: KubeApi, access: Access) -> None:
    """404 of discovery alone removes no policy."""
    server.serve(*CILIUM)
    server.put("p", policy("p"))
    async with reading(access) as reader:
        server.trouble("/apis/cilium.io", 404, count=20)
        server.stop()
        server.start()
        await reader.until(lambda: reader.health.reachable)
        server.put("q", policy("q"))
        await reader.until(lambda: has(reader, "CiliumNetworkPolicy", "q"))
        assert not [event for event in reader.events if event.startswith("-")]


async def test_policies_of_an_unknown_version_are_refused_by_name(server: KubeApi, access: Access) -> None:
    server.serve("cilium.io/v3", *CILIUM[1:])
    server.put("p", policy("p", version="cilium.io/v3"))
    async with reading(access) as reader:
        (found,) = reader.resources.values()
        assert isinstance(found, PolicyDocument)
        assert "supported in version v2 only" in str(found.parsed)


async def test_of_two_groups_with_calicos_kinds_the_api_server_counts(server: KubeApi, access: Access) -> None:
    kind = {"kind": "GlobalNetworkSet", "metadata": {"name": "s"}, "spec": {"nets": ["10.0.0.0/8"]}}
    server.serve("crd.projectcalico.org/v1", "GlobalNetworkSet", "globalnetworksets")
    server.put("old", {"apiVersion": "crd.projectcalico.org/v1", **kind})
    async with reading(access) as reader:
        await reader.names("GlobalNetworkSet s")
        server.resources["projectcalico.org/v3"] = {"GlobalNetworkSet": "globalnetworksets"}
        server.put("new", {"apiVersion": "projectcalico.org/v3", **kind, "spec": {"nets": ["192.168.0.0/16"]}})
        server.put("service", {"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
                               "metadata": {"name": "v3.projectcalico.org"}})  # fmt: skip
        await reader.until(lambda: "192.168.0.0/16" in repr(reader.resources))
        assert len(reader.resources) == 1


async def test_only_the_secrets_that_policies_name_are_read(server: KubeApi, access: Access) -> None:
    server.serve(*CILIUM)
    for name in ("used", "other"):
        server.put(name, secret(name))
    server.put("foreign", secret("used", namespace="kube-system"))
    server.put("p", policy("p", naming("used")))
    server.put("q", policy("q", naming("used", "kube-system")))  # not allowed
    async with reading(access) as reader:
        assert sorted(key for key in reader.resources if key.kind == "Secret") == [("Secret", "default", "used")]
        asked = [request for request in server.requests if "/secrets" in request]
        assert asked
        assert all("/namespaces/default/secrets?" in one and "metadata.name%3Dused" in one for one in asked)
        server.delete("p")
        await reader.names("CiliumNetworkPolicy default/q")


async def test_a_secret_of_the_secrets_namespace(server: KubeApi, access: Access) -> None:
    server.serve(*CILIUM)
    server.put("s", secret("s", namespace="vault"))
    server.put("p", policy("p", naming("s", "vault")))
    async with reading(access, secrets_namespace="vault") as reader:
        assert ResourceKey("Secret", "vault", "s") in reader.resources


async def test_a_secret_that_must_not_be_read_does_not_hold_up_the_node(server: KubeApi, access: Access) -> None:
    server.serve(*CILIUM)
    server.put("p", policy("p", naming("s")))
    server.trouble("/secrets", 403, count=1 << 30, message="forbidden")
    async with reading(access) as reader:
        await reader.until(lambda: bool(problems(reader)))
        assert problems(reader)[0].startswith("secrets default/s: the agent may not read them")


async def test_many_secrets_of_one_namespace_do_not_crowd_out_others(
    server: KubeApi, access: Access, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "MOST", 3)
    server.serve(*CILIUM)
    for number in range(5):
        server.put(f"s{number}", secret(f"s{number}"))
        server.put(f"p{number}", policy(f"p{number}", naming(f"s{number}")))
    server.put("other", secret("s", namespace="vault"))
    server.put("q", policy("q", naming("s", "vault")))
    async with reading(access, secrets_namespace="vault") as reader:
        found = sorted(key for key in reader.resources if key.kind == "Secret")
        assert found == [("Secret", "default", "s0"), ("Secret", "default", "s1"), ("Secret", "vault", "s")]
        assert problems(reader) == ["policies name more than 3 Secrets: the last ones count as missing"]


async def test_a_thousand_deletions_are_few_batches(server: KubeApi, access: Access) -> None:
    for number in range(1000):
        server.put(f"{number}", pod(f"p{number}", f"10.1.{number // 256}.{number % 256}"))
    async with reading(access) as reader:
        for number in range(1000):
            server.delete(f"{number}")
        batches = 0
        while reader.resources:
            await reader.next()
            batches += 1
        assert batches < 500


async def test_what_is_no_kubernetes_api_is_an_error(server: KubeApi, access: Access) -> None:
    trouble = server.trouble("/pods", 200, count=1 << 30, reason="x")
    async with reading(access, synced=False) as reader:
        await reader.until(lambda: "pods" in reader.health.detail and not reader.health.reachable)
        assert Pod not in reader.synced
        trouble.count = 0
        await reader.until(lambda: set(reader.synced) == ALL)


# Another cluster, in which objects have the same names.


@pytest.mark.parametrize("streams", [True, False])
async def test_an_agent_that_is_pointed_at_another_cluster_lists_all_of_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, *, streams: bool
) -> None:
    """Its versions are numbers, too: a watch from a version of the first cluster would leave out what is older."""
    monkeypatch.setattr(connection, "CHECK", 0.0)
    first, second = KubeApi(stream_lists=streams), KubeApi(stream_lists=streams)
    access = Access(str(first.kubeconfig(tmp_path)))
    second.put("a", pod("a", "10.9.0.1"))
    second.put("early", pod("early", "10.9.0.2"))
    for name in ("x", "y", "z"):
        first.put(name, pod(name, f"10.0.0.{ord(name)}"))
    first.put("a", pod("a"))
    for number in range(20):
        second.put(f"n{number}", {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": f"n{number}"}})
    async with reading(access, tmp_path) as reader:
        await reader.names("Pod default/a", "Pod default/x", "Pod default/y", "Pod default/z")
        second.kubeconfig(tmp_path)
        first.stop()
        await reader.names("Pod default/a", "Pod default/early")
        moved = reader.resources[ResourceKey("Pod", "default", "a")]
        assert isinstance(moved, Pod)
        assert moved.addresses == ("10.9.0.1",)
        await reader.until(lambda: reader.health.reachable)
        assert problems(reader) == []
    assert caplog.text.count("listing all again") == 1
    assert json.loads((tmp_path / "objects" / "Pod.jsonl").read_text().splitlines()[0])["cluster"] == second.url
    for server in (first, second):
        server.close()


async def test_of_a_cluster_with_the_same_url_nothing_saved_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In pods many clusters have one URL, https://10.96.0.1:443: their CAs tell them apart. One that is rotated while
    the agent runs is known, since all is listed and saved again."""
    monkeypatch.setattr(connection, "CHECK", 0.0)
    first, context = self_signed(tmp_path, "first")
    second, other = self_signed(tmp_path, "second")
    server = KubeApi(tls=context)
    server.authority = tmp_path / "ca.crt"
    server.authority.write_bytes(first.read_bytes())
    access = Access(str(server.kubeconfig(tmp_path)))
    server.put("a", pod("a"))
    async with reading(access, tmp_path):
        pass
    assert await restored_pods(access, tmp_path) == 1
    server.stop()
    server.authority.write_bytes(second.read_bytes())
    assert await restored_pods(access, tmp_path) is None
    assert "Pod.jsonl: not used: it is of another cluster" in caplog.text
    server.authority.write_bytes(first.read_bytes())
    server.start()
    async with reading(access, tmp_path) as reader:
        server.authority.write_bytes(second.read_bytes())
        server.stop()
        server.tls = other
        server.start()
        await reader.until(lambda: "listing all again" in caplog.text and reader.health.reachable)
    assert await restored_pods(access, tmp_path) == 1
    server.close()


async def restored_pods(access: Access, state: Path) -> int | None:
    async with Connection(access) as api:
        found = SavedObjects(state).load(
            next(kind for kind in KINDS_READ if kind.resource is Pod), api.cluster, DEFAULT
        )
        return None if found is None else len(found.resources)


def test_all_saved_objects_are_removed_and_nothing_else(tmp_path: Path) -> None:
    saved = SavedObjects(tmp_path)
    assert saved.remove() == 0
    for kind in KINDS_READ[:2]:
        saved.store(kind, "one", ())
    (tmp_path / "objects" / "Pod.new").touch()  # of an agent that was killed
    (tmp_path / "objects" / "notes.txt").touch()
    assert saved.remove() == 2
    assert [path.name for path in (tmp_path / "objects").iterdir()] == ["notes.txt"]
    (tmp_path / "objects" / "notes.txt").unlink()
    assert saved.remove() == 0
    assert not (tmp_path / "objects").exists()


# Across a restart.


async def test_without_the_server_the_last_known_objects_are_in_force(
    server: KubeApi, access: Access, tmp_path: Path
) -> None:
    server.serve(*CILIUM)
    server.put("a", {**pod("a"), "spec": {"containers": [{"ports": [{"name": "http", "containerPort": 80}]}]}})
    server.put("p", policy("p", naming("s"), {"fromEndpoints": [{}]}))
    server.put("wrong", policy("wrong", {"fromEndpoint": [{}]}))
    server.put("s", secret("s"))
    async with reading(access, tmp_path) as reader:
        await reader.until(lambda: len(reader.resources) == 4)
        before = dict(reader.resources)
    server.stop()
    files = [*(tmp_path / "objects").iterdir()]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    assert (tmp_path / "objects").stat().st_mode & 0o777 == 0o700
    assert not any(b"aHVudGVyMg" in path.read_bytes() or b"hunter2" in path.read_bytes() for path in files)
    async with reading(access, tmp_path, timing=replace(QUICK, grace=0.1)) as reader:
        del before[ResourceKey("Secret", "default", "s")]
        assert reader.resources == before
        found = reader.resources[ResourceKey("CiliumNetworkPolicy", "default", "p")]
        assert isinstance(found, PolicyDocument)
        assert isinstance(found.parsed, Read)
        assert not reader.health.reachable
        assert 0 < time.monotonic() - reader.health.contact < 60
        server.delete("a")
        server.start()
        await reader.until(lambda: not has(reader, "Pod", "a") and has(reader, "Secret", "s"))
        await reader.until(lambda: reader.health.reachable)


async def test_what_is_saved_is_replaced_while_it_runs(server: KubeApi, access: Access, tmp_path: Path) -> None:
    async with reading(access, tmp_path) as reader:
        server.put("a", pod("a"))
        await reader.until(lambda: has(reader, "Pod", "a"))
        path = tmp_path / "objects" / "Pod.jsonl"
        async with asyncio.timeout(20):
            while not path.exists() or b'"10.0.0.5"' not in path.read_bytes():  # noqa: ASYNC110
                await asyncio.sleep(0.05)


@pytest.mark.parametrize("spoil", ["cluster", "json", "gone"])
async def test_what_cannot_be_used_of_the_disk_is_not(
    server: KubeApi, access: Access, tmp_path: Path, caplog: pytest.LogCaptureFixture, spoil: str
) -> None:
    async with reading(access, tmp_path):
        pass
    server.stop()
    path = tmp_path / "objects" / "Pod.jsonl"
    if spoil == "gone":
        path.unlink()
    elif spoil == "json":
        path.write_bytes(path.read_bytes() + b'{"name": 5}\n')
    else:
        head = json.loads(path.read_text().splitlines()[0])
        path.write_text(json.dumps(head | {"cluster": "https://elsewhere"}) + "\n")
    async with reading(access, tmp_path, synced=False, timing=replace(QUICK, grace=0.1)) as reader:
        await reader.until(lambda: Node in reader.synced)
        assert Pod not in reader.synced
        assert ("not used" in caplog.text) == (spoil != "gone")
        server.start()
        await reader.until(lambda: set(reader.synced) == ALL)


async def test_a_server_that_answers_in_time_is_believed_and_not_the_disk(
    server: KubeApi, access: Access, tmp_path: Path
) -> None:
    server.put("a", pod("a"))
    async with reading(access, tmp_path):
        pass
    server.delete("a")
    async with reading(access, tmp_path, timing=replace(QUICK, grace=0.0)) as reader:
        await reader.until(lambda: reader.health.reachable)
        assert reader.resources == {}


async def test_a_state_directory_that_cannot_be_written_is_a_problem(
    server: KubeApi, access: Access, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    async with reading(access, tmp_path / "file") as reader:
        await reader.until(lambda: bool(problems(reader)))
        assert problems(reader)[0].startswith("state-dir: the last known objects cannot be saved: ")
