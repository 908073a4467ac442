"""Evaluates policies for one flow at one end, and for a request in it. Plain loops, in the terms of each language.

A direction of a pod is a list of tiers; a tier is a list of steps in order. A step is the result of one rule, or of one
union of policies, for this flow: "allow", "deny", "pass", "http" with a test of the request, or nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.oracle.cast import ACCOUNTS, API_SERVER, GROUPS, SERVICES, SETS, SPACES, TIERS, WITH_PORTS, Nets, Who
from tests.oracle.documents import TREES
from tests.oracle.selectors import holds, matches

Document = Mapping[str, Any]
CALICO_UNION = 1000.0


@dataclass(frozen=True)
class Ask:
    """The bytes of a request that rules match."""

    method: str
    path: str
    headers: tuple[tuple[str, str], ...] = ()
    host: str = "h"


@dataclass(frozen=True)
class Flow:
    """A flow as seen from `me`, whose policy is evaluated. `port` is the destination's."""

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
    for tier in _tiers(documents, flow):
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


def _tiers(documents: Sequence[Document], flow: Flow) -> list[Tier]:
    placed = [(1000.0, _admin(documents, flow)), (1e6, _default(documents, flow)), (1e7, _baseline(documents, flow))]
    placed += [(order, _tier(documents, flow, name, passes)) for name, (order, passes) in TIERS.items()]
    return [tier for _, tier in sorted(placed, key=lambda item: item[0])]


def _is_local_host(flow: Flow) -> bool:
    """The kubelet of the pod's own node is allowed unless a rule denies it."""
    return flow.way == "ingress" and flow.peer.is_host()


# The default tier: Calico's policies by order, and at 1000 the union of Cilium's and Kubernetes'. Other Calico tiers.


def _default(documents: Sequence[Document], flow: Flow) -> Tier:
    placed = _calico_placed(documents, flow, "default")
    union, isolated = _union(documents, flow)
    steps = _in_order([*placed, (CALICO_UNION, "", union)])
    if placed and _is_local_host(flow):
        return Tier([Step("allow")], closed=True)
    return Tier(steps, closed=bool(placed) or isolated)


def _tier(documents: Sequence[Document], flow: Flow, name: str, passes: bool) -> Tier:
    placed = _calico_placed(documents, flow, name)
    if placed and _is_local_host(flow):
        return Tier([Step("allow")], closed=True)
    return Tier(_in_order(placed), closed=bool(placed) and not passes)


def _in_order(placed: list[tuple[float, str, list[Step]]]) -> list[Step]:
    return [step for _, _, some in sorted(placed, key=lambda item: (item[0], item[1])) for step in some]


def _calico_placed(documents: Sequence[Document], flow: Flow, tier: str) -> list[tuple[float, str, list[Step]]]:
    """For the policies of a tier that select the pod: order, name and result."""
    return [
        (float(one["spec"].get("order", float("inf"))), one["metadata"]["name"], _calico_steps(one, flow))
        for one in documents
        if one["apiVersion"].startswith("projectcalico.org/")
        and one["spec"].get("tier", "default") == tier
        and _calico_selects(one, flow.me)
        and flow.way in _calico_types(one)
    ]


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
    if not peers and not item.get("toPorts") and not item.get("icmps"):
        return []
    if peers and not any(_cilium_peer(document, key, one, flow.peer) for key in peers for one in item[key]):
        return []
    if item.get("icmps"):
        return [[]] if any(_icmp(one, flow) for part in item["icmps"] for one in part["fields"]) else []
    if not item.get("toPorts"):
        return [[]]
    cells = [cell for cell in item["toPorts"] if any(_cilium_port(port, flow) for port in cell.get("ports") or [])]
    return [list((cell.get("rules") or {}).get("http") or []) for cell in cells]


def _icmp(kind: Mapping[str, Any], flow: Flow) -> bool:
    number = {"EchoRequest": 8}.get(kind["type"]) or int(kind["type"])
    return flow.protocol == "ICMP" and kind.get("family", "IPv4") == "IPv4" and flow.port >> 8 == number


def _cilium_service(reference: Mapping[str, Any], peer: Who) -> bool:
    by_name, by_labels = reference.get("k8sService"), reference.get("k8sServiceSelector")
    for one in SERVICES:
        wanted = (by_name or by_labels or {}).get("namespace", one.space)
        if one.space != wanted or (by_name and by_name["serviceName"] != one.name):
            continue
        if by_labels and not matches(by_labels["selector"], one.labels):
            continue
        if one.selector:
            if peer.space == one.space and matches({"matchLabels": one.selector}, peer.labels):
                return True
        elif peer.is_outside and any(peer.address in addresses for addresses, _ in one.parts):
            return True
    return False


