"""A cluster for policies of all languages: three namespaces, three pods in each, two nodes, both IP families.

`x/a` is pod a of namespace x at its IPv4 address, `x/a@6` at its IPv6 one; a node is `n1`, any other peer an address.
x and y are on n1, z is on n2. Pods serve 80 and 81 under the names `serve-80-tcp`, `serve-81-udp` and so on. A flow is
allowed when the client's egress and the server's ingress both allow it, each evaluated for its own node.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import yaml

from l7proxy.cluster.state import ClusterState, NodeView
from l7proxy.model import resources
from l7proxy.model.http import Request
from l7proxy.model.net import PrefixTable
from l7proxy.model.resources import Change, Node, Pod, PolicyDocument, Resource, Upsert
from l7proxy.model.verdict import Direction, Verdict
from l7proxy.policy import decide
from l7proxy.policy.compile import compile_policies
from l7proxy.policy.decide import PortPolicy
from l7proxy.policy.lang.options import DEFAULT, Options
from l7proxy.policy.tables import EndpointPolicy
from l7proxy.sources import objects
from l7proxy.sources.source import SYNCED

NUMBERS = {"TCP": 6, "UDP": 17, "SCTP": 132, "ICMP": 1, "ICMPv6": 58, "GRE": 47}
PORTS = frozenset(
    (f"serve-{number}-{name.lower()}", NUMBERS[name], number) for number in (80, 81) for name in ("TCP", "UDP", "SCTP")
)
SPACES = ("x", "y", "z")
PEOPLE = tuple(f"{space}/{name}" for space in SPACES for name in "abc")


def pod(who: str, **labels: str) -> Pod:
    """One of the nine pods."""
    space, name = who.split("/")
    node, place = (2 if space == "z" else 1), 10 * SPACES.index(space) + "abc".index(name) + 11
    return Pod(
        space,
        name,
        f"n{node}",
        (f"10.0.{node}.{place}", f"fd00:{node}::{place}"),
        {"pod": name, **labels},
        PORTS,
        service_account=name,
        phase="Running",
    )


NODES = (
    Node("n1", ("192.168.0.1", "fd01::1"), ("10.0.1.0/24", "fd00:1::/64"), {"zone": "one"}),
    Node("n2", ("192.168.0.2", "fd01::2"), ("10.0.2.0/24", "fd00:2::/64"), {"zone": "two"}),
)


def load(text: str) -> list[dict[str, Any]]:
    return [one for one in yaml.safe_load_all(textwrap.dedent(text)) if one is not None]


class Town:
    """The cluster under these policies (texts or documents)."""

    def __init__(
        self, *policies: str | Mapping[str, Any], more: Iterable[Resource] = (), options: Options = DEFAULT
    ) -> None:
        self._world = ClusterState(options=options)
        everything: list[Resource] = [resources.Namespace(space, {"ns": space}) for space in SPACES]
        everything += [*NODES, *(pod(who) for who in PEOPLE), *more]
        for policy in policies:
            documents = load(policy) if isinstance(policy, str) else [dict(policy)]
            everything += [self._document(document, options) for document in documents]
        self._world.apply([*(Upsert(resource) for resource in everything), *SYNCED])
        self._pods = {f"{one.namespace}/{one.name}": one for one in everything if isinstance(one, Pod)}

    def change(self, *changes: Change) -> None:
        """Applies changes to the same cluster."""
        self._world.apply(changes)
        for change in changes:
            if isinstance(change, Upsert) and isinstance(change.resource, Pod):
                self._pods[f"{change.resource.namespace}/{change.resource.name}"] = change.resource
        for name in ("states", "_views", "_policies", "_prefixes"):
            self.__dict__.pop(name, None)

    @staticmethod
    def document(text: str) -> PolicyDocument:
        """One policy, as a source delivers it."""
        (found,) = load(text)
        return Town._document(found)

    @staticmethod
    def _document(document: dict[str, Any], options: Options = DEFAULT) -> PolicyDocument:
        return objects.policy(document, options=options)

    @cached_property
    def states(self) -> dict[str, str]:
        """Name of a policy → its state, with the reason."""
        return {one.name: f"{one.state.value} {one.reason}".strip() for one in self.view("n1").policies}

    def allows(self, client: str, server: str, port: str = "80/TCP") -> bool:
        """Whether the connection is allowed; a port with HTTP rules counts as open."""
        return all(policy.l4.verdict is not Verdict.DROPPED for policy in self._both(client, server, port))

    def http(self, client: str, server: str, line: str, port: str = "80/TCP") -> bool:
        """Whether a request is allowed."""
        method, _, path = line.partition(" ")
        request = Request(method.encode(), path.encode(), b"s", [(b"host", b"s")])
        return all(policy.judge(request).allowed for policy in self._both(client, server, port))

    def ingress(self, client: str, server: str, port: str = "80/TCP") -> PortPolicy:
        return self._one(server, client, port, Direction.INGRESS)

    def egress(self, client: str, server: str, port: str = "80/TCP") -> PortPolicy:
        return self._one(client, server, port, Direction.EGRESS)

    def _both(self, client: str, server: str, port: str) -> list[PortPolicy]:
        asked = [(client, server, Direction.EGRESS), (server, client, Direction.INGRESS)]
        return [self._one(me, peer, port, way) for me, peer, way in asked if me.partition("@")[0] in self._pods]

    def _one(self, me: str, peer: str, port: str, direction: Direction) -> PortPolicy:
        mine = self._pods[me.partition("@")[0]]
        view = self.view(mine.node)
        identity = self._prefixes[mine.node].get(self.address(peer)) or 0
        endpoint = next(one for one in view.endpoints if (one.namespace, one.name) == (mine.namespace, mine.name))
        number, _, protocol = port.partition("/")
        policy = self._policies[mine.node][endpoint.id]
        return decide.port(policy.direction(direction), identity, NUMBERS[protocol], int(number))

    def address(self, who: str) -> str:
        name, _, family = who.partition("@")
        place = 1 if family == "6" else 0
        if name in self._pods:
            return self._pods[name].addresses[place]
        nodes = {node.name: node.addresses for node in NODES}
        return nodes[name][place] if name in nodes else who

    def view(self, node: str) -> NodeView:
        return self._views[node]

    @cached_property
    def _views(self) -> dict[str, NodeView]:
        return {node.name: self._world.view(node.name) for node in NODES}

    @cached_property
    def _policies(self) -> dict[str, dict[int, EndpointPolicy]]:
        return {
            name: compile_policies(view.rules, view.endpoints, view.identities) for name, view in self._views.items()
        }

    @cached_property
    def _prefixes(self) -> dict[str, PrefixTable[int]]:
        return {name: PrefixTable(view.by_prefix) for name, view in self._views.items()}


def check(town: Town, allowed: str, denied: str) -> None:
    """Both are `CLIENT>SERVER:PORT`, separated by blanks."""
    for text, wanted in ((allowed, True), (denied, False)):
        for flow in text.split():
            ends, _, port = flow.rpartition(":")
            client, server = ends.split(">")
            assert town.allows(client, server, port) is wanted, f"{flow} is {'denied' if wanted else 'allowed'}"
