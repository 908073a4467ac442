"""Whole truth tables: nine pods to nine pods on six ports, for each form of a NetworkPolicy, against plain loops.

The forms are those of the common conformance suites: targets, rules that are absent, empty or `[{}]`, pod selectors ×
namespace selectors, blocks of pods' addresses, ports in every form, policies against each other, and successive
changes of policies, pods and namespaces. A pod calling itself is left out: no policy can stop it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from l7proxy.model.resources import Delete, Namespace, Upsert
from tests.unit.policy.town import PEOPLE, SPACES, Town, pod

Spec = dict[str, Any]
PORTS = [(number, protocol) for number in (80, 81) for protocol in ("TCP", "UDP", "SCTP")]
ADDRESSES = {who: pod(who).addresses[0] for who in PEOPLE}


# The oracle


class Oracle:
    """The current labels, and policies as (namespace, spec)."""

    def __init__(self) -> None:
        self.pods = {who: {"pod": who[2]} for who in PEOPLE}
        self.spaces = {space: {"ns": space, "kubernetes.io/metadata.name": space} for space in SPACES}
        self.policies: dict[str, tuple[str, Spec]] = {}

    def allows(self, client: str, server: str, number: int, protocol: str) -> bool:
        sides = (("egress", client, server, "to"), ("ingress", server, client, "from"))
        return all(self._side(way, me, peer, key, number, protocol) for way, me, peer, key in sides)

    def _side(self, way: str, me: str, peer: str, key: str, number: int, protocol: str) -> bool:
        isolated = False
        for space, spec in self.policies.values():
            types = spec.get("policyTypes") or (["Ingress", "Egress"] if spec.get("egress") else ["Ingress"])
            if me[0] != space or way.title() not in types or not selects(spec["podSelector"], self.pods[me]):
                continue
            isolated = True
            for item in spec.get(way) or []:
                peers, ports = item.get(key), item.get("ports")
                if peers and not any(self._peer(space, one, peer) for one in peers):
                    continue
                if not ports or any(covers(one, number, protocol) for one in ports):
                    return True
        return not isolated

    def _peer(self, space: str, peer: Mapping[str, Any], who: str) -> bool:
        if "ipBlock" in peer:
            address, block = ip_address(ADDRESSES[who]), peer["ipBlock"]
            holes = block.get("except", [])
            return address in ip_network(block["cidr"]) and not any(address in ip_network(hole) for hole in holes)
        if "namespaceSelector" in peer:
            if not selects(peer["namespaceSelector"], self.spaces[who[0]]):
                return False
        elif who[0] != space:
            return False
        return selects(peer.get("podSelector", {}), self.pods[who])


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    for key, value in selector.get("matchLabels", {}).items():
        if labels.get(key) != value:
            return False
    for term in selector.get("matchExpressions", []):
        has, listed = term["key"] in labels, labels.get(term["key"]) in term.get("values", [])
        if not {"In": listed, "NotIn": not listed, "Exists": has, "DoesNotExist": not has}[term["operator"]]:
            return False
    return True


def covers(port: Mapping[str, Any], number: int, wanted: str) -> bool:
    protocol, value = port.get("protocol", "TCP"), port.get("port")
    if protocol != wanted:
        return False
    if isinstance(value, str):
        return value == f"serve-{number}-{wanted.lower()}"
    return value is None or bool(value <= number <= port.get("endPort", value))


def document(space: str, name: str, spec: Spec) -> dict[str, Any]:
    metadata = {"name": name, "namespace": space}
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec}


def compare(town: Town, oracle: Oracle) -> None:
    assert set(town.states.values()) <= {"accepted"}, town.states
    wrong = [
        f"{client} → {server} {number}/{protocol}: {'denied' if wanted else 'allowed'}"
        for client in PEOPLE
        for server in PEOPLE
        if client != server
        for number, protocol in PORTS
        if town.allows(client, server, f"{number}/{protocol}")
        is not (wanted := oracle.allows(client, server, number, protocol))
    ]
    assert not wrong, wrong[:10]


# The forms


A: Spec = {"matchLabels": {"pod": "a"}}
OPEN_80 = [{"port": 80}]


def expression(key: str, operator: str, *values: str) -> Spec:
    return {"matchExpressions": [{"key": key, "operator": operator} | ({"values": list(values)} if values else {})]}


POD_SELECTORS: dict[str, Spec | None] = {
    "nil": None,
    "empty": {},
    "labels": {"matchLabels": {"pod": "b"}},
    "in": expression("pod", "In", "b", "c"),
    "not in": expression("pod", "NotIn", "b"),
    "exists": expression("pod", "Exists"),
    "does not exist": expression("pod", "DoesNotExist"),
}
SPACE_SELECTORS: dict[str, Spec | None] = {
    "nil": None,
    "empty": {},
    "labels": {"matchLabels": {"ns": "y"}},
    "not in": expression("ns", "NotIn", "x", "y"),
    "by name": {"matchLabels": {"kubernetes.io/metadata.name": "z"}},
}
BLOCKS: list[Spec] = [
    {"cidr": "0.0.0.0/0"},
    {"cidr": "10.0.2.0/24"},
    {"cidr": "10.0.1.11/32"},
    {"cidr": "10.0.0.0/8", "except": ["10.0.1.0/24"]},
    {"cidr": "10.0.1.0/24", "except": ["10.0.1.21/32", "10.0.1.22/32"]},
]
PORT_LISTS: dict[str, list[Spec]] = {
    "none": [],
    "{}": [{}],
    "protocol": [{"protocol": "UDP"}],
    "number": OPEN_80,
    "number and protocol": [{"port": 81, "protocol": "SCTP"}],
    "name": [{"port": "serve-81-tcp"}],
    "name and protocol": [{"port": "serve-80-udp", "protocol": "UDP"}],
    "range": [{"port": 79, "endPort": 80}],
    "range of both": [{"port": 80, "endPort": 81, "protocol": "UDP"}],
    "{} and a number": [{}, {"port": 80, "protocol": "UDP"}],
    "name and number": [{"port": "serve-80-tcp"}, {"port": 81, "protocol": "UDP"}],
}
RULES: dict[str, list[Spec] | None] = {"absent": None, "empty": [], "all": [{}]}


def peers() -> Iterator[tuple[str, list[Spec]]]:
    yield "zero", []
    for pods, by_pod in POD_SELECTORS.items():
        for spaces, by_space in SPACE_SELECTORS.items():
            peer = {
                name: one for name, one in (("podSelector", by_pod), ("namespaceSelector", by_space)) if one is not None
            }
            if peer:
                yield f"pods {pods}, namespaces {spaces}", [peer]
    for block in BLOCKS:
        yield f"block {block}", [{"ipBlock": block}]
    yield "two", [{"podSelector": {"matchLabels": {"pod": "b"}}}, {"ipBlock": {"cidr": "10.0.2.33/32"}}]


def ways() -> Iterator[tuple[str, list[tuple[str, Spec]]]]:
    """Name, and policies as (namespace, spec)."""
    for way, key in (("ingress", "from"), ("egress", "to")):
        types = {"policyTypes": [way.title()]}
        for target, selector in (("a", A), ("everyone", {}), ("not a", expression("pod", "NotIn", "a"))):
            for rules, items in RULES.items():
                spec = {"podSelector": selector, **types} | ({way: items} if items is not None else {})
                yield f"{way}, target {target}, rules {rules}", [("x", spec)]
        for name, some in peers():
            yield f"{way}, peers {name}", [("y", {"podSelector": A, way: [{key: some, "ports": OPEN_80}], **types})]
        for name, ports in PORT_LISTS.items():
            item: Spec = {key: [{"namespaceSelector": {"matchLabels": {"ns": "z"}}}], "ports": ports}
            yield f"{way}, ports {name}", [("x", {"podSelector": {}, way: [item], **types})]
        allow: Spec = {"podSelector": A, way: [{key: [{"podSelector": {}}]}], **types}
        deny: Spec = {"podSelector": {}, way: [], **types}
        yield f"{way}, allow and deny-all", [("x", allow), ("x", deny)]
        yield f"{way}, default policies in several namespaces", [(space, deny) for space in SPACES] + [("y", allow)]
    both = {"podSelector": A, "ingress": [{}], "egress": [{"ports": OPEN_80}]}
    yield "both directions", [("x", both), ("z", {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]})]


WAYS = list(ways())


@pytest.mark.parametrize("policies", [way[1] for way in WAYS], ids=[way[0] for way in WAYS])
def test_a_truth_table(policies: Sequence[tuple[str, Spec]]) -> None:
    oracle = Oracle()
    oracle.policies = {f"p{place}": policy for place, policy in enumerate(policies)}
    compare(Town(*(document(space, name, spec) for name, (space, spec) in oracle.policies.items())), oracle)


def test_changes_one_after_the_other() -> None:
    town, oracle = Town(), Oracle()

    def policy(name: str, space: str, spec: Spec | None) -> None:
        found = Town.document(str(document(space, name, spec or {})))
        town.change(Upsert(found) if spec is not None else Delete(found.key))
        if spec is None:
            del oracle.policies[name]
        else:
            oracle.policies[name] = (space, spec)

    def relabel(who: str, **labels: str) -> None:
        oracle.pods[who] = {"pod": who[2], **labels}
        town.change(Upsert(pod(who, **labels)))

    def tint(space: str, colour: str) -> None:
        oracle.spaces[space]["tint"] = colour
        town.change(Upsert(Namespace(space, {"ns": space, "tint": colour})))

    moody: Spec = {"from": [{"podSelector": {"matchLabels": {"mood": "good"}}}]}
    tinted: Spec = {"from": [{"namespaceSelector": {"matchLabels": {"tint": "red"}}}]}
    steps: tuple[Callable[[], None], ...] = (
        lambda: policy("one", "x", {"podSelector": A, "ingress": [moody]}),
        lambda: relabel("x/b", mood="good"),
        lambda: policy("two", "x", {"podSelector": {}, "policyTypes": ["Ingress"]}),
        lambda: relabel("x/b", mood="bad"),
        lambda: policy("one", "x", {"podSelector": A, "ingress": [tinted]}),
        lambda: tint("z", "red"),
        lambda: policy("two", "x", None),
        lambda: policy("three", "z", {"podSelector": {}, "egress": [{"to": [{"ipBlock": {"cidr": "10.0.1.11/32"}}]}]}),
        lambda: policy("one", "x", None),
        lambda: policy("three", "z", None),
    )
    for step in steps:
        step()
        compare(town, oracle)
