"""What policies say of one flow at one end, and of a request in it. Plain loops, in the words of each language.

A way in (or out) of a pod is a list of tiers; a tier is a list of steps in order. A step is what one rule, or one union
of policies, says of this flow: "allow", "deny", "pass", "http" with a test of the request, or nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.oracle.cast import SPACES, Who
from tests.oracle.documents import TREES
from tests.oracle.selectors import holds, matches

Document = Mapping[str, Any]
CALICO_UNION = 1000.0


@dataclass(frozen=True)
class Ask:
    """The bytes of a request that rules look at."""

    method: str
    path: str
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Flow:
    """Seen from `me`, whose policy is asked. `port` is the destination's."""

    me: Who
    peer: Who
    way: str
    protocol: str
    port: int

    @property
    def destination(self) -> Who:
        return self.me if self.way == "ingress" else self.peer


@dataclass
class Step:
    action: str
    accepts: Callable[[Ask], bool] = field(default=lambda ask: True)


@dataclass
class Tier:
    steps: list[Step]
    closed: bool


def judge(documents: Sequence[Document], flow: Flow, ask: Ask | None) -> str:
    """`allow`, `deny` or, without a request, `http` when requests decide."""
    for tier in (_admin(documents, flow), _default(documents, flow), _baseline(documents, flow)):
        passed = False
        for step in tier.steps:
            if step.action == "http":
                if ask is None:
                    return "http"
                if step.accepts(ask):
                    return "allow"
            elif step.action == "pass":
                passed = True
                break
            else:
                return step.action
        if tier.closed and not passed:
            return "allow" if _is_local_host(flow) else "deny"
    return "allow"


def _is_local_host(flow: Flow) -> bool:
    """The kubelet of the pod's own node gets in wherever nobody says no to it."""
    return flow.way == "ingress" and flow.peer.is_host()


# The default tier: Calico's policies by order, and at 1000 the union of Cilium's and Kubernetes'.


def _default(documents: Sequence[Document], flow: Flow) -> Tier:
    placed: list[tuple[float, str, list[Step]]] = []
    closed = False
    calico = [one for one in documents if one["apiVersion"].startswith("projectcalico.org/")]
    spared = False
    for document in calico:
        if not _calico_selects(document, flow.me) or flow.way not in _calico_types(document):
            continue
        closed = spared = True
        order = document["spec"].get("order", float("inf"))
        placed.append((float(order), document["metadata"]["name"], _calico_steps(document, flow)))
    union, isolated = _union(documents, flow)
    closed = closed or isolated
    placed.append((CALICO_UNION, "", union))
    steps = [step for _, _, some in sorted(placed, key=lambda item: (item[0], item[1])) for step in some]
    if spared and _is_local_host(flow):
        return Tier([Step("allow")], closed)
    return Tier(steps, closed)


def _union(documents: Sequence[Document], flow: Flow) -> tuple[list[Step], bool]:
    """One deny is enough; else one plain allow; else the HTTP rules of all, any of which may accept."""
    denies, plain, http, isolated = False, False, [], False
    for document in documents:
        spec = document["spec"]
        if document["kind"].startswith("Cilium"):
            if not _cilium_selects(document, flow.me):
                continue
            allows, refuses = spec.get(flow.way) or [], spec.get(f"{flow.way}Deny") or []
            if (allows or refuses) and (spec.get("enableDefaultDeny") or {}).get(flow.way, True):
                isolated = True
            denies = denies or any(_cilium_cells(document, item, flow) for item in refuses)
            for item in allows:
                for rules in _cilium_cells(document, item, flow):
                    plain = plain or not rules
                    http += rules
        elif document["apiVersion"] == "networking.k8s.io/v1":
            if document["metadata"]["namespace"] != flow.me.space or not matches(spec["podSelector"], flow.me.labels):
                continue
            if flow.way.title() in _kubernetes_types(spec):
                isolated = True
                plain = plain or any(_kubernetes_covers(document, item, flow) for item in spec.get(flow.way) or [])
    if denies:
        return [Step("deny")], isolated
    steps = [Step("http", lambda ask: any(_http(rule, ask) for rule in http))] if http else []
    return steps + ([Step("allow")] if plain else []), isolated


# Cilium


def _cilium_selects(document: Document, me: Who) -> bool:
    space = document["metadata"].get("namespace")
    return (space is None or me.space == space) and matches(document["spec"]["endpointSelector"], me.labels)


