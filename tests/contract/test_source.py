"""The laws of every source (`l7proxy.sources.source.Source`). A new source adds a harness to HARNESSES.

A harness has the source's objects under paths: it puts and deletes them, and cuts the source off.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any, Final, Protocol

import pytest

from l7proxy.errors import PolicyError
from l7proxy.model.resources import KINDS, PolicyDocument
from l7proxy.policy import lang
from l7proxy.sources.files.source import FileSource
from l7proxy.sources.kubernetes.connection import Connection
from l7proxy.sources.kubernetes.credentials import Access
from l7proxy.sources.kubernetes.source import KubernetesSource
from l7proxy.sources.source import Source
from tests.support.kube_api import QUICK, KubeApi
from tests.support.object_source import ObjectSource, Server
from tests.support.source_reader import Reader

Object = Mapping[str, Any]


class Harness(Protocol):
    """`cut`: the source cannot be reached until `restore`; `put` and `delete` work meanwhile."""

    source: Source

    def put(self, path: str, value: Object) -> None: ...
    def delete(self, path: str) -> None: ...
    def cut(self) -> None: ...
    def restore(self) -> None: ...
    async def close(self) -> None: ...


class Directory:
    """One JSON file per object."""

    def __init__(self, folder: Path) -> None:
        self._root, self._away = folder / "manifests", folder / "away"
        self._root.mkdir()
        self._folder = self._root
        self.source: Source = FileSource(self._root)

    def put(self, path: str, value: Object) -> None:
        fresh = self._folder / f".{path}.new"
        fresh.write_text(json.dumps(value))
        fresh.rename(self._folder / f"{path}.json")

    def delete(self, path: str) -> None:
        (self._folder / f"{path}.json").unlink()

    def cut(self) -> None:
        self._folder = self._root.rename(self._away)

    def restore(self) -> None:
        self._folder = self._away.rename(self._root)

    async def close(self) -> None:
        pass


class Memory:
    """The objects of a server in memory."""

    def __init__(self, folder: Path) -> None:
        self._server = Server()
        self.source: Source = ObjectSource(self._server)
        self.put, self.delete = self._server.put, self._server.delete

    def cut(self) -> None:
        self._server.connect(reachable=False)

    def restore(self) -> None:
        self._server.connect(reachable=True)

    async def close(self) -> None:
        pass


class Kubernetes:
    """An API server that streams lists."""

    streams = True

    def __init__(self, folder: Path) -> None:
        self._server = KubeApi(stream_lists=self.streams)
        self._server.serve("cilium.io/v2", "CiliumNetworkPolicy", "ciliumnetworkpolicies")
        self._api = Connection(Access(str(self._server.kubeconfig(folder))))
        self.source: Source = KubernetesSource(self._api, state_dir=folder / "state", timing=QUICK)
        self.put, self.delete = self._server.put, self._server.delete
        self.cut, self.restore = self._server.stop, self._server.start

    async def close(self) -> None:
        await self._api.close()
        self._server.close()


class KubernetesPages(Kubernetes):
    """An API server that lists in pages."""

    streams = False


HARNESSES: Final[list[Callable[[Path], Harness]]] = [Directory, Memory, Kubernetes, KubernetesPages]


@pytest.fixture(params=HARNESSES, ids=lambda harness: harness.__name__)
async def harness(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Harness]:
    make: Callable[[Path], Harness] = request.param
    made = make(tmp_path)
    yield made
    await made.close()


@asynccontextmanager
async def reading(harness: Harness) -> AsyncIterator[Reader]:
    """A reader that has seen all kinds synced."""
    async with aclosing(harness.source.watch()) as batches:
        reader = Reader(batches, harness.source)
        await reader.until(lambda: set(reader.synced) == set(KINDS))
        yield reader


def pod(name: str, address: str = "10.0.0.5") -> Object:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "status": {"podIP": address}}


def policy(ingress: Any = (), **metadata: Any) -> Object:
    named = {"name": "p", "namespace": "shop"} | metadata
    spec = {"endpointSelector": {}, "ingress": [*ingress]}
    return {"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": named, "spec": spec}


SHOP: Final = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}
WRONG: Final[list[Object]] = [{"fromEndpoint": [{}]}]


async def test_each_kind_is_synced_after_its_first_objects(harness: Harness) -> None:
    for path, value in (("a", pod("a")), ("p", policy()), ("n", SHOP)):
        harness.put(path, value)
    async with reading(harness) as reader:
        assert sorted(reader.events) == ["+CiliumNetworkPolicy shop/p", "+Namespace shop", "+Pod default/a"]
        harness.put("b", pod("b", "10.0.0.6"))
        await reader.names("CiliumNetworkPolicy shop/p", "Namespace shop", "Pod default/a", "Pod default/b")


async def test_kinds_without_objects_are_synced(harness: Harness) -> None:
    async with reading(harness) as reader:
        assert (reader.resources, reader.health.problems) == ({}, ())


async def test_the_last_event_of_a_key_counts(harness: Harness) -> None:
    async with reading(harness) as reader:
        for last in range(5, 10):
            harness.put("a", pod("a", f"10.0.0.{last}"))
        await reader.until(lambda: bool(reader.resources) and reader.address("a") == ("10.0.0.9",))
        harness.delete("a")
        await reader.names()
        harness.put("a", pod("a"))
        await reader.names("Pod default/a")


async def test_an_unchanged_object_causes_no_event(harness: Harness) -> None:
    harness.put("a", pod("a"))
    harness.put("p", policy(WRONG))
    async with reading(harness) as reader:
        harness.put("a", dict(pod("a")))
        harness.put("p", policy(WRONG))
        harness.put("end", pod("end", "10.0.0.9"))
        await reader.names("CiliumNetworkPolicy shop/p", "Pod default/a", "Pod default/end")
        assert reader.events[2:] == ["+Pod default/end"]


async def test_an_object_that_breaks_keeps_its_last_good_version(harness: Harness) -> None:
    harness.put("a", pod("a"))
    async with reading(harness) as reader:
        harness.put("a", pod("a", "nonsense"))
        (problem,) = await reader.problems(1)
        assert "status.podIP: 'nonsense' is not a valid IP address" in problem
        assert reader.address("a") == ("10.0.0.5",)
        harness.put("a", pod("a", "10.0.0.8"))
        await reader.problems(0)
        assert reader.address("a") == ("10.0.0.8",)


async def test_a_broken_object_that_is_deleted_is_gone_with_its_problem(harness: Harness) -> None:
    harness.put("a", pod("a"))
    async with reading(harness) as reader:
        harness.put("a", pod("a", "nonsense"))
        await reader.problems(1)
        harness.delete("a")
        await reader.names()
        assert reader.health.problems == ()


async def test_a_policy_that_breaks_stays_as_it_was(harness: Harness) -> None:
    harness.put("p", policy([{}]))
    async with reading(harness) as reader:
        harness.put("p", policy(WRONG))
        await reader.problems(1)
        (found,) = reader.resources.values()
        assert isinstance(found, PolicyDocument)
        assert isinstance(found.parsed, lang.Read)
        assert reader.events == ["+CiliumNetworkPolicy shop/p"]


async def test_a_policy_without_a_good_version_is_there_to_be_refused(harness: Harness) -> None:
    harness.put("p", policy(WRONG))
    async with reading(harness) as reader:
        await reader.problems(1)
        (found,) = reader.resources.values()
        assert isinstance(found, PolicyDocument)
        assert isinstance(found.parsed, PolicyError)
        harness.put("p", policy([{}]))
        await reader.problems(0)
        (mended,) = reader.resources.values()
        assert isinstance(mended, PolicyDocument)
        assert isinstance(mended.parsed, lang.Read)


async def test_a_policy_without_a_readable_name_is_there_to_be_refused(harness: Harness) -> None:
    harness.put("p", policy([{}], name=5))
    async with reading(harness) as reader:
        await reader.problems(1)
        (found,) = reader.resources.values()
        assert isinstance(found, PolicyDocument)
        assert isinstance(found.parsed, PolicyError)
        harness.put("p", policy([{}]))
        await reader.names("CiliumNetworkPolicy shop/p")
        assert reader.health.problems == ()


async def test_a_kind_that_is_not_used_causes_neither_event_nor_problem(harness: Harness) -> None:
    harness.put("c", {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"a": "b"}})
    async with reading(harness) as reader:
        assert (reader.resources, reader.health.problems) == ({}, ())


async def test_while_the_source_cannot_be_reached_nothing_is_deleted(harness: Harness) -> None:
    harness.put("a", pod("a"))
    harness.put("b", pod("b", "10.0.0.6"))
    async with reading(harness) as reader:
        harness.cut()
        await reader.until(lambda: not reader.health.reachable)
        harness.delete("a")
        harness.put("c", pod("c", "10.0.0.7"))
        assert sorted(map(str, reader.resources)) == ["Pod default/a", "Pod default/b"]
        contact = reader.health.contact
        harness.restore()
        await reader.names("Pod default/b", "Pod default/c")
        await reader.until(lambda: reader.health.reachable)
        assert reader.health.contact > contact
        assert reader.health.problems == ()


async def test_health_names_the_source_and_what_was_read(harness: Harness) -> None:
    harness.put("a", pod("a"))
    async with reading(harness) as reader:
        before = reader.health
        assert before.kind
        assert before.location
        assert before.detail
        assert before.reachable
        harness.put("b", pod("b", "10.0.0.6"))
        await reader.names("Pod default/a", "Pod default/b")
        assert reader.health.detail != before.detail
        with pytest.raises(FrozenInstanceError):
            before.kind = ""  # type: ignore[misc]


async def test_a_change_of_health_alone_causes_a_batch(harness: Harness) -> None:
    async with reading(harness) as reader:
        harness.put("a", pod("a", "nonsense"))
        await reader.problems(1)
        assert reader.events == []


async def test_no_problem_shows_the_value_of_a_secret(harness: Harness) -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "data": {"token": "hunter2!"}}
    named = {"name": "x-token", "secret": {"namespace": "default", "name": "s"}}
    ports = [{"ports": [{"port": "80", "protocol": "TCP"}], "rules": {"http": [{"headerMatches": [named]}]}}]
    harness.put("p", policy([{"toPorts": ports}], namespace="default"))
    harness.put("s", secret)
    async with reading(harness) as reader:
        (problem,) = await reader.problems(1)
        assert "data.token" in problem
        assert "hunter2" not in problem
        harness.put("s", secret | {"data": None, "stringData": {"token": "hunter2!"}})
        await reader.names("CiliumNetworkPolicy default/p", "Secret default/s")
        assert "hunter2" not in repr(reader.resources)
