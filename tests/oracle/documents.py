"""Random policy documents of every language, as people write them. A Calico selector comes with its parse tree.

With `Names` they also use references into the cluster: Services, groups, sets, nodes, accounts, tiers.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from tests.oracle import selectors
from tests.oracle.cast import CIDRS, GROUPS, SERVICES, SPACES, TIERS
from tests.oracle.selectors import Tree

PATHS = ("/a", "/a/.*", "/b", "/[ab]", "/.*")
METHODS = ("GET", "POST", "GET|HEAD")
HOSTS = ("h", "h.*", "[^h]+")
ENTITIES = ("all", "world", "cluster", "host", "remote-node", "unmanaged")
CALICOS_OWN = (
    (("pcns.team", "projectcalico.org/namespace"), tuple(SPACES)),
    (("pcsa.role",), ("a", "b")),
    (("projectcalico.org/serviceaccount",), ("ci", "default")),
)
"""Labels that Calico adds to a pod's own, and their values."""
TREES: dict[str, Tree] = {}
"""Text of a Calico selector → the tree that it was written from."""


class Names(Random):
    """Random choices that use the whole oracle cluster; with a plain Random, policies use pods and nodes only."""


def _named(dice: Random, chance: float) -> bool:
    return isinstance(dice, Names) and dice.random() < chance


