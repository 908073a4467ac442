"""Law 4 end to end: whatever the history, snapshot and desired state are those of an agent that starts now.

A random history: pods, nodes, namespaces, Services, secrets and policies of every language are added, changed and
deleted, and one agent's state (ClusterState, Compiler, Tables) lives through it. After every few changes its output is
compared with that of a fresh agent with the same resources, and the kernel table with `decide` for every peer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from ipaddress import ip_address, ip_network
from random import Random
from typing import Any

import pytest

from l7proxy.agent.dataplane.pod_interfaces import PodInterfaces
from l7proxy.agent.dataplane.render import DesiredState, Tables, render
from l7proxy.cluster.state import ClusterState, NodeView
from l7proxy.errors import SourceError
from l7proxy.model import resources
from l7proxy.model.net import PrefixTable
from l7proxy.model.resources import Change, Delete, Resource, ResourceKey, Upsert
from l7proxy.model.secret import Sealed
from l7proxy.model.verdict import Direction, Verdict
from l7proxy.policy import decide
from l7proxy.policy.compile import Compiler
from l7proxy.policy.encapsulation import no_encapsulation
from l7proxy.policy.lang.options import Options
from l7proxy.sources import objects
from l7proxy.sources.source import SYNCED
from tests.oracle import documents as writing
from tproxy_rules import desired as kernel
from tproxy_rules.fake import FakeBackend, Fate, Packet
from tproxy_rules.validate import checked

SPACES = ("red", "blue")
NODES = ("n1", "n2")
OPTIONS = Options(node_selectors=True)
PEERS = ("10.0.1.10", "10.0.2.11", "fd00:1::10", "fd00:2::11", "192.168.0.1", "192.168.0.2", "198.51.100.7",
         "203.0.113.9", "2001:db8::7", "10.0.2.99")  # fmt: skip
FATES = {Verdict.FORWARDED: Fate.PASS, Verdict.AUDIT: Fate.PASS, Verdict.REDIRECTED: Fate.STEER,
         Verdict.DROPPED: Fate.REFUSE}  # fmt: skip
NAMED_PORTS = (("http", 6, 80), ("http", 6, 8080), ("alt", 17, 53), ("alt", 6, 443))


class Life:
    """Generates changes of one cluster: `next` is the next change, `resources` the current objects."""

    def __init__(self, seed: int) -> None:
        self._dice = Random(seed)
        self.resources: dict[ResourceKey, Resource] = {}
        self._policies = 0

    def next(self) -> Iterator[Change]:
        for _ in range(self._dice.choice((1, 1, 1, 2, 5))):
            if self.resources and self._dice.random() < 0.25:
                key = self._dice.choice(sorted(self.resources))
                del self.resources[key]
                yield Delete(key)
            else:
                resource = self._any()
                self.resources[resource.key] = resource
                yield Upsert(resource)

    def _any(self) -> Resource:
        make = self._dice.choice(
            (self._pod,) * 6 + (self._policy,) * 4 + (self._special,) * 3
            + (self._node, self._space, self._service, self._slice, self._group, self._set, self._tier, self._account,
               self._secret)
        )  # fmt: skip
        return make()

    def _labels(self, *keys: str) -> dict[str, str]:
        return {key: self._dice.choice("abcx") for key in keys or ("app", "tier") if self._dice.random() < 0.6}

    def _pod(self) -> Resource:
        dice = self._dice
        node, place = dice.choice((1, 1, 2)), dice.randrange(10, 14)
        addresses = dice.choice(
            (
                (f"10.0.{node}.{place}",),
                (f"10.0.{node}.{place}", f"fd00:{node}::{place}"),
                (f"fd00:{node}::{place}",),
                (),
            )
        )
        return resources.Pod(
            dice.choice(SPACES),
            dice.choice("pqrst"),
            f"n{node}",
            (f"192.168.0.{node}",) if dice.random() < 0.05 else addresses,
            self._labels(),
            frozenset(dice.sample(NAMED_PORTS, dice.randint(0, 2))),
            dice.choice(("default", "ci")),
            host_network=dice.random() < 0.1,
            phase=dice.choice(("Running",) * 9 + ("Succeeded",)),
        )

    def _policy(self) -> Resource:
        self._policies += 1
        (document,) = writing.some(self._dice, 1)
        document["metadata"]["name"] = f"p{self._dice.randrange(6)}"
        if document["kind"] == "BaselineAdminNetworkPolicy":
            document["metadata"]["name"] = "default"
        return self._read(document)

    def _special(self) -> Resource:
        document = self._dice.choice(SPECIAL)
        kind, spec = document["kind"], document["spec"]
        wide = kind.startswith(("CiliumClusterwide", "Global", "Cluster", "Admin"))
        metadata: dict[str, Any] = {"name": f"s{SPECIAL.index(document)}"}
        if not wide:
            metadata["namespace"] = self._dice.choice(SPACES)
        return self._read({"apiVersion": document["apiVersion"], "kind": kind, "metadata": metadata, "spec": spec})

    def _read(self, document: dict[str, Any]) -> Resource:
        metadata = document["metadata"]
        if self._dice.random() < 0.1:
            metadata["annotations"] = {"l7proxy.io/audit": "true"}
        fault = "cannot be read" if self._dice.random() < 0.03 else ""
        if fault:
            return objects.placeholder(document, objects.NOWHERE, {}, SourceError(fault))
        return objects.policy(document, options=OPTIONS)

    def _node(self) -> Resource:
        number = self._dice.choice((1, 2))
        six = self._dice.random() < 0.5
        return resources.Node(
            f"n{number}",
            (f"192.168.0.{number}",) + ((f"fd01::{number}",) if six else ()),
            (f"10.0.{number}.0/24",) + ((f"fd00:{number}::/64",) if six else ()),
            self._labels("zone"),
        )

    def _space(self) -> Resource:
        name = self._dice.choice(SPACES)
        annotations = {"l7proxy.io/audit": self._dice.choice(("true", "false", "perhaps"))}
        return resources.Namespace(
            name, {"team": self._dice.choice(SPACES)}, annotations if self._dice.random() < 0.4 else {}
        )

    def _service(self) -> Resource:
        selector = self._labels("app") if self._dice.random() < 0.7 else {}
        ports = (resources.ServicePort(80, 6, self._dice.choice((80, 8080, "http")), "web"),)
        number = self._dice.randrange(1, 4)
        return resources.Service(
            self._dice.choice(SPACES), "svc", (f"10.96.0.{number}",), ports, selector, labels=self._labels("app")
        )

    def _slice(self) -> Resource:
        dice = self._dice
        space, service = dice.choice((*((space, "svc") for space in SPACES), ("default", "kubernetes")))
        port = resources.SlicePort("web", dice.choice((80, 8080)), 6)
        addresses = dice.choice((("198.51.100.7",), (f"10.0.1.{dice.randrange(10, 14)}",), ("192.168.0.2",), ()))
        return resources.EndpointSlice(space, f"{service}-{dice.randrange(2)}", service, addresses, (port,))

    def _group(self) -> Resource:
        networks = self._dice.choice((("198.51.100.0/24",), ("203.0.113.0/24", "2001:db8::/32"), ()))
        return resources.CidrGroup("group", networks, self._labels("app"), unread=self._dice.random() < 0.2)

    def _set(self) -> Resource:
        networks = self._dice.choice((("198.51.100.0/24",), ("10.0.2.0/24", "fd00:2::/64"), ("0.0.0.0/0",)))
        return resources.NetworkSet(self._dice.choice(("", *SPACES)), "set", networks, self._labels())

    def _tier(self) -> Resource:
        return resources.PolicyTier("team", self._dice.choice((5.0, 50.0, 5e6)), passes=self._dice.random() < 0.4)

    def _account(self) -> Resource:
        return resources.ServiceAccount(self._dice.choice(SPACES), "ci", self._labels("role"))

    def _secret(self) -> Resource:
        entries = self._dice.choice((1, 1, 2))
        value = Sealed(self._dice.choice((b"one", b"two", b"bad\nvalue")))
        return resources.Secret(self._dice.choice(SPACES), "token", entries, value if entries == 1 else None)


def _cilium(**spec: Any) -> dict[str, Any]:
    return {"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "spec": {"endpointSelector": {}, **spec}}


def _calico(kind: str = "NetworkPolicy", **spec: Any) -> dict[str, Any]:
    return {"apiVersion": "projectcalico.org/v3", "kind": kind, "spec": {"selector": "all()", **spec}}


def _secret_rule(**more: str) -> dict[str, Any]:
    http = [{"path": "/s", "headerMatches": [{"name": "X-Token", "secret": {"name": "token"}, **more}]}]
    return {"toPorts": [{"ports": [{"port": "80", "protocol": "TCP"}], "rules": {"http": http}}]}


SPECIAL: tuple[dict[str, Any], ...] = (
    _cilium(egress=[{"toServices": [{"k8sService": {"serviceName": "svc", "namespace": "red"}}]}]),
    _cilium(egress=[{"toServices": [{"k8sServiceSelector": {"selector": {"matchLabels": {"app": "a"}}}}]}]),
    _cilium(egress=[{"toCIDRSet": [{"cidrGroupRef": "group"}]}]),
    _cilium(egressDeny=[{"toCIDRSet": [{"cidrGroupRef": "group"}]}], egress=[{"toEntities": ["world"]}]),
    _cilium(ingress=[{"fromNodes": [{"matchLabels": {"zone": "a"}}]}]),
    _cilium(ingress=[{"icmps": [{"fields": [{"type": 8, "family": "IPv4"}]}]}]),
    _cilium(ingress=[_secret_rule()]),
    _cilium(ingress=[_secret_rule(value="own", mismatch="REPLACE")]),
    _cilium(ingress=[{"toPorts": [{"ports": [{"port": "80", "protocol": "TCP"}], "rules": {"kafka": [{}]}}]}]),
    _cilium(ingress=[{"fromEntities": ["kube-apiserver"]}], egress=[{"toEntities": ["kube-apiserver", "unmanaged"]}]),
    _calico(types=["Egress"], egress=[{"action": "Allow", "destination": {"services": {"name": "svc"}}}]),
    _calico(tier="team", ingress=[{"action": "Deny", "protocol": "UDP"}, {"action": "Pass"}]),
    _calico(ingress=[{"action": "Allow", "source": {"serviceAccounts": {"selector": "role == 'a'"}}}]),
    _calico(ingress=[{"action": "Allow", "source": {"notSelector": "app == 'a'", "notNets": ["10.0.2.0/24"]}}]),
    _calico("GlobalNetworkPolicy", order=7, ingress=[{"action": "Allow", "protocol": "ICMP", "icmp": {"type": 8}}]),
    _calico(egress=[{"action": "Allow", "protocol": "TCP", "destination": {"ports": ["http", 443]}}], types=["Egress"]),
    _calico("StagedNetworkPolicy", ingress=[{"action": "Deny"}]),
    {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "spec": {
            "podSelector": {},
            "ingress": [{"from": [{"ipBlock": {"cidr": "fd00:2::/64"}}, {"ipBlock": {"cidr": "10.0.2.0/24"}}]}],
            "egress": [{"to": [{"ipBlock": {"cidr": "::/0", "except": ["fd00:1::/64"]}}], "ports": [{"port": "http"}]}],
            "policyTypes": ["Ingress", "Egress"],
        },
    },
    {
        "apiVersion": "policy.networking.k8s.io/v1alpha2",
        "kind": "ClusterNetworkPolicy",
        "spec": {
            "tier": "Admin",
            "priority": 3,
            "subject": {"namespaces": {"matchLabels": {"team": "red"}}},
            "ingress": [{"action": "Deny", "from": [{"namespaces": {"matchLabels": {"team": "blue"}}}],
                         "protocols": [{"destinationNamedPort": "http"}]}],
            "egress": [{"action": "Accept", "to": [{"networks": ["10.0.2.0/24"]}]}],
        },
    },
)  # fmt: skip


class Agent:
    """The state that an agent keeps between two renders."""

    def __init__(self, **settings: Any) -> None:
        self.cluster_state = ClusterState(
            secrets_namespace="red", options=OPTIONS, everywhere=no_encapsulation(), **settings
        )
        self.cluster_state.apply(SYNCED)
        self._compiler, self._tables = Compiler(), Tables()

    def draw(self, *, services: bool) -> tuple[NodeView, Mapping[int, Any], DesiredState]:
        view = self.cluster_state.view("n1", local_addresses=("169.254.7.7",))
        policies = self._compiler.compile(view.rules, view.endpoints, view.identities)
        snapshots = render(
            view, policies, PodInterfaces(), settings=kernel.Settings(), resolve_services=services, known=self._tables
        )
        return view, policies, snapshots


@pytest.mark.parametrize("seed", range(6))
def test_no_life_leaves_a_trace(seed: int) -> None:
    live(seed, 50)


def live(seed: int, steps: int) -> None:
    """Fails at the first difference."""
    dice, life = Random(-seed - 1), Life(seed)
    settings = {"audit_all": dice.random() < 0.1, "enforce_always": dice.random() < 0.2}
    agent, services = Agent(**settings), dice.random() < 0.5
    for step in range(steps):
        agent.cluster_state.apply(life.next())
        if dice.random() < 0.3:
            continue  # several changes, one render
        view, policies, snapshots = agent.draw(services=services)
        fresh = Agent(**settings)
        fresh.cluster_state.apply(
            Upsert(resource) for resource in dice.sample(list(life.resources.values()), len(life.resources))
        )
        new_view, new_policies, new = fresh.draw(services=services)
        where = f"seed {seed}, step {step}"
        assert view.identities == new_view.identities, where
        assert view == new_view, where
        assert policies == new_policies, where
        assert snapshots.equals(new), where
        _sound(snapshots, view, policies, where)


def _is_held(address: str, state: kernel.Desired) -> bool:
    """An address of this node's pods that no pod is known to have."""
    single = f"{address}/{128 if ':' in address else 32}"
    inside = any(ip_address(address) in ip_network(prefix) for prefix in state.held)
    return inside and single not in dict(state.identities)


def _sound(snapshots: DesiredState, view: NodeView, policies: Mapping[int, Any], where: str) -> None:
    """The kernel accepts the desired state, and refuses, redirects and passes as `decide` says."""
    checked(snapshots.kernel)
    fake = FakeBackend()
    fake.apply(snapshots.kernel)
    who = PrefixTable(view.by_prefix)
    for endpoint in view.endpoints:
        mine = endpoint.addresses[0]
        for peer in PEERS:
            if peer in endpoint.addresses or (":" in peer) != (":" in mine):
                continue
            table = policies[endpoint.id].direction(Direction.INGRESS)
            for protocol, port in ((6, 80), (6, 443), (17, 53), (1, 8 << 8), (47, 0)):
                said = decide.port(table, who.get(peer) or 0, protocol, port).l4.verdict
                fate = fake.verdict_of(Packet(peer, mine, protocol, port, "eth0"))
                here = any(peer in one.addresses for one in view.endpoints)
                wanted = Fate.REFUSE if _is_held(peer, snapshots.kernel) else FATES[said]
                assert here or fate is wanted, f"{where}: {peer} to {endpoint.name} {protocol}/{port}"