def _group(value: Mapping[str, Any], one: Nets) -> bool:
    if "cidrGroupRef" in value:
        return bool(value["cidrGroupRef"] == one.name)
    return matches(value["cidrGroupSelector"], one.labels)


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
            "remote-node": peer.is_node and not peer.is_host(),
            "kube-apiserver": peer.is_node and peer.name == API_SERVER,
            "unmanaged": peer.stray,
        }[value]
    if key.endswith("Nodes"):
        return peer.is_node and not peer.is_host() and matches(value, peer.labels)
    if key.endswith("Services"):
        return _cilium_service(value, peer)
    if not isinstance(value, str) and "cidr" not in value:
        inside = any(peer.within(prefix) for one in GROUPS if _group(value, one) for prefix in one.prefixes)
        return peer.is_outside and inside and not any(peer.within(hole) for hole in value.get("except") or [])
    cidr, holes = (value, []) if isinstance(value, str) else (value["cidr"], value.get("except") or [])
    return peer.is_outside and peer.within(cidr) and not any(peer.within(hole) for hole in holes)


def _cilium_port(port: Mapping[str, Any], flow: Flow) -> bool:
    protocol = port.get("protocol", "ANY")
    if protocol not in ("ANY", flow.protocol) or flow.protocol not in WITH_PORTS:
        return False
    text = port["port"]
    if not text.isdigit():
        return (text, flow.protocol, flow.port) in flow.destination.ports
    first = int(text)
    if first == 0:
        return True
    return bool(first <= flow.port <= max(first, port.get("endPort", 0)))


def _http(rule: Mapping[str, Any], ask: Ask) -> bool:
    for key, value in (("path", ask.path), ("method", ask.method), ("host", ask.host)):
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


@dataclass(frozen=True)
class Known:
    """What a Calico selector may select: a pod, or a network set."""

    space: str
    labels: Mapping[str, str]
    account: str = ""
    is_pod: bool = False


def _as_pod(who: Who) -> Known:
    roles = ACCOUNTS.get((who.space, who.account), {})
    labels = who.labels | {f"pcns.{key}": value for key, value in SPACES[who.space].items()}
    labels |= {f"pcsa.{key}": value for key, value in roles.items()}
    labels |= {"projectcalico.org/namespace": who.space, "projectcalico.org/serviceaccount": who.account}
    return Known(who.space, labels, who.account, is_pod=True)


def _known(who: Who) -> list[Known]:
    """All entities that this address is for Calico."""
    found = [_as_pod(who)] if who.is_pod else []
    for one in SETS:
        if any(who.within(prefix) for prefix in one.prefixes):
            inherited = {f"pcns.{key}": value for key, value in SPACES[one.space].items()} if one.space else {}
            named = {"projectcalico.org/namespace": one.space} if one.space else {}
            found.append(Known(one.space, one.labels | inherited | named))
    return found


def _calico_selects(document: Document, me: Who) -> bool:
    space, spec, known = document["metadata"].get("namespace"), document["spec"], _as_pod(me)
    if space is not None and me.space != space:
        return False
    if "namespaceSelector" in spec and not _in_space(spec["namespaceSelector"], known):
        return False
    if "serviceAccountSelector" in spec and not _of_account({"selector": spec["serviceAccountSelector"]}, known):
        return False
    return holds(TREES[spec["selector"]], known.labels)


def _in_space(selector: str, known: Known) -> bool:
    if not known.space:
        return False
    return holds(TREES[selector], SPACES[known.space] | {"projectcalico.org/name": known.space})


def _of_account(wanted: Mapping[str, Any], known: Known) -> bool:
    if not known.is_pod or known.account not in wanted.get("names", [known.account]):
        return False
    labels = ACCOUNTS.get((known.space, known.account), {})
    return "selector" not in wanted or holds(TREES[wanted["selector"]], labels)


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
    protocol = rule.get("protocol", "TCP" if "http" in rule else flow.protocol)
    if ("GRE" if protocol == 47 else protocol) != flow.protocol:
        return False
    if rule.get("notProtocol") == flow.protocol:
        return False
    if "icmp" in rule and not _calico_icmp(rule["icmp"], flow):
        return False
    if "notICMP" in rule and _calico_icmp(rule["notICMP"], flow):
        return False
    sides = ("source", "destination") if flow.way == "ingress" else ("destination", "source")
    other, mine = (rule.get(side) or {} for side in sides)
    to = rule.get("destination") or {}
    if "services" in other:
        if not _calico_service(other["services"], flow):
            return False
        other = {}
    if "ports" in to and not any(_calico_port(port, flow) for port in to["ports"]):
        return False
    if "notPorts" in to and any(_calico_port(port, flow) for port in to["notPorts"]):
        return False
    if "nets" in other and not any(flow.peer.within(net) for net in other["nets"]):
        return False
    if "notNets" in other and any(flow.peer.within(net) for net in other["notNets"]):
        return False
    return _calico_entity(document, other, _known(flow.peer)) and _calico_entity(document, mine, [_as_pod(flow.me)])