def _cilium_cells(document: Document, item: Mapping[str, Any], flow: Flow) -> list[list[Any]]:
    """The HTTP rules of each part of the item that covers the flow: [] for a part without any."""
    side = "from" if flow.way == "ingress" else "to"
    peers = [key for key in item if key.startswith(side) and key != "toPorts"]
    if not peers and not item.get("toPorts"):
        return []
    if peers and not any(_cilium_peer(document, key, one, flow.peer) for key in peers for one in item[key]):
        return []
    if not item.get("toPorts"):
        return [[]]
    cells = [cell for cell in item["toPorts"] if any(_cilium_port(port, flow) for port in cell.get("ports") or [])]
    return [list((cell.get("rules") or {}).get("http") or []) for cell in cells]


def _cilium_peer(document: Document, key: str, value: Any, peer: Who) -> bool:
    if key.endswith("Endpoints"):
        labels = dict(value.get("matchLabels") or {})
        space = labels.pop("k8s:io.kubernetes.pod.namespace", document["metadata"].get("namespace"))
        own = document["metadata"].get("namespace")
        written = "k8s:io.kubernetes.pod.namespace" in (value.get("matchLabels") or {})
        wanted = space if written else own
        return (
            peer.is_pod
            and (wanted is None or peer.space == wanted)
            and matches({**value, "matchLabels": labels}, peer.labels)
        )
    if key.endswith("Entities"):
        return {
            "all": True,
            "world": peer.is_outside,
            "cluster": not peer.is_outside,
            "host": peer.is_host(),
            "remote-node": not peer.is_pod and peer.node == "n2",
        }[value]
    cidr, holes = (value, []) if isinstance(value, str) else (value["cidr"], value.get("except") or [])
    return peer.is_outside and peer.within(cidr) and not any(peer.within(hole) for hole in holes)


def _cilium_port(port: Mapping[str, Any], flow: Flow) -> bool:
    protocol = port.get("protocol", "ANY")
    if protocol not in ("ANY", flow.protocol):
        return False
    text = port["port"]
    if not text.isdigit():
        return (text, flow.protocol, flow.port) in flow.destination.ports
    first = int(text)
    if first == 0:
        return True
    return bool(first <= flow.port <= max(first, port.get("endPort", 0)))


def _http(rule: Mapping[str, Any], ask: Ask) -> bool:
    for key, value in (("path", ask.path), ("method", ask.method)):
        if rule.get(key) and not re.fullmatch(rule[key], value):
            return False
    return all(("x-key", "yes") in ask.headers for _ in rule.get("headers") or [])


# Kubernetes


def _kubernetes_types(spec: Mapping[str, Any]) -> list[str]:
    if "policyTypes" in spec:
        return list(spec["policyTypes"])
    return ["Ingress", "Egress"] if spec.get("egress") else ["Ingress"]


def _kubernetes_covers(document: Document, item: Mapping[str, Any], flow: Flow) -> bool:
    peers, ports = item.get("from" if flow.way == "ingress" else "to"), item.get("ports")
    return (not peers or any(_kubernetes_peer(document, peer, flow.peer) for peer in peers)) and (
        not ports or any(_kubernetes_port(port, flow) for port in ports)
    )


def _kubernetes_peer(document: Document, peer: Mapping[str, Any], who: Who) -> bool:
    if "ipBlock" in peer:
        block = peer["ipBlock"]
        return who.within(block["cidr"]) and not any(who.within(hole) for hole in block.get("except") or [])
    if not who.is_pod:
        return False
    if "namespaceSelector" in peer:
        if not matches(peer["namespaceSelector"], SPACES[who.space]):
            return False
    elif who.space != document["metadata"]["namespace"]:
        return False
    return matches(peer.get("podSelector") or {}, who.labels)


def _kubernetes_port(port: Mapping[str, Any], flow: Flow) -> bool:
    if port.get("protocol", "TCP") != flow.protocol:
        return False
    value = port.get("port")
    if value is None:
        return True
    if isinstance(value, str):
        return (value, flow.protocol, flow.port) in flow.destination.ports
    return bool(value <= flow.port <= port.get("endPort", value))


# Calico


def _calico_selects(document: Document, me: Who) -> bool:
    space = document["metadata"].get("namespace")
    return (space is None or me.space == space) and holds(TREES[document["spec"]["selector"]], me.labels)


def _calico_types(document: Document) -> list[str]:
    spec = document["spec"]
    if "types" in spec:
        return [kind.lower() for kind in spec["types"]]
    ways = [way for way in ("ingress", "egress") if spec.get(way)]
    return ways or ["ingress"]


