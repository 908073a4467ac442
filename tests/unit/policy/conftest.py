"""A small cluster for policy tests: one server under policy, and all kinds of peers.

`server` is the endpoint (namespace `default`). Peers are pods, reserved identities by Cilium's names, or outside
addresses, which get their identity by longest prefix as in the agent.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from ipaddress import ip_network
from typing import Any, Final

import pytest
import yaml

from l7proxy.cluster.state import ClusterState, NodeView
from l7proxy.model.endpoint import Endpoint
from l7proxy.model.http import Request
from l7proxy.model.identity import (
    LOCAL_SCOPE,
    RESERVED_IDENTITIES,
    WORLD_IPV4,
    WORLD_IPV6,
    Identity,
    NamedPort,
    cidr_labels,
)
from l7proxy.model.ids import EndpointId, IdentityId
from l7proxy.model.labels import CLUSTER_KEY, K8S, NAMESPACE_KEY, NAMESPACE_LABELS_PREFIX, Label, LabelSet
from l7proxy.model.net import PrefixTable
from l7proxy.model.resources import Resource, Upsert
from l7proxy.model.verdict import Direction, Verdict
from l7proxy.policy import decide, lang
from l7proxy.policy.compile import cidrs_of, compile_policies
from l7proxy.policy.lang.options import DEFAULT, Options
from l7proxy.policy.rules import Rule
from l7proxy.policy.tables import EndpointPolicy
from l7proxy.sources.files import manifest as manifests

PROTOCOLS = {"TCP": 6, "UDP": 17, "SCTP": 132, "ICMP": 1, "ICMPV6": 58, "GRE": 47, "VRRP": 112}


def pod_labels(namespace: str, **labels: str) -> LabelSet:
    own = {NAMESPACE_KEY: namespace, CLUSTER_KEY: "default", f"{NAMESPACE_LABELS_PREFIX}team": f"{namespace}-team"}
    return LabelSet.of(Label(K8S, key, value) for key, value in (own | labels).items())


PODS: Mapping[str, tuple[int, LabelSet, frozenset[NamedPort]]] = {
    "server": (300, pod_labels("default", app="server"), frozenset({("http", 6, 8080), ("dns", 17, 53)})),
    "a": (301, pod_labels("default", app="a"), frozenset()),
    "b": (302, pod_labels("default", app="b"), frozenset({("http", 6, 9090)})),
    "plain": (303, pod_labels("default"), frozenset()),
    "web1": (304, pod_labels("default", app="web", v="1"), frozenset({("http", 6, 8081)})),
    "web2": (305, pod_labels("default", app="web", v="2"), frozenset({("http", 6, 8082), ("http", 17, 8083)})),
    "other/a": (306, pod_labels("other", app="a"), frozenset()),
    "third/a": (307, pod_labels("third", app="a"), frozenset()),
}


@dataclass(frozen=True)
class Land:
    """Compiled policies, ready for queries."""

    rules: tuple[Rule, ...]
    identities: Mapping[int, Identity]
    addresses: PrefixTable[int]
    policy: EndpointPolicy
    ports: dict[tuple[object, ...], decide.PortPolicy] = field(default_factory=dict)

    def who(self, name: str) -> int:
        """The identity of a pod, a reserved name or an address."""
        if name in PODS:
            return PODS[name][0]
        for number, labels in RESERVED_IDENTITIES.items():
            if name == "+".join(label.key for label in sorted(labels.labels)):
                return number
        found = self.addresses.get(name)
        assert found is not None, name
        return found

    def port(self, peer: str, port: str = "80/TCP", direction: Direction = Direction.INGRESS) -> decide.PortPolicy:
        number, _, protocol = port.partition("/")
        return decide.port(self.policy.direction(direction), self.who(peer), PROTOCOLS[protocol], int(number))

    def ingress(self, peer: str, port: str = "80/TCP") -> str:
        return word(self.port(peer, port))

    def egress(self, peer: str, port: str = "80/TCP") -> str:
        return word(self.port(peer, port, Direction.EGRESS))

    def http(self, peer: str, line: str, *headers: str, port: str = "80/TCP", host: str = "server") -> str:
        """Returns "allow" or "deny" for a request that reached the proxy."""
        policy = self.port(peer, port)
        assert policy.l4.verdict is Verdict.REDIRECTED, word(policy)
        return "deny" if policy.judge(request(line, *headers, host=host)).verdict is Verdict.DROPPED else "allow"


def request(line: str, *headers: str, host: str = "server") -> Request:
    method, _, path = line.partition(" ")
    split = [header.split(": ", 1) for header in headers]
    return Request(
        method.encode(),
        path.encode(),
        host.encode(),
        [(b"host", host.encode()), *((name.lower().encode(), value.encode("latin-1")) for name, value in split)],
    )


def word(policy: decide.PortPolicy) -> str:
    """The L4 result: `allow`, `proxy` (HTTP rules decide), `proxy, all allowed`, `deny` (by a rule), `no rule`."""
    if policy.l4.verdict is Verdict.DROPPED:
        return "deny" if policy.l4.drop_reason.name == "POLICY_DENY" else "no rule"
    if policy.l4.verdict is Verdict.REDIRECTED:
        return "proxy, all allowed" if policy.rest.allowed else "proxy"
    return "allow"


def load(text: str) -> Any:
    return yaml.load(textwrap.dedent(text), yaml.CSafeLoader)


def cnp(spec: str, *, namespace: str = "default", name: str = "p", subject: str | None = "app: server") -> Any:
    """A CiliumNetworkPolicy with this `spec`; it selects the server unless the spec has a selector."""
    body = load(spec) or {}
    if subject is not None and "endpointSelector" not in body:
        body["endpointSelector"] = {"matchLabels": load(subject)}
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": name, "namespace": namespace},
        "spec": body,
    }


def ccnp(spec: str, *, name: str = "cp") -> Any:
    document = cnp(spec, name=name)
    document["kind"] = "CiliumClusterwideNetworkPolicy"
    del document["metadata"]["namespace"]
    return document


def identities_for(rules: Iterable[Rule], *, dual: bool = True) -> tuple[dict[int, Identity], PrefixTable[int]]:
    """The identity table and the address table, made as the agent makes them."""
    table = {int(number): Identity(number, labels) for number, labels in RESERVED_IDENTITIES.items()}
    worlds = {"0.0.0.0/0": 2, "::/0": 2}
    if dual:
        worlds = {"0.0.0.0/0": int(WORLD_IPV4), "::/0": int(WORLD_IPV6)}
        for text, number in worlds.items():
            table[number] = Identity(IdentityId(number), table[number].labels, cidr=ip_network(text))
    addresses = dict(worlds)
    for place, network in enumerate(sorted((n for n in cidrs_of(rules) if n.prefixlen), key=str), LOCAL_SCOPE + 1):
        world = f"world-ipv{network.version}" if dual else "world"
        table[place] = Identity(IdentityId(place), cidr_labels(network, world), cidr=network)
        addresses[str(network)] = place
    for number, labels, named in PODS.values():
        table[number] = Identity(IdentityId(number), labels, named)
    return table, PrefixTable(addresses)


def server() -> Endpoint:
    number, labels, named = PODS["server"]
    return Endpoint(EndpointId(1), "default", "server", IdentityId(number), labels, ("10.9.0.1",), named)


def enforce(*documents: Any, dual: bool = True) -> Land:
    """The server under these policies; a spec may be given as text."""
    documents = tuple(
        cnp(each, name=f"p{place}") if isinstance(each, str) else each for place, each in enumerate(documents)
    )
    rules = tuple(rule for document in documents for rule in lang.parse(document))
    table, addresses = identities_for(rules, dual=dual)
    return Land(rules, table, addresses, compile_policies(rules, [server()], table)[1])


TOWN: Final = """
- {apiVersion: v1, kind: Node, metadata: {name: n1, labels: {zone: east}}, spec: {podCIDRs: [10.1.0.0/16]},
   status: {addresses: [{type: InternalIP, address: 192.168.0.1}]}}
