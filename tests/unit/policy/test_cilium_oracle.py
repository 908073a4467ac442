"""Random Cilium policies over the town, against an evaluator that reads them in the slow, obvious way.

It has its own table of identities and shares no code with the product.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from l7proxy.policy.lang import Options
from l7proxy.policy.rules import Reach

if TYPE_CHECKING:
    from tests.unit.policy.conftest import Bench

SETS = 40


@dataclass(frozen=True)
class Who:
    name: str
    address: str
    kind: str
    space: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    apiserver: bool = False


TOWN = (
    Who("n1", "192.168.0.1", "host", labels={"zone": "east"}),
    Who("n2", "192.168.0.2", "node", labels={"zone": "west"}),
    Who("n3", "192.168.0.3", "node", labels={"zone": "east"}, apiserver=True),
    Who("a", "10.1.0.2", "pod", "default", {"app": "a"}),
    Who("b", "10.2.0.2", "pod", "default", {"app": "b", "tier": "back"}),
    Who("other/a", "10.3.0.2", "pod", "other", {"app": "a"}),
    Who("outside", "203.0.113.7", "world"),
    Who("apiserver", "198.51.100.9", "world", apiserver=True),
    Who("192.0.2.50", "192.0.2.50", "world"),
    Who("10.2.0.99", "10.2.0.99", "unmanaged"),
)
SERVICES: tuple[tuple[str, str, str, dict[str, str], tuple[str, ...]], ...] = (
    ("default", "back", "inside", {"app": "b"}, ()),
    ("default", "front", "inside", {"app": "a"}, ()),
    ("other", "front", "far", {"app": "a"}, ()),
    ("default", "outside", "external", {}, ("203.0.113.7", "10.1.0.2")),
)
GROUPS = {
    "partners": ("some", ("203.0.113.0/25", "198.51.100.0/24")),
    "office": ("full", ("192.0.2.0/24", "10.1.0.0/16")),
}
FLOWS = ("80/TCP", "443/TCP", "53/UDP", "80/SCTP", "8.0/ICMP", "13.0/ICMP", "128.0/ICMPV6")
ICMP = {"8.0/ICMP": ("IPv4", 8), "13.0/ICMP": ("IPv4", 13), "128.0/ICMPV6": ("IPv6", 128)}


# --- writing ---------------------------------------------------------------------------------------------------------


def policy(dice: Random) -> dict[str, Any]:
    spec: dict[str, Any] = {}
    for name in ("ingress", "egress", "ingressDeny", "egressDeny"):
        if dice.random() < (0.3 if "Deny" in name else 0.6):
            spec[name] = [entry(dice, name.startswith("ingress")) for _ in range(dice.randint(1, 3))]
    if not spec:
        spec["ingress"] = [{}]
    if dice.random() < 0.3:
        spec["enableDefaultDeny"] = {dice.choice(("ingress", "egress")): dice.random() < 0.2}
    return spec


def entry(dice: Random, ingress: bool) -> dict[str, Any]:
    side = "from" if ingress else "to"
    kinds = ["Endpoints", "Entities", "CIDR", "CIDRSet", "Nodes", ""] + ([] if ingress else ["Services"])
    kind = dice.choice(kinds)
    item: dict[str, Any] = {}
    if kind:
        item[side + kind] = [peer(dice, kind) for _ in range(0 if dice.random() < 0.05 else dice.randint(1, 2))]
    if dice.random() < 0.3:
        item["icmps"] = [{"fields": [message(dice) for _ in range(dice.randint(0, 2))]}]
    elif dice.random() < 0.6:
        item["toPorts"] = [
            {"ports": [port(dice) for _ in range(dice.randint(0, 2))]} for _ in range(dice.randint(1, 2))
        ]
    return item


def peer(dice: Random, kind: str) -> Any:
    match kind:
        case "Endpoints":
            return selector(dice, {"app": ("a", "b"), "tier": ("back",), "io.kubernetes.pod.namespace": ("other",)})
        case "Entities":
            return dice.choice(
                ("all", "world", "cluster", "host", "remote-node", "kube-apiserver", "unmanaged", "none")
            )
        case "CIDR":
            return dice.choice(("0.0.0.0/0", "203.0.113.0/24", "10.0.0.0/8", "192.168.0.2/31", "::/0"))
        case "Nodes":
            return selector(dice, {"zone": ("east", "west")})
        case "Services":
            if dice.random() < 0.6:
                reference = {"serviceName": dice.choice(("back", "front", "outside", "nobody"))}
                return {"k8sService": reference | dice.choice(({}, {"namespace": "default"}, {"namespace": "other"}))}
            wanted = selector(dice, {"kind": ("inside", "far", "external")})
            return {"k8sServiceSelector": {"selector": wanted} | dice.choice(({}, {"namespace": "default"}))}
    made: dict[str, Any] = dice.choice(
        (
            {"cidr": "203.0.113.0/24"},
            {"cidrGroupRef": "partners"},
            {"cidrGroupRef": "nobody"},
            {"cidrGroupSelector": {}},
        )
    )
    if "cidrGroupSelector" in made:
        made = {"cidrGroupSelector": selector(dice, {"trust": ("some", "full")})}
    return made | dice.choice(({}, {"except": ["203.0.113.0/28"]}))


def selector(dice: Random, keys: dict[str, tuple[str, ...]]) -> dict[str, Any]:
    key = dice.choice(tuple(keys))
    match dice.randint(0, 3):
        case 0:
            return {}
        case 1:
            return {"matchLabels": {key: dice.choice(keys[key])}}
        case 2:
            return {"matchExpressions": [{"key": key, "operator": dice.choice(("Exists", "DoesNotExist"))}]}
    values = list(keys[key])
    return {"matchExpressions": [{"key": key, "operator": dice.choice(("In", "NotIn")), "values": values[:1]}]}


def port(dice: Random) -> dict[str, Any]:
    made: dict[str, Any] = {"port": dice.choice(("80", "0", "443", "0120", "nobody"))}
    if dice.random() < 0.6:
        made["protocol"] = dice.choice(("TCP", "UDP", "ANY"))
    if made["port"] == "80" and dice.random() < 0.4:
        made["endPort"] = dice.choice((79, 80, 500))
    return made


def message(dice: Random) -> dict[str, Any]:
    return dice.choice(({"type": 8}, {"type": "EchoRequest"}, {"family": "IPv6", "type": "EchoRequest"}, {"type": 13}))


# --- reading, the slow way -------------------------------------------------------------------------------------------


def answer(specs: list[dict[str, Any]], way: str, who: Who, flow: str, wide: bool) -> str:
    closed = False
    allowed = False
    for spec in specs:
        entries, denials = spec.get(way) or [], spec.get(f"{way}Deny") or []
        if any(covers(item, who, flow, wide) for item in denials):
            return "refused"
        allowed = allowed or any(covers(item, who, flow, wide) for item in entries)
        closed = closed or (bool(entries or denials) and (spec.get("enableDefaultDeny") or {}).get(way, True))
    if allowed or not closed or (way == "ingress" and who.kind == "host"):
        return "allowed"
    return "refused"


def covers(item: dict[str, Any], who: Who, flow: str, wide: bool) -> bool:
    lists = {key: value for key, value in item.items() if key not in ("toPorts", "icmps")}
    if not item:
        return False
    for key, peers in lists.items():
        if not any(means(key.removeprefix("from").removeprefix("to"), one, who, wide) for one in peers):
            return False
    if "icmps" in item:
        wanted = [one for block in item["icmps"] for one in block["fields"]]
        return flow in ICMP and any(is_message(one, *ICMP[flow]) for one in wanted)
    if "toPorts" in item:
        return any(is_port(one, flow) for block in item["toPorts"] for one in block["ports"])
    return bool(lists)


def is_message(one: dict[str, Any], family: str, number: int) -> bool:
    if one.get("family", "IPv4") != family:
        return False
    names = {"IPv4": {"EchoRequest": 8}, "IPv6": {"EchoRequest": 128}}
    return bool(names[family].get(one["type"], one["type"]) == number)


def is_port(one: dict[str, Any], flow: str) -> bool:
    number, _, protocol = flow.partition("/")
    if flow in ICMP or protocol not in {"TCP": ("TCP",), "UDP": ("UDP",)}.get(
        one.get("protocol", ""), ("TCP", "UDP", "SCTP")
    ):
        return False
    if one["port"] == "nobody":
        return False
    first = int(one["port"], 8) if one["port"] == "0120" else int(one["port"])
    return first == 0 or first <= int(number) <= max(first, one.get("endPort", 0))


def means(kind: str, one: Any, who: Who, wide: bool) -> bool:
    match kind:
        case "Endpoints":
            # without a namespace a selector is limited to the policy's own; with one it selects in that one
            labels = who.labels | {"io.kubernetes.pod.namespace": who.space}
            own = "io.kubernetes.pod.namespace" in str(one) or who.space == "default"
            return who.kind == "pod" and own and selects(one, labels)
        case "Entities":
            return is_entity(one, who)
        case "CIDR":
            return in_cidr(one, who, wide)
        case "Nodes":
            return who.kind == "node" and selects(one, who.labels)
        case "Services":
            return any(behind(service, who, wide) for service in SERVICES if refers(one, service))
    prefixes: tuple[str, ...] = (one["cidr"],) if "cidr" in one else ()
    for name, (trust, networks) in GROUPS.items():
        if one.get("cidrGroupRef") == name or (
            "cidrGroupSelector" in one and selects(one["cidrGroupSelector"], {"trust": trust})
        ):
            prefixes += networks
    holes = one.get("except", [])
    return any(in_cidr(prefix, who, wide) for prefix in prefixes) and not any(
        in_cidr(hole, who, wide) for hole in holes
    )


def is_entity(name: str, who: Who) -> bool:
    return {
        "all": True,
        "none": False,
        "world": who.kind == "world",
        "cluster": who.kind != "world" or who.apiserver,
        "host": who.kind == "host",
        "remote-node": who.kind == "node",
        "kube-apiserver": who.apiserver,
        "unmanaged": who.kind == "unmanaged",
    }[name]


def in_cidr(prefix: str, who: Who, wide: bool) -> bool:
    if who.kind != "world" and not (wide and who.kind in ("host", "node")):
        return False
    if prefix == "::/0" and who.kind == "world":
        return True  # the town has one family: the whole of either is the world
    return ip_address(who.address) in ip_network(prefix, strict=False)


def refers(one: dict[str, Any], service: tuple[str, str, str, dict[str, str], tuple[str, ...]]) -> bool:
    space, name, kind = service[:3]
    if "k8sService" in one:
        return (one["k8sService"]["serviceName"], one["k8sService"].get("namespace", space)) == (name, space)
    wanted = one["k8sServiceSelector"]
    return wanted.get("namespace", space) == space and selects(wanted["selector"], {"kind": kind})


def behind(service: tuple[str, str, str, dict[str, str], tuple[str, ...]], who: Who, wide: bool) -> bool:
    space, _, _, pods, addresses = service
    if pods:
        return who.kind == "pod" and who.space == space and pods.items() <= who.labels.items()
    return any(in_cidr(f"{address}/32", who, wide) for address in addresses)


def selects(one: dict[str, Any], labels: dict[str, str]) -> bool:
    for key, value in one.get("matchLabels", {}).items():
        if labels.get(key) != value:
            return False
    for term in one.get("matchExpressions", []):
        has, is_in = term["key"] in labels, labels.get(term["key"]) in term.get("values", ())
        holds = {"Exists": has, "DoesNotExist": not has, "In": has and is_in, "NotIn": not has or not is_in}
        if not holds[term["operator"]]:
            return False
    return True


# --- both ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", range(0, 4 * SETS, SETS))
def test_product_and_oracle_agree(start: int, bench: Bench) -> None:
    for seed in range(start, start + SETS):
        dice = Random(seed)
        specs = [policy(dice) for _ in range(dice.randint(1, 3))]
        wide = dice.random() < 0.3
        options = Options(node_selectors=True, cidr_reach=Reach.NODES if wide else Reach.OUTSIDE)
        documents = [bench.cnp("{}", name=f"p{place}") for place in range(len(specs))]
        for document, spec in zip(documents, specs, strict=True):
            document["spec"] |= spec
        town = bench.town(*documents, options=options)
        for _ in range(60):
            who, flow, way = dice.choice(TOWN), dice.choice(FLOWS), dice.choice(("ingress", "egress"))
            found = town.ingress(who.name, port=flow) if way == "ingress" else town.egress(who.name, port=flow)
            expected = answer(specs, way, who, flow, wide)
            assert ("allowed" if found == "allow" else "refused") == expected, (seed, way, who.name, flow, found, specs)
