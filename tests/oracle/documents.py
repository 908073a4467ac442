"""Random policy documents of every language, as people write them. A Calico selector comes with its tree."""

from __future__ import annotations

from random import Random
from typing import Any

from tests.oracle import selectors
from tests.oracle.cast import CIDRS, SPACES
from tests.oracle.selectors import Tree

PATHS = ("/a", "/a/.*", "/b", "/[ab]", "/.*")
METHODS = ("GET", "POST", "GET|HEAD")
ENTITIES = ("all", "world", "cluster", "host", "remote-node")
TREES: dict[str, Tree] = {}
"""Text of a Calico selector → what it was written from."""


def some(dice: Random, count: int, kinds: frozenset[str] = frozenset()) -> list[dict[str, Any]]:
    """Policies, their names unique; at most one is the baseline."""
    makers = [
        make
        for make in (cilium, cilium, cilium, kubernetes, calico, calico, admin, baseline)
        if not kinds or make.__name__ in kinds
    ]
    found = [dice.choice(makers)(dice, f"p{number}") for number in range(count)]
    bases = [document for document in found if document["kind"] == "BaselineAdminNetworkPolicy"]
    return [document for document in found if document not in bases[1:]]


def _document(version: str, kind: str, name: str, space: str, spec: dict[str, Any]) -> dict[str, Any]:
    metadata = {"name": name} | ({"namespace": space} if space else {})
    return {"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec}


def _some(dice: Random, make: Any, low: int, high: int) -> list[Any]:
    return [make(dice) for _ in range(dice.randint(low, high))]


# Cilium


def cilium(dice: Random, name: str) -> dict[str, Any]:
    wide = dice.random() < 0.25
    kind = "CiliumClusterwideNetworkPolicy" if wide else "CiliumNetworkPolicy"
    spec: dict[str, Any] = {"endpointSelector": selectors.kubernetes(dice)}
    for way in ("ingress", "egress"):
        if dice.random() < 0.6:
            spec[way] = _some(dice, lambda dice, way=way: _cilium_item(dice, way, allow=True), 1, 2)
        if dice.random() < 0.2:
            spec[f"{way}Deny"] = _some(dice, lambda dice, way=way: _cilium_item(dice, way, allow=False), 1, 2)
    if len(spec) == 1:
        spec["ingress"] = [{}]
    if dice.random() < 0.2:
        spec["enableDefaultDeny"] = {dice.choice(("ingress", "egress")): False}
    return _document("cilium.io/v2", kind, name, "" if wide else dice.choice(tuple(SPACES)), spec)


def _cilium_item(dice: Random, way: str, *, allow: bool) -> dict[str, Any]:
    side = "from" if way == "ingress" else "to"
    item: dict[str, Any] = {}
    match dice.randint(0, 7):
        case 0 | 1 | 2:
            item[f"{side}Endpoints"] = _some(dice, _cilium_peer, 0 if dice.random() < 0.1 else 1, 2)
        case 3:
            item[f"{side}Entities"] = dice.sample(ENTITIES, dice.randint(1, 2))
        case 4:
            item[f"{side}CIDR"] = [dice.choice(CIDRS)]
        case 5:
            item[f"{side}CIDRSet"] = [{"cidr": "0.0.0.0/0", "except": [dice.choice(CIDRS[1:])]}]
    if dice.random() < 0.7 or not item:
        item["toPorts"] = _some(dice, lambda dice: _cilium_ports(dice, allow=allow), 1, 2)
    return item


def _cilium_peer(dice: Random) -> dict[str, Any]:
    peer = selectors.kubernetes(dice)
    if dice.random() < 0.3:
        peer.setdefault("matchLabels", {})["k8s:io.kubernetes.pod.namespace"] = dice.choice(tuple(SPACES))
    return peer


def _cilium_ports(dice: Random, *, allow: bool) -> dict[str, Any]:
    if allow and dice.random() < 0.4:
        rules = {"http": _some(dice, _http, 1, 2)}
        return {"ports": [{"port": dice.choice(("80", "http", "8080")), "protocol": "TCP"}], "rules": rules}
    ports = _some(dice, _cilium_port, 0 if dice.random() < 0.1 else 1, 2)
    return {"ports": ports}


def _cilium_port(dice: Random) -> dict[str, Any]:
    port: dict[str, Any] = {"port": dice.choice(("80", "8080", "53", "0", "http", "alt"))}
    if dice.random() < 0.7:
        port["protocol"] = dice.choice(("TCP", "UDP", "ANY"))
    if port["port"] == "80" and dice.random() < 0.2:
        port["endPort"] = dice.choice((79, 80, 500, 9000))
    return port


def _http(dice: Random) -> dict[str, Any]:
    rule: dict[str, Any] = {}
    if dice.random() < 0.7:
        rule["path"] = dice.choice(PATHS)
    if dice.random() < 0.6:
        rule["method"] = dice.choice(METHODS)
    if dice.random() < 0.2:
        rule["headers"] = ["X-Key yes"]
    return rule


# Kubernetes


def kubernetes(dice: Random, name: str) -> dict[str, Any]:
    spec: dict[str, Any] = {"podSelector": selectors.kubernetes(dice)}
    for way in ("ingress", "egress"):
        if dice.random() < 0.6:
            spec[way] = _some(dice, lambda dice, way=way: _kubernetes_item(dice, way), 0, 2)
    if dice.random() < 0.5:
        spec["policyTypes"] = dice.choice((["Ingress"], ["Egress"], ["Ingress", "Egress"]))
    return _document("networking.k8s.io/v1", "NetworkPolicy", name, dice.choice(tuple(SPACES)), spec)


def _kubernetes_item(dice: Random, way: str) -> dict[str, Any]:
    item: dict[str, Any] = {}
    if dice.random() < 0.8:
        item["from" if way == "ingress" else "to"] = _some(dice, _kubernetes_peer, 0, 2)
    if dice.random() < 0.7:
        item["ports"] = _some(dice, _kubernetes_port, 0, 2)
    return item


def _kubernetes_peer(dice: Random) -> dict[str, Any]:
    if dice.random() < 0.3:
        if dice.random() < 0.4:
            return {"ipBlock": {"cidr": "10.0.0.0/8", "except": [dice.choice(("10.0.1.0/24", "10.0.2.11/32"))]}}
        return {"ipBlock": {"cidr": dice.choice(CIDRS)}}
    peer: dict[str, Any] = {}
    if dice.random() < 0.7:
        peer["podSelector"] = selectors.kubernetes(dice)
    if dice.random() < 0.4 or not peer:
        peer["namespaceSelector"] = dice.choice(({}, {"matchLabels": {"team": dice.choice(tuple(SPACES))}}))
    return peer


def _kubernetes_port(dice: Random) -> dict[str, Any]:
    port: dict[str, Any] = {}
    if dice.random() < 0.7:
        port["protocol"] = dice.choice(("TCP", "UDP", "SCTP"))
    if dice.random() < 0.8:
        port["port"] = dice.choice((80, 8080, 53, "http", "alt"))
        if port["port"] == 80 and dice.random() < 0.3:
            port["endPort"] = dice.choice((80, 500, 9000))
    return port


# Calico


def calico(dice: Random, name: str) -> dict[str, Any]:
    wide = dice.random() < 0.4
    spec: dict[str, Any] = {"selector": _calico_selector(dice)}
    if dice.random() < 0.7:
        spec["order"] = dice.choice((5, 10, 999, 1001, 2000))
    for way in ("ingress", "egress"):
        if dice.random() < 0.6:
            spec[way] = _some(dice, lambda dice, way=way: _calico_rule(dice, way), 0, 3)
    if dice.random() < 0.5:
        spec["types"] = dice.choice((["Ingress"], ["Egress"], ["Ingress", "Egress"]))
        for way, kind in (("ingress", "Ingress"), ("egress", "Egress")):
            if kind not in spec["types"]:
                spec.pop(way, None)
    kind = "GlobalNetworkPolicy" if wide else "NetworkPolicy"
    return _document("projectcalico.org/v3", kind, name, "" if wide else dice.choice(tuple(SPACES)), spec)


def _calico_selector(dice: Random) -> str:
    tree = selectors.calico(dice)
    written = selectors.text(tree)
    TREES[written] = tree
    return written


def _space_selector(dice: Random) -> str:
    tree = selectors.calico(dice, ("team",), tuple(SPACES), 1)
    written = selectors.text(tree)
    TREES[written] = tree
    return written


def _calico_rule(dice: Random, way: str) -> dict[str, Any]:
    rule: dict[str, Any] = {"action": dice.choice(("Allow", "Allow", "Deny", "Pass", "Log"))}
    peer: dict[str, Any] = {}
    if dice.random() < 0.6:
        peer["selector"] = _calico_selector(dice)
    if dice.random() < 0.2:
        peer["namespaceSelector"] = _space_selector(dice)
    if dice.random() < 0.2:
        peer["nets"] = [dice.choice(CIDRS)]
    if dice.random() < 0.2:
        peer["notNets"] = [dice.choice(CIDRS[1:])]
    ports: dict[str, Any] = {}
    if dice.random() < 0.6:
        rule["protocol"] = dice.choice(("TCP", "UDP"))
        if dice.random() < 0.7:
            ports["ports"] = dice.choice(([80], [8080, 53], ["1:100"], ["http"]))
        elif dice.random() < 0.4:
            ports["notPorts"] = dice.choice(([80], ["1:100"]))
    if way == "ingress" and rule["action"] == "Allow" and rule.get("protocol") == "TCP" and dice.random() < 0.4:
        exact, prefix = {"paths": [{"exact": "/a"}]}, {"methods": ["GET", "POST"], "paths": [{"prefix": "/a"}]}
        rule["http"] = dice.choice(({"methods": ["GET"]}, exact, prefix))
    source, destination = (peer, ports) if way == "ingress" else ({}, peer | ports)
    if source:
        rule["source"] = source
    if destination:
        rule["destination"] = destination
    return rule


# Admin and baseline


def admin(dice: Random, name: str) -> dict[str, Any]:
    spec = _admin_spec(dice, ("Allow", "Deny", "Pass"))
    spec["priority"] = int(name[1:])  # equal priorities have no defined order
    return _document("policy.networking.k8s.io/v1alpha1", "AdminNetworkPolicy", name, "", spec)


def baseline(dice: Random, name: str) -> dict[str, Any]:
    spec = _admin_spec(dice, ("Allow", "Deny"))
    return _document("policy.networking.k8s.io/v1alpha1", "BaselineAdminNetworkPolicy", "default", "", spec)


def _admin_spec(dice: Random, actions: tuple[str, ...]) -> dict[str, Any]:
    spec: dict[str, Any] = {"subject": _admin_peer(dice)}
    for way in ("ingress", "egress"):
        if dice.random() < 0.6:
            spec[way] = _some(dice, lambda dice, way=way: _admin_rule(dice, way, actions), 1, 3)
    return spec


def _admin_rule(dice: Random, way: str, actions: tuple[str, ...]) -> dict[str, Any]:
    def peer(dice: Random) -> dict[str, Any]:
        if way == "egress" and dice.random() < 0.3:
            return {"networks": [dice.choice(CIDRS)]}
        return _admin_peer(dice)

    rule: dict[str, Any] = {
        "name": "r", "action": dice.choice(actions), ("from" if way == "ingress" else "to"): _some(dice, peer, 1, 2)
    }  # fmt: skip
    if dice.random() < 0.6:
        rule["ports"] = _some(dice, _admin_port, 1, 2)
    return rule


def _admin_peer(dice: Random) -> dict[str, Any]:
    space = dice.choice(({}, {"matchLabels": {"team": dice.choice(tuple(SPACES))}}))
    if dice.random() < 0.4:
        return {"namespaces": space}
    return {"pods": {"namespaceSelector": space, "podSelector": selectors.kubernetes(dice)}}


def _admin_port(dice: Random) -> dict[str, Any]:
    if dice.random() < 0.3:
        return {"portRange": {"protocol": "TCP", "start": 1, "end": dice.choice((80, 9000))}}
    return {"portNumber": {"protocol": dice.choice(("TCP", "UDP")), "port": dice.choice((80, 8080, 53))}}
