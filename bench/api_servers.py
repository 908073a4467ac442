"""API servers that hold a large cluster: the real kube-apiserver where its programs are, else the small one of tests.

Objects are written to etcd directly, as the real server stores them (JSON is one of its formats): 170 000 writes by
its API would take far longer. Policies that are timed go through its API. Either server runs in the network namespace
of the calling thread, and so do its clients.
"""

from __future__ import annotations

import base64
import json
import os
import time
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Final, Protocol

import yaml

from deploy.cluster import parts
from tests.kube import api_server
from tests.kube.api_server import ApiServer
from tests.support.kube_api import KubeApi

Document = Mapping[str, Any]

CRDS: Final = Path(__file__).resolve().parents[1] / "deploy" / "crds.yaml"
DEFINITIONS: Final = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
ESTABLISHED_SECONDS: Final = 60.0
START_SECONDS: Final = 300.0
"""It reads all objects when it starts."""
TOGETHER: Final = 200
"""Objects per transaction."""
ETCD_OPTIONS: Final = ("--quota-backend-bytes", "8000000000", "--max-txn-ops", "1000")
CLUSTER_WIDE: Final = frozenset(("Node", "Namespace", "IPAddress", "CiliumClusterwideNetworkPolicy"))
FOLDERS: Final = {
    "Node": "minions",
    "Namespace": "namespaces",
    "Pod": "pods",
    "Service": "services/specs",
    "IPAddress": "ipaddresses",
    "ServiceAccount": "serviceaccounts",
    "EndpointSlice": "endpointslices",
    "CiliumNetworkPolicy": "cilium.io/ciliumnetworkpolicies",
}
"""Where the server keeps each kind in etcd."""


class Server(Protocol):
    name: str
    kubeconfig: Path

    @property
    def pids(self) -> tuple[int, ...]:
        """Its processes, if it has any of its own."""

    def fill(self, objects: Iterable[Document]) -> None:
        """Add objects before clients watch."""

    def change(self, new: Iterable[Document], gone: Iterable[Document] = ()) -> None:
        """Objects that clients see come or go, each named once."""

    def apply(self, policy: Document) -> None:
        """Create a clusterwide policy, or replace the one of this name. Returns when the server has accepted it."""


@contextmanager
def serving(folder: Path, objects: Iterable[Document], cores: Iterable[int]) -> Iterator[Server]:
    """A server that holds these objects, on these cores."""
    os.sched_setaffinity(0, cores)  # of this thread: what it starts inherits it
    if programs := _programs():
        os.environ[api_server.VARIABLE] = str(programs)
        api = ApiServer(folder, etcd_options=ETCD_OPTIONS)
        try:
            real = RealServer(api)
            api.kill()
            real.fill(objects)
            api.start(START_SECONDS)
            yield real
        finally:
            api.close()
    else:
        small = SmallServer(folder)
        try:
            small.fill(objects)
            yield small
        finally:
            small.api.close()


def _programs() -> Path | None:
    """A directory with etcd and kube-apiserver, if there is one: the named one, or that of `make cluster`."""
    named = os.environ.get(api_server.VARIABLE)
    folders = [Path(named)] if named else sorted(parts.cache().glob("kube-*"), reverse=True)
    return next((one for one in folders if all((one / name).exists() for name in ("etcd", "kube-apiserver"))), None)


class RealServer:
    def __init__(self, api: ApiServer) -> None:
        self.name = "real kube-apiserver and etcd"
        self.kubeconfig = api.kubeconfig()
        self._api = api
        self._known: set[str] = set()
        for definition in yaml.safe_load_all(CRDS.read_text()):
            api.ask("POST", DEFINITIONS, definition)
        self._wait_established()

    @property
    def pids(self) -> tuple[int, ...]:
        return self._api.pids

    def _wait_established(self) -> None:
        """A server that is killed before never establishes them."""
        end = time.monotonic() + ESTABLISHED_SECONDS
        while not all(map(_established, self._api.ask("GET", DEFINITIONS)["items"])):
            if time.monotonic() > end:
                raise SystemExit(f"CustomResourceDefinitions are not served after {ESTABLISHED_SECONDS:.0f} s")
            time.sleep(0.2)

    def fill(self, objects: Iterable[Document]) -> None:
        rest = (each for one in objects for each in (one, *_allocation(one)))
        while some := list(islice(rest, TOGETHER)):
            self.change(some)

    def change(self, new: Iterable[Document], gone: Iterable[Document] = ()) -> None:
        steps = [{"requestDeleteRange": {"key": _text(_place(one))}} for one in gone]
        steps += [{"requestPut": {"key": _text(_place(one)), "value": _text(json.dumps(one))}} for one in new]
        body = json.dumps({"success": steps}).encode()
        request = urllib.request.Request(f"{self._api.etcd}/v3/kv/txn", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            answer.read()

    def apply(self, policy: Document) -> None:
        path, name = "/apis/cilium.io/v2/ciliumclusterwidenetworkpolicies", policy["metadata"]["name"]
        known = name in self._known
        self._known.add(name)
        self._api.ask(*(("PATCH", f"{path}/{name}") if known else ("POST", path)), policy)


class SmallServer:
    pids = ()

    def __init__(self, folder: Path) -> None:
        self.name = "the small API server of the tests"
        self.api = KubeApi()
        self.kubeconfig = self.api.kubeconfig(folder)
        for plural, kind in (
            ("ciliumnetworkpolicies", "CiliumNetworkPolicy"),
            ("ciliumclusterwidenetworkpolicies", "CiliumClusterwideNetworkPolicy"),
        ):
            self.api.serve("cilium.io/v2", kind, plural)

    def fill(self, objects: Iterable[Document]) -> None:
        self.api.fill({_place(one): one for one in objects})

    def change(self, new: Iterable[Document], gone: Iterable[Document] = ()) -> None:
        for one in gone:
            self.api.delete(_place(one))
        for one in new:
            self.api.put(_place(one), one)

    def apply(self, policy: Document) -> None:
        self.change([policy])


def _allocation(one: Document) -> Iterator[Document]:
    """The object that marks a Service's address as taken. A server that lacks thousands of them does not start."""
    if one["kind"] != "Service":
        return
    metadata = one["metadata"]
    parent = {"group": "", "resource": "services", "namespace": metadata["namespace"], "name": metadata["name"]}
    labels = {
        "ipaddress.kubernetes.io/ip-family": "IPv4",
        "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io",
    }
    yield {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "IPAddress",
        "metadata": {"name": one["spec"]["clusterIP"], "uid": metadata["uid"], "labels": labels},
        "spec": {"parentRef": parent},
    }


def _established(definition: Document) -> bool:
    conditions = definition.get("status", {}).get("conditions") or ()
    return any((one["type"], one["status"]) == ("Established", "True") for one in conditions)


def _place(one: Document) -> str:
    metadata = one["metadata"]
    folder = FOLDERS.get(one["kind"], one["kind"])
    namespace = "" if one["kind"] in CLUSTER_WIDE else f"/{metadata.get('namespace', 'default')}"
    return f"/registry/{folder}{namespace}/{metadata['name']}"


def _text(value: str) -> str:
    return base64.b64encode(value.encode()).decode()
