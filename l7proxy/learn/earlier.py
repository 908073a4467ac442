"""What an earlier policy allows already, so that learning again only adds to it.

Its rules stay as they are, also those that are not understood here. A new rule is added only where no rule of the same
peer and port allows the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from l7proxy.learn.labels import Group
from l7proxy.learn.observation import HttpRequest
from l7proxy.learn.traffic import Allows, Key, Peer
from l7proxy.model.labels import ANY, CLUSTER_KEY, K8S, NAMESPACE_KEY
from l7proxy.model.resources import PolicyDocument
from l7proxy.model.verdict import BOTH, Direction, Protocol
from l7proxy.policy.match.pattern import PatternSet

API_VERSION: Final = "cilium.io/v2"
KIND: Final = "CiliumNetworkPolicy"
SIDE: Final = {Direction.INGRESS: "from", Direction.EGRESS: "to"}
ICMP: Final = {"IPv4": Protocol.ICMP, "IPv6": Protocol.ICMPV6}

Cell = tuple[Direction, Peer, int, int]


@dataclass(frozen=True, slots=True)
class HttpRule:
    """The patterns of an item of `rules.http`; "" if absent. Headers are not read: flows do not show them."""

    method: str
    path: str
    host: str

    def allows(self, request: HttpRequest) -> bool:
        """Whether it allows this request, if the request has the headers that it may ask for."""
        fields = ((self.method, request.method), (self.path, request.path or ""), (self.host, request.host))
        return all(not pattern or PatternSet([pattern]).find(value.encode()) for pattern, value in fields)


@dataclass
class Earlier:
    """One document, and what it allows: cell → HTTP rules; None where every request is allowed."""

    document: Mapping[str, Any]
    group: Group | None
    allowed: dict[Cell, list[HttpRule] | None] = field(default_factory=dict)

    @property
    def namespace(self) -> str:
        return str(_mapping(self.document.get("metadata")).get("namespace") or "default")

    @property
    def name(self) -> str:
        return str(_mapping(self.document.get("metadata")).get("name") or "")


def read(documents: Sequence[PolicyDocument]) -> list[Earlier]:
    """The CiliumNetworkPolicies among them."""
    return [_read(one.document) for one in documents if one.kind == KIND]


def allows(earlier: Sequence[Earlier]) -> Allows:
    """Whether these policies allow a request already."""
    known: dict[tuple[Group, Cell], list[HttpRule]] = {}
    for one in earlier:
        for cell, rules in one.allowed.items():
            if one.group is not None and rules:
                known.setdefault((one.group, cell), []).extend(rules)

    def allows(key: Key, request: HttpRequest) -> bool:
        rules = known.get((key.subject, (key.direction, key.peer, key.protocol, key.port)), ())
        return any(rule.allows(request) for rule in rules)

    return allows


def _read(document: Mapping[str, Any]) -> Earlier:
    spec = _mapping(document.get("spec"))
    namespace = str(_mapping(document.get("metadata")).get("namespace") or "default")
    found = Earlier(document, _subject(spec, namespace))
    for direction in BOTH:
        for entry in _items(spec.get(direction.word)):
            for cell, rules in _cells(entry, direction, namespace):
                known = found.allowed.setdefault(cell, [])
                found.allowed[cell] = None if rules is None or known is None else [*known, *rules]
    return found


def _subject(spec: Mapping[str, Any], namespace: str) -> Group | None:
    return _group(spec.get("endpointSelector"), namespace)[0] if "specs" not in spec else None


def _group(selector: Any, namespace: str) -> tuple[Group | None, str]:
    """(the group that this selector names by labels alone, its cluster)."""
    found = _mapping(selector)
    labels = {_key(str(key)): str(value) for key, value in _mapping(found.get("matchLabels")).items()}
    space, cluster = labels.pop(NAMESPACE_KEY, namespace), labels.pop(CLUSTER_KEY, "")
    if set(found) - {"matchLabels"} or not labels:
        return None, cluster
    return Group(space, tuple(sorted(labels.items()))), cluster


def _key(text: str) -> str:
    source, colon, rest = text.partition(":")
    return rest if colon and source in (ANY, K8S) else text


def _cells(
    entry: Mapping[str, Any], direction: Direction, namespace: str
) -> Iterator[tuple[Cell, list[HttpRule] | None]]:
    ports = [*_ports(entry), *_messages(entry)]
    for peer in _peers(entry, SIDE[direction], namespace):
        yield from (((direction, peer, protocol, port), rules) for protocol, port, rules in ports)


def _peers(entry: Mapping[str, Any], side: str, namespace: str) -> Iterator[Peer]:
    for selector in _list(entry.get(f"{side}Endpoints")):
        group, cluster = _group(selector, namespace)
        if group is not None:
            yield Peer(group=group, cluster=cluster)
    yield from (Peer(entity=str(one)) for one in _list(entry.get(f"{side}Entities")))
    yield from (Peer(cidr=str(one)) for one in _list(entry.get(f"{side}CIDR")))


def _ports(entry: Mapping[str, Any]) -> Iterator[tuple[int, int, list[HttpRule] | None]]:
    for item in _items(entry.get("toPorts")):
        rules = _mapping(item.get("rules"))
        http = [_http(one) for one in _items(rules.get("http"))] if rules else None
        if set(item) - {"ports", "rules"} or set(rules) - {"http"} or http == []:
            continue
        for port in _items(item.get("ports")):
            number, protocol = str(port.get("port", "")), str(port.get("protocol", "")).upper()
            if number.isascii() and number.isdigit() and not port.get("endPort") and protocol in Protocol.__members__:
                yield int(Protocol[protocol]), int(number), http


def _messages(entry: Mapping[str, Any]) -> Iterator[tuple[int, int, None]]:
    for item in _items(entry.get("icmps")):
        for one in _items(item.get("fields")):
            kind, family = one.get("type"), str(one.get("family", "IPv4"))
            if isinstance(kind, int) and family in ICMP:
                yield int(ICMP[family]), kind << 8, None


def _http(rule: Mapping[str, Any]) -> HttpRule:
    method, path, host = (str(rule.get(key) or "") for key in ("method", "path", "host"))
    return HttpRule(method, path, host)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _items(value: Any) -> Iterator[Mapping[str, Any]]:
    return (one for one in _list(value) if isinstance(one, Mapping))