def _calico_entity(document: Document, entity: Mapping[str, Any], known: list[Known]) -> bool:
    """Positive terms need one entity that matches all of them, a negative term needs that none matches."""
    positive = entity.keys() & {"selector", "namespaceSelector", "serviceAccounts"}
    if "namespace" in document["metadata"]:
        positive |= entity.keys() & {"notSelector"}  # it is also limited to the policy's own namespace
    if positive and not any(_calico_selected(document, entity, one) for one in known):
        return False
    return "notSelector" not in entity or not any(holds(TREES[entity["notSelector"]], one.labels) for one in known)


def _calico_selected(document: Document, entity: Mapping[str, Any], known: Known) -> bool:
    own = document["metadata"].get("namespace")
    if "namespaceSelector" in entity:
        if not _in_space(entity["namespaceSelector"], known):
            return False
    elif own is not None and known.space != own:
        return False
    if "serviceAccounts" in entity and not _of_account(entity["serviceAccounts"], known):
        return False
    return "selector" not in entity or holds(TREES[entity["selector"]], known.labels)


def _calico_icmp(kind: Mapping[str, int], flow: Flow) -> bool:
    if flow.protocol != "ICMP" or flow.port >> 8 != kind["type"]:
        return False
    return "code" not in kind or flow.port & 255 == kind["code"]


def _calico_service(reference: Mapping[str, str], flow: Flow) -> bool:
    """As a destination with its ports there, as a source all its backends."""
    (service,) = [one for one in SERVICES if (one.space, one.name) == (reference["namespace"], reference["name"])]
    behind = [ports for addresses, ports in service.parts if flow.peer.address in addresses]
    if flow.way == "ingress":
        return bool(behind)
    return any((flow.protocol, flow.port) in ports for ports in behind)


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
    some = [one for one in documents if one["kind"] == "AdminNetworkPolicy" or one["spec"].get("tier") == "Admin"]
    some.sort(key=lambda one: one["spec"]["priority"])
    return Tier([step for one in some for step in _admin_steps(one, flow)], closed=False)


def _baseline(documents: Sequence[Document], flow: Flow) -> Tier:
    """The old kind has no priority, and comes last."""
    old = [one for one in documents if one["kind"] == "BaselineAdminNetworkPolicy"]
    new = [one for one in documents if one["spec"].get("tier") == "Baseline"]
    new.sort(key=lambda one: one["spec"]["priority"])
    return Tier([step for one in (*new, *old) for step in _admin_steps(one, flow)], closed=False)


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
        if "protocols" in rule and not any(_later_port(one, flow) for one in rule["protocols"]):
            continue
        found.append(Step({"accept": "allow"}.get(rule["action"].lower(), rule["action"].lower())))
    return found


def _admin_peer(peer: Mapping[str, Any], who: Who) -> bool:
    if "networks" in peer:
        return any(who.within(net) for net in peer["networks"])
    if "nodes" in peer:
        return who.is_node and matches(peer["nodes"], who.labels)
    if not who.is_pod:
        return False
    if "namespaces" in peer:
        return matches(peer["namespaces"], SPACES[who.space])
    pods = peer["pods"]
    return matches(pods["namespaceSelector"], SPACES[who.space]) and matches(pods["podSelector"], who.labels)


def _later_port(protocol: Mapping[str, Any], flow: Flow) -> bool:
    ((name, value),) = protocol.items()
    if name == "destinationNamedPort":
        return (value, flow.protocol, flow.port) in flow.destination.ports
    port = value.get("destinationPort", {"range": {"start": 1, "end": 65535}})
    if name.upper() != flow.protocol:
        return False
    if "number" in port:
        return bool(port["number"] == flow.port)
    return bool(port["range"]["start"] <= flow.port <= port["range"]["end"])


def _admin_port(port: Mapping[str, Any], flow: Flow) -> bool:
    if "namedPort" in port:
        return (port["namedPort"], flow.protocol, flow.port) in flow.destination.ports
    if "portNumber" in port:
        return (port["portNumber"]["protocol"], port["portNumber"]["port"]) == (flow.protocol, flow.port)
    span = port["portRange"]
    return bool(span["protocol"] == flow.protocol and span["start"] <= flow.port <= span["end"])
