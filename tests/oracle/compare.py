"""One random policy set through both: the product (documents → cluster state → compile → decide) and the oracle."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from random import Random
from typing import Any

from l7proxy.cluster.state import ClusterState
from l7proxy.model import resources
from l7proxy.model.http import Request
from l7proxy.model.net import PrefixTable
from l7proxy.model.resources import Upsert
from l7proxy.model.verdict import Direction, Verdict
from l7proxy.policy import decide
from l7proxy.policy.compile import compile_policies
from l7proxy.policy.decide import PortPolicy
from l7proxy.policy.lang.options import Options
from l7proxy.sources import objects
from l7proxy.sources.source import SYNCED
from tests.oracle import documents as writing
from tests.oracle.cast import (
    ACCOUNTS,
    API_SERVER,
    EVERYBODY,
    GROUPS,
    LOCAL,
    NODES,
    PODS,
    PORTS,
    SERVICES,
    SETS,
    SPACES,
    TIERS,
    Who,
)
from tests.oracle.evaluate import Ask, Flow, judge

NUMBERS = {"TCP": 6, "UDP": 17, "SCTP": 132, "ICMP": 1, "GRE": 47}
ASKS = (
    Ask("GET", "/a"), Ask("GET", "/a/x"), Ask("POST", "/a"), Ask("GET", "/b"), Ask("HEAD", "/ab"),
    Ask("POST", "/a?x=1", (("x-key", "yes"),)), Ask("GET", "/c", (("x-key", "no"),)), Ask("GET", "/a", host="host"),
    Ask("GET", "/b/a", host="other.example"), Ask("GET", "/ab"),
)  # fmt: skip


@dataclass(frozen=True)
class Difference:
    """The two answers, and everything needed to reproduce them."""

    seed: int
    flow: Flow
    ask: Ask | None
    oracle: str
    product: str
    documents: tuple[dict[str, Any], ...]

    def __str__(self) -> str:
        flow = self.flow
        asked = f" {self.ask.method} {self.ask.host}{self.ask.path}" if self.ask else ""
        written = "\n".join(json.dumps(document) for document in self.documents)
        return (
            f"seed {self.seed}: {flow.way} of {flow.me.name}, peer {flow.peer.name}, {flow.port}/{flow.protocol}"
            f"{asked}: oracle {self.oracle}, product {self.product}\n{written}"
        )


def world(documents: list[dict[str, Any]]) -> ClusterState:
    """The oracle's cluster as the agent knows it."""
    options = Options(node_selectors=True)
    made = ClusterState(options=options)
    everything: list[resources.Resource] = [resources.Namespace(name, labels) for name, labels in SPACES.items()]
    everything += [resources.Node(one.name, (one.address,), (f"10.0.{one.name[1]}.0/24",), one.labels) for one in NODES]
    everything += [_pod(one) for one in PODS]
    everything += _named()
    for document in documents:
        everything.append(objects.policy(document, options=options))
    made.apply([*(Upsert(resource) for resource in everything), *SYNCED])
    return made


def _named() -> list[resources.Resource]:
    """All objects that policies reference by name or labels."""
    found: list[resources.Resource] = [
        resources.ServiceAccount(space, name, labels) for (space, name), labels in ACCOUNTS.items()
    ]
    found += [resources.PolicyTier(name, order, passes) for name, (order, passes) in TIERS.items()]
    found += [resources.CidrGroup(one.name, one.prefixes, one.labels) for one in GROUPS]
    found += [resources.NetworkSet(one.space, one.name, one.prefixes, one.labels) for one in SETS]
    found += [resources.Service(one.space, one.name, selector=one.selector, labels=one.labels) for one in SERVICES]
    for one in SERVICES:
        for number, (addresses, ports) in enumerate(one.parts):
            known = tuple(resources.SlicePort("", port, NUMBERS[protocol]) for protocol, port in ports)
            found.append(resources.EndpointSlice(one.space, f"{one.name}-{number}", one.name, addresses, known))
    server = next(one.address for one in NODES if one.name == API_SERVER)
    found.append(
        resources.EndpointSlice("default", "kubernetes", "kubernetes", (server,), (resources.SlicePort("", 443, 6),))
    )
    return found


def _pod(who: Who) -> resources.Pod:
    ports = frozenset((name, NUMBERS[protocol], number) for name, protocol, number in who.ports)
    return resources.Pod(who.space, who.name, who.node, (who.address,), who.labels, ports, who.account, phase="Running")


class Product:
    """The product's state on node n1."""

    def __init__(self, documents: list[dict[str, Any]]) -> None:
        view = world(documents).view("n1")
        unread = [(one.name, one.reason) for one in view.policies if one.state.value != "accepted"]
        assert not unread, f"the generator writes what is valid: {unread}"
        policies = compile_policies(view.rules, view.endpoints, view.identities)
        self.policies = {one.name: policies[one.id] for one in view.endpoints}
        self.identities = PrefixTable(view.by_prefix)

    def ask(self, flow: Flow) -> PortPolicy:
        direction = Direction.INGRESS if flow.way == "ingress" else Direction.EGRESS
        identity = self.identities.get(flow.peer.address) or 0
        table = self.policies[flow.me.name].direction(direction)
        return decide.port(table, identity, NUMBERS[flow.protocol], flow.port)


def word(answer: PortPolicy) -> str:
    return "deny" if answer.l4.verdict is Verdict.DROPPED else "http" if answer.redirects else "allow"


def _flow(dice: Random) -> Flow:
    me = dice.choice(LOCAL)
    peer = dice.choice([one for one in EVERYBODY if one is not me])
    protocol, port = dice.choice(PORTS)
    return Flow(me, peer, dice.choice(("ingress", "egress")), protocol, port)


def _read(documents: list[dict[str, Any]]) -> list[Flow]:
    """The flows whose requests are evaluated: by chance alone they are one in two hundred."""
    ports = sorted({port for protocol, port in PORTS if protocol == "TCP"})
    every = product(LOCAL, EVERYBODY, ("ingress", "egress"), ports)
    flows = [Flow(me, peer, way, "TCP", port) for me, peer, way, port in every if me is not peer]
    return [flow for flow in flows if judge(documents, flow, None) == "http"]


def differences(seed: int, pairs: int, kinds: frozenset[str] = frozenset()) -> Iterator[Difference | None]:
    """`pairs` queries about the policy set of this seed: None where both agree.

    Every other query is about a flow whose requests are evaluated, if there is one. `kinds`: only policies of these
    (names of the makers in `documents`); empty: of all.
    """
    dice = writing.Names(seed)
    documents = writing.some(dice, dice.randint(1, 5), kinds)
    real, read = Product(documents), _read(documents)
    for _ in range(pairs):
        flow = dice.choice(read) if read and dice.random() < 0.5 else _flow(dice)
        answer = real.ask(flow)
        ask = dice.choice(ASKS) if flow.protocol == "TCP" and dice.random() < 0.6 else None
        oracle = judge(documents, flow, ask)
        found = word(answer)
        if ask is not None and found == "http":
            request = Request(ask.method.encode(), ask.path.encode(), ask.host.encode(), _headers(ask))
            found = "allow" if answer.judge(request).allowed else "deny"
        yield None if oracle == found else Difference(seed, flow, ask, oracle, found, tuple(documents))


def _headers(ask: Ask) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in ask.headers]