- {apiVersion: v1, kind: Node, metadata: {name: n2, labels: {zone: west}}, spec: {podCIDRs: [10.2.0.0/16]},
   status: {addresses: [{type: InternalIP, address: 192.168.0.2}]}}
- {apiVersion: v1, kind: Node, metadata: {name: n3, labels: {zone: east}}, spec: {podCIDRs: [10.3.0.0/16]},
   status: {addresses: [{type: InternalIP, address: 192.168.0.3}]}}
- {apiVersion: v1, kind: Namespace, metadata: {name: default, labels: {team: red}}}
- {apiVersion: v1, kind: Namespace, metadata: {name: other, labels: {team: blue}}}
- {apiVersion: v1, kind: Pod, metadata: {name: server, namespace: default, labels: {app: server, pod-template-hash: x}},
   spec: {nodeName: n1}, status: {podIP: 10.1.0.1}}
- {apiVersion: v1, kind: Pod, metadata: {name: a, namespace: default, labels: {app: a, pod-template-hash: x}},
   spec: {nodeName: n1}, status: {podIP: 10.1.0.2}}
- {apiVersion: v1, kind: Pod, metadata: {name: b, namespace: default, labels: {app: b, tier: back}},
   spec: {nodeName: n2}, status: {podIP: 10.2.0.2}}