def _calico_steps(document: Document, flow: Flow) -> list[Step]:
    steps = []
    for rule in document["spec"].get(flow.way) or []:
        if rule["action"] == "Log" or not _calico_covers(document, rule, flow):
            continue
        if rule.get("http"):
            steps.append(Step("http", lambda ask, http=rule["http"]: _calico_http(http, ask)))  # type: ignore[misc]
        else:
            steps.append(Step(rule["action"].lower()))
    return steps


def _calico_covers(document: Document, rule: Mapping[str, Any], flow: Flow) -> bool:
    if rule.get("protocol", flow.protocol) != flow.protocol:
        return False
    other = rule.get("source" if flow.way == "ingress" else "destination") or {}
    to = rule.get("destination") or {}
    if "ports" in to and not any(_calico_port(port, flow) for port in to["ports"]):
        return False
    if "notPorts" in to and any(_calico_port(port, flow) for port in to["notPorts"]):
        return False
    if "nets" in other and not any(flow.peer.within(net) for net in other["nets"]):
        return False
    if "notNets" in other and any(flow.peer.within(net) for net in other["notNets"]):
        return False
    return _calico_selected(document, other, flow.peer)


def _calico_selected(document: Document, other: Mapping[str, Any], peer: Who) -> bool:
    """A selector means known endpoints: pods here, since there are no network sets."""
    if "selector" not in other and "namespaceSelector" not in other:
        return True
    if not peer.is_pod:
        return False
    own = document["metadata"].get("namespace")
    if "namespaceSelector" in other:
        if not holds(TREES[other["namespaceSelector"]], SPACES[peer.space]):
            return False
    elif own is not None and peer.space != own:
        return False
    return "selector" not in other or holds(TREES[other["selector"]], peer.labels)


def _calico_port(port: Any, flow: Flow) -> bool:
    if isinstance(port, int):
        return flow.port == port
    if ":" in port:
        first, last = map(int, port.split(":"))
        return first <= flow.port <= last
    return (port, flow.protocol, flow.port) in flow.destination.ports


def _calico_http(http: Mapping[str, Any], ask: Ask) -> bool:
    if http.get("methods") and ask.method not in http["methods"]:
        return False
    path = ask.path.partition("?")[0]
    paths = http.get("paths")
    return not paths or any(
        path == one["exact"]
        if "exact" in one
        else path == one["prefix"] or path.startswith(one["prefix"].rstrip("/") + "/")
        for one in paths
    )


# Admin and baseline


def _admin(documents: Sequence[Document], flow: Flow) -> Tier:
    some = [one for one in documents if one["kind"] == "AdminNetworkPolicy"]
    some.sort(key=lambda one: one["spec"]["priority"])
    return Tier([step for one in some for step in _admin_steps(one, flow)], closed=False)


def _baseline(documents: Sequence[Document], flow: Flow) -> Tier:
    some = [one for one in documents if one["kind"] == "BaselineAdminNetworkPolicy"]
    return Tier([step for one in some for step in _admin_steps(one, flow)], closed=False)


def _admin_steps(document: Document, flow: Flow) -> list[Step]:
    spec = document["spec"]
    if not _admin_peer(spec["subject"], flow.me):
        return []
    found = []
    for rule in spec.get(flow.way) or []:
        peers = rule["from" if flow.way == "ingress" else "to"]
        if not any(_admin_peer(peer, flow.peer) for peer in peers):
            continue
        if "ports" in rule and not any(_admin_port(port, flow) for port in rule["ports"]):
            continue
        found.append(Step(rule["action"].lower()))
    return found


def _admin_peer(peer: Mapping[str, Any], who: Who) -> bool:
    if "networks" in peer:
        return any(who.within(net) for net in peer["networks"])
    if not who.is_pod:
        return False
    if "namespaces" in peer:
        return matches(peer["namespaces"], SPACES[who.space])
    pods = peer["pods"]
    return matches(pods["namespaceSelector"], SPACES[who.space]) and matches(pods["podSelector"], who.labels)


def _admin_port(port: Mapping[str, Any], flow: Flow) -> bool:
    if "portNumber" in port:
        return (port["portNumber"]["protocol"], port["portNumber"]["port"]) == (flow.protocol, flow.port)
    span = port["portRange"]
    return bool(span["protocol"] == flow.protocol and span["start"] <= flow.port <= span["end"])