def some(dice: Random, count: int, kinds: frozenset[str] = frozenset()) -> list[dict[str, Any]]:
    """Policies with unique names; at most one is the baseline."""
    makers = [
        make
        for make in (cilium, cilium, cilium, kubernetes, calico, calico, admin, baseline, cluster)
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
    if _named(dice, 0.3):
        _cilium_by_name(dice, side, item)
        if dice.random() < 0.5:
            item["toPorts"] = _some(dice, lambda dice: _cilium_ports(dice, allow=allow), 1, 2)
        return item
    if dice.random() < 0.1:
        item["icmps"] = _some(dice, _cilium_icmp, 1, 2)
        if dice.random() < 0.5:
            item[f"{side}Endpoints"] = [_cilium_peer(dice)]
        return item
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


def _cilium_by_name(dice: Random, side: str, item: dict[str, Any]) -> None:
    match dice.randint(0, 4):
        case 0:
            item[f"{side}Nodes"] = [_zone(dice)]
        case 1:
            item[f"{side}Entities"] = ["kube-apiserver"]
        case 2 if side == "to":
            item["toServices"] = _some(dice, _cilium_service, 1, 2)
        case _:
            group: dict[str, Any] = {"cidrGroupRef": dice.choice(GROUPS).name}
            if dice.random() < 0.4:
                group = {"cidrGroupSelector": {"matchLabels": {"app": dice.choice("abc")}}}
            if dice.random() < 0.3:
                group["except"] = [dice.choice(CIDRS[1:])]
            item[f"{side}CIDRSet"] = [group]


def _zone(dice: Random) -> dict[str, Any]:
    operator = dice.choice(("In", "NotIn"))
    term = {"key": "zone", "operator": operator, "values": [dice.choice("ab")]}
    return dice.choice(({"matchLabels": {"zone": dice.choice("ab")}}, {}, {"matchExpressions": [term]}))


def _cilium_service(dice: Random) -> dict[str, Any]:
    space = {"namespace": dice.choice(tuple(SPACES))} if dice.random() < 0.5 else {}
    if dice.random() < 0.5:
        return {"k8sService": {"serviceName": dice.choice(SERVICES).name, **space}}
    return {"k8sServiceSelector": {"selector": {"matchLabels": {"app": dice.choice("abc")}}, **space}}


def _cilium_icmp(dice: Random) -> dict[str, Any]:
    kinds = dice.choice(({"type": 8}, {"type": "EchoRequest", "family": "IPv4"}, {"type": 128, "family": "IPv6"},
                         {"type": 13}, {"type": "0"}))  # fmt: skip
    return {"fields": [kinds]}


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
    if dice.random() < 0.15:
        rule["host"] = dice.choice(HOSTS)
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
    if _named(dice, 0.4):
        spec["tier"] = dice.choice(tuple(TIERS))
    if _named(dice, 0.15):
        spec["serviceAccountSelector"] = _written(selectors.calico(dice, ("role",), ("a", "b"), 1))
    if wide and dice.random() < 0.2:
        spec["namespaceSelector"] = _space_selector(dice)
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
    if _named(dice, 0.2):
        keys, values = dice.choice(CALICOS_OWN)
        tree = dice.choice(("&&", "||")), tree, selectors.calico(dice, keys, values, 1)
    return _written(tree)


def _space_selector(dice: Random) -> str:
    return _written(selectors.calico(dice, ("team", "projectcalico.org/name"), tuple(SPACES), 1))


def _written(tree: Tree) -> str:
    text = selectors.text(tree)
    TREES[text] = tree
    return text


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
    if dice.random() < 0.15:
        peer["notSelector"] = _calico_selector(dice)
    if _named(dice, 0.15):
        names = {"names": dice.sample(("ci", "default"), 1)}
        roles = {"selector": _written(selectors.calico(dice, ("role",), ("a", "b"), 1))}
        peer["serviceAccounts"] = dice.choice((names, roles, names | roles))
    ports: dict[str, Any] = {}
    if dice.random() < 0.6:
        rule["protocol"] = dice.choice(("TCP", "TCP", "UDP", "SCTP"))
        if dice.random() < 0.7:
            ports["ports"] = dice.choice(([80], [8080, 53], ["1:100"], ["http"], ["alt", 443]))
        elif dice.random() < 0.4:
            ports["notPorts"] = dice.choice(([80], ["1:100"]))
    elif dice.random() < 0.5:
        more = dice.choice(({"protocol": "ICMP"}, {"protocol": "ICMP", "icmp": {"type": 8}}, {"protocol": 47},
                            {"protocol": "ICMP", "notICMP": {"type": 13, "code": 1}}, {"notProtocol": "TCP"},
                            {"ipVersion": 4}))  # fmt: skip
        rule |= more
        if more.keys() == {"ipVersion"} and dice.random() < 0.4:
            ports["ports"] = ["http"]
    may_read = way == "ingress" and rule["action"] == "Allow" and rule.get("protocol", "TCP") == "TCP"
    if may_read and not rule.keys() & {"notProtocol", "ipVersion"} and dice.random() < 0.5:
        exact, prefix = {"paths": [{"exact": "/a"}]}, {"methods": ["GET", "POST"], "paths": [{"prefix": "/a"}]}
        rule["http"] = dice.choice(({"methods": ["GET"]}, exact, prefix))
    if _named(dice, 0.1) and "ipVersion" not in rule:
        service = dice.choice(SERVICES)
        peer = {"services": {"name": service.name, "namespace": service.space}}
        if way == "egress":
            ports = {}
    own: dict[str, Any] = {}
    if dice.random() < 0.15:
        own[dice.choice(("selector", "notSelector"))] = _calico_selector(dice)
    source, destination = (peer, ports | own) if way == "ingress" else (own, peer | ports)
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


def cluster(dice: Random, name: str) -> dict[str, Any]:
    """ClusterNetworkPolicy, the successor of AdminNetworkPolicy."""
    spec = _admin_spec(dice, ("Accept", "Deny", "Pass"), _later_port)
    spec |= {"priority": int(name[1:]), "tier": dice.choice(("Admin", "Admin", "Baseline"))}
    return _document("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy", name, "", spec)


def _later_port(dice: Random) -> dict[str, Any]:
    port = dice.choice(({"number": 80}, {"number": 53}, {"range": {"start": 1, "end": dice.choice((80, 9000))}}))
    one = {dice.choice(("tcp", "udp", "sctp")): dice.choice(({"destinationPort": port}, {}))}
    return dice.choice((one, one, {"destinationNamedPort": dice.choice(("http", "alt"))}))


def _admin_spec(
    dice: Random, actions: tuple[str, ...], port: Callable[[Random], dict[str, Any]] | None = None
) -> dict[str, Any]:
    spec: dict[str, Any] = {"subject": _admin_peer(dice)}
    for way in ("ingress", "egress"):
        if dice.random() < 0.6:
            spec[way] = _some(dice, lambda dice, way=way: _admin_rule(dice, way, actions, port), 1, 3)
    return spec


def _admin_rule(
    dice: Random, way: str, actions: tuple[str, ...], port: Callable[[Random], dict[str, Any]] | None
) -> dict[str, Any]:
    def peer(dice: Random) -> dict[str, Any]:
        if way == "egress" and dice.random() < 0.3:
            return {"networks": [dice.choice(CIDRS)]}
        if way == "egress" and _named(dice, 0.2):
            return {"nodes": _zone(dice)}
        return _admin_peer(dice)

    rule: dict[str, Any] = {
        "name": "r", "action": dice.choice(actions), ("from" if way == "ingress" else "to"): _some(dice, peer, 1, 2)
    }  # fmt: skip
    if dice.random() < 0.6:
        rule["protocols" if port else "ports"] = _some(dice, port or _admin_port, 1, 2)
    return rule


def _admin_peer(dice: Random) -> dict[str, Any]:
    space = dice.choice(({}, {"matchLabels": {"team": dice.choice(tuple(SPACES))}}))
    if dice.random() < 0.4:
        return {"namespaces": space}
    return {"pods": {"namespaceSelector": space, "podSelector": selectors.kubernetes(dice)}}


def _admin_port(dice: Random) -> dict[str, Any]:
    if dice.random() < 0.2:
        return {"namedPort": dice.choice(("http", "alt"))}
    if dice.random() < 0.3:
        return {"portRange": {"protocol": "TCP", "start": 1, "end": dice.choice((80, 9000))}}
    return {"portNumber": {"protocol": dice.choice(("TCP", "UDP")), "port": dice.choice((80, 8080, 53))}}