- {apiVersion: v1, kind: Pod, metadata: {name: a, namespace: other, labels: {app: a}},
   spec: {nodeName: n3}, status: {podIP: 10.3.0.2}}
- {apiVersion: v1, kind: Service, metadata: {name: back, namespace: default, labels: {kind: inside}},
   spec: {clusterIP: 10.96.0.1, selector: {app: b}, ports: [{port: 80}]}}
- {apiVersion: v1, kind: Service, metadata: {name: front, namespace: default, labels: {kind: inside}},
   spec: {clusterIP: 10.96.0.2, selector: {app: a}, ports: [{port: 80}]}}
- {apiVersion: v1, kind: Service, metadata: {name: front, namespace: other, labels: {kind: far}},
   spec: {clusterIP: 10.96.0.3, selector: {app: a}, ports: [{port: 80}]}}
- {apiVersion: v1, kind: Service, metadata: {name: outside, namespace: default, labels: {kind: external}},
   spec: {clusterIP: 10.96.0.4, ports: [{port: 80}]}}
- {apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4,
   metadata: {name: outside-1, namespace: default, labels: {kubernetes.io/service-name: outside}},
   endpoints: [{addresses: [203.0.113.7]}, {addresses: [10.1.0.2]}], ports: [{port: 80}]}
- {apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4,
   metadata: {name: kubernetes, namespace: default, labels: {kubernetes.io/service-name: kubernetes}},
   endpoints: [{addresses: [192.168.0.3]}, {addresses: [198.51.100.9]}], ports: [{port: 6443}]}
- {apiVersion: cilium.io/v2, kind: CiliumCIDRGroup, metadata: {name: partners, labels: {trust: some}},
   spec: {externalCIDRs: [203.0.113.0/25, 198.51.100.0/24]}}
- {apiVersion: cilium.io/v2alpha1, kind: CiliumCIDRGroup, metadata: {name: office, labels: {trust: full}},
   spec: {externalCIDRs: [192.0.2.0/24, 10.1.0.0/16]}}
"""
"""Three nodes (`n1` is the local one), an API server on `n3` and one outside, and the peers that policies may name."""


@dataclass(frozen=True)
class Town:
    """The whole path from manifests to verdicts. The pod under policy is default/server, on `n1`."""

    view: NodeView
    policies: Mapping[int, EndpointPolicy]

    @classmethod
    def of(cls, *documents: Any, more: str = "", **options: Any) -> Town:
        """`documents` are policies (a spec may be given as text), `more` are manifests, a list of them in YAML."""
        objects = list(load(more)) if more else []
        objects += [cnp(each, name=f"p{at}") if isinstance(each, str) else each for at, each in enumerate(documents)]
        resources = [*_of_town(), *_resources(objects, options.get("options", DEFAULT))]
        world = ClusterState(**options)
        world.apply(Upsert(resource) for resource in resources)
        view = world.view("n1")
        return cls(view, compile_policies(view.rules, view.endpoints, view.identities))

    def port(self, direction: Direction, peer: str, port: str = "80/TCP") -> decide.PortPolicy:
        number, _, protocol = port.partition("/")
        endpoint = next(one.id for one in self.view.endpoints if (one.namespace, one.name) == ("default", "server"))
        identity = PrefixTable(self.view.by_prefix).get(peer)
        assert identity is not None, peer
        return decide.port(
            self.policies[endpoint].direction(direction), identity, PROTOCOLS[protocol], _port_number(number)
        )

    def ingress(self, *peers: str, port: str = "80/TCP") -> str:
        return " ".join(word(self.port(Direction.INGRESS, WHO.get(peer, peer), port)) for peer in peers)

    def egress(self, *peers: str, port: str = "80/TCP") -> str:
        return " ".join(word(self.port(Direction.EGRESS, WHO.get(peer, peer), port)) for peer in peers)


@cache
def _of_town() -> tuple[Resource, ...]:
    """Read once: no policy option changes what they mean, and hundreds of tests use them."""
    return _resources(load(TOWN), DEFAULT)


def _resources(objects: list[Any], options: Options) -> tuple[Resource, ...]:
    text = yaml.dump_all(objects, Dumper=yaml.CSafeDumper, allow_unicode=True)
    read = manifests.parse(text.encode(), "town.yaml", options)
    assert not read.faults, read.faults
    return tuple(read.resources)


WHO: Final = {
    "n1": "192.168.0.1",
    "n2": "192.168.0.2",
    "n3": "192.168.0.3",
    "a": "10.1.0.2",
    "b": "10.2.0.2",
    "other/a": "10.3.0.2",
    "outside": "203.0.113.7",
    "apiserver": "198.51.100.9",
}


def _port_number(text: str) -> int:
    """A port number, or ICMP's type.code."""
    kind, dot, code = text.partition(".")
    return int(kind) << 8 | int(code) if dot else int(text)


@dataclass(frozen=True)
class Bench:
    """The helpers of the tests, in one fixture: with importlib mode a test cannot import its neighbours."""

    @staticmethod
    def enforce(*documents: Any, dual: bool = True) -> Land:
        return enforce(*documents, dual=dual)

    @staticmethod
    def town(*documents: Any, more: str = "", **options: Any) -> Town:
        return Town.of(*documents, more=more, **options)

    @staticmethod
    def cnp(spec: str, *, namespace: str = "default", name: str = "p", subject: str | None = "app: server") -> Any:
        return cnp(spec, namespace=namespace, name=name, subject=subject)

    @staticmethod
    def ccnp(spec: str, *, name: str = "cp") -> Any:
        return ccnp(spec, name=name)

    @staticmethod
    def request(line: str, *headers: str, host: str = "server") -> Request:
        return request(line, *headers, host=host)

    @staticmethod
    def load(text: str) -> Any:
        return load(text)

    @staticmethod
    def server() -> Endpoint:
        return server()

    @staticmethod
    def pod(number: int, namespace: str, **labels: str) -> Identity:
        return Identity(IdentityId(number), pod_labels(namespace, **labels))

    @staticmethod
    def endpoint(number: int, namespace: str, **labels: str) -> Endpoint:
        return Endpoint(EndpointId(number), namespace, "x", IdentityId(999), pod_labels(namespace, **labels), ())

    @staticmethod
    def identities_for(rules: Iterable[Rule], *, dual: bool = True) -> dict[int, Identity]:
        return identities_for(rules, dual=dual)[0]


@pytest.fixture(scope="session")
def bench() -> Bench:
    return Bench()
