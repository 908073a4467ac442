"""Parses AdminNetworkPolicy, BaselineAdminNetworkPolicy (v1alpha1) and ClusterNetworkPolicy (v1alpha2).

Admin policies are evaluated before all others, by priority, and baseline policies after all others. In a policy the
first rule that covers a flow decides, and Pass skips the rest of the tier. They do not isolate pods: a flow that no
rule covers goes to the next tier. Networks match any address, also pods'. A peer or port of an unknown kind fails
closed, as the API requires: its rule accepts no peer, or denies every peer; the rest of the policy is enforced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Final

from l7proxy.errors import PolicyError
from l7proxy.model.labels import NODE, Selector
from l7proxy.model.verdict import BOTH, Action, Direction
from l7proxy.policy.lang import cidrs, selectors
from l7proxy.policy.lang.document import Document
from l7proxy.policy.lang.envelope import label_selector, of_namespace, opened, own
from l7proxy.policy.lang.fields import Field, Locate, quoted
from l7proxy.policy.lang.options import Options
from l7proxy.policy.lang.peers import PEER_FIELD
from l7proxy.policy.lang.ports import PROTOCOLS
from l7proxy.policy.rules import EVERYONE_BUT_THE_HOST, CidrPeer, NodePeer, Peer, PortMatch, Reach, Rule, SelectorPeer
from l7proxy.policy.tiers import ADMIN, BASELINE, Level

GROUP: Final = "policy.networking.k8s.io"
ADMIN_KIND: Final = "AdminNetworkPolicy"
BASELINE_KIND: Final = "BaselineAdminNetworkPolicy"
CLUSTER_KIND: Final = "ClusterNetworkPolicy"
VERSIONS: Final[Mapping[str, str]] = {ADMIN_KIND: "v1alpha1", BASELINE_KIND: "v1alpha1", CLUSTER_KIND: "v1alpha2"}

_PLACED_BY: Final = {ADMIN_KIND: ("priority",), BASELINE_KIND: (), CLUSTER_KIND: ("tier", "priority")}
"""The fields of each kind that determine its level."""

MAX_PRIORITY: Final = 1000
MAX_NETWORKS: Final = 25
MAX_NAME: Final = 100


@dataclass(frozen=True, slots=True)
class _Edition:
    """The syntax of one kind."""

    actions: Mapping[str, Action]
    ports: str
    port: Callable[[Field], PortMatch]
    most: int


def parse(root: Mapping[object, object], locate: Locate | None, options: Options) -> tuple[Document, tuple[Rule, ...]]:
    """The document with its notes and faults, and its rules, which are valid only without faults."""
    document, found = opened(root, locate, options, namespaced=False)
    if document.kind == BASELINE_KIND and document.name != "default":
        Field(None, "metadata.name").fail(f"{BASELINE_KIND} must be named default")
    spec = found.get("spec", Field(None, "spec"))
    return document, tuple(document.collect(partial(_spec, spec, document)))


def _spec(spec: Field, document: Document) -> Iterator[Rule]:
    found = spec.mapping((*_PLACED_BY[document.kind], "subject", "ingress", "egress"))
    place, whom = level(spec, document), subject(spec, document)
    edition = _EDITIONS[document.kind]
    for direction in BOTH:
        if direction.word not in found:
            continue
        items = found[direction.word].items(most=edition.most, too_many=f"too many rules, the max is {edition.most}")
        index, last = 0, None
        for item in items:
            for rule in document.collect(partial(_rule, item, direction, whom, document)):
                if last not in (None, rule.action):
                    index += 1  # consecutive rules with one action are one level: their order has no effect
                last = rule.action
                yield replace(rule, level=replace(place, index=index))


def level(spec: Field, document: Document) -> Level:
    """The level of the policy. The API leaves the order of equal priorities undefined; here the name decides."""
    name = f"{document.name} {document.kind}"
    found = spec.mapping(None, required=_PLACED_BY[document.kind])
    if document.kind == BASELINE_KIND:
        return Level(BASELINE, MAX_PRIORITY + 1, name)
    priority = float(found["priority"].number(0, MAX_PRIORITY))
    if document.kind == ADMIN_KIND:
        return Level(ADMIN, priority, name)
    tiers = {"Admin": ADMIN, "Baseline": BASELINE}
    word = found["tier"].text()
    if word not in tiers:
        found["tier"].fail(f"must be Admin or Baseline, not {quoted(word)}")
    return Level(tiers[word], priority, name)


def subject(spec: Field, document: Document) -> Selector:
    """The pods that the policy selects; never pods in the host network."""
    field = spec.mapping(None, required=("subject",))["subject"]
    return _pods_of(_only(field, ("namespaces", "pods")))


def directions(spec: Field) -> tuple[Direction, ...]:
    """The directions with rules."""
    found = spec.mapping(None)
    return tuple(one for one in BOTH if one.word in found)


def _rule(item: Field, direction: Direction, whom: Selector, document: Document) -> Iterator[Rule]:
    edition = _EDITIONS[document.kind]
    found = item.mapping(("name", "action", PEER_FIELD[direction], edition.ports))
    if "name" in found and len(found["name"].text()) > MAX_NAME:
        found["name"].fail(f"must have at most {MAX_NAME} characters")
    rule = Rule(
        document.counted_ref(item.at),
        whom,
        direction,
        document.part(partial(_action, item, found, edition), Action.ALLOW),
        peers=(),
        ports=None,
        default_deny=False,
    )
    peers, ports = _listed(item, found, direction, edition)
    try:
        yield replace(
            rule,
            peers=tuple(chain.from_iterable(peers.each(lambda peer: list(_peer(peer, direction))))),
            ports=tuple(ports.each(edition.port)) or None,
        )
    except PolicyError as fault:
        if not fault.unsupported:
            raise
        document.unenforced.append(fault)
        yield _closed(rule, fault)


def _closed(rule: Rule, fault: PolicyError) -> Rule:
    """A rule with an unknown peer or port, failing closed: Accept accepts no peer, Deny and Pass deny."""
    if rule.action is Action.ALLOW:
        return replace(rule, refusal=str(fault))
    return replace(rule, action=Action.DENY, peers=EVERYONE_BUT_THE_HOST[rule.direction], refusal=str(fault))


def _action(item: Field, found: Mapping[str, Field], edition: _Edition) -> Action:
    if "action" not in found:
        item.fail("action is required")
    word = found["action"].text()
    if word not in edition.actions:
        found["action"].fail(f"must be one of {', '.join(edition.actions)}, not {quoted(word)}")
    return edition.actions[word]


def _listed(item: Field, found: Mapping[str, Field], direction: Direction, edition: _Edition) -> tuple[Field, Field]:
    """The lists of peers and of ports, with their lengths checked."""
    name = PEER_FIELD[direction]
    peers, ports = (found.get(one, Field([], item.key(one))) for one in (name, edition.ports))
    if not peers.items(most=edition.most, too_many=f"too many peers, the max is {edition.most}"):
        item.fail(f"{name} must have at least one peer")
    ports.items(most=edition.most, too_many=f"too many {edition.ports}, the max is {edition.most}")
    return peers, ports


def _only(field: Field, known: tuple[str, ...]) -> tuple[str, Field]:
    """The only key of a mapping, with its value. A key not in `known` may come from a later version of the API."""
    found = field.mapping(None)
    if len(found) > 1:
        field.fail(f"must have exactly one field, not {' and '.join(sorted(found)[:2])}")
    for name, value in found.items():
        if name in known:
            return name, value
        raise PolicyError(f"{name} is not supported yet", at=value.at, unsupported=True)
    return field.fail(f"must have one of {', '.join(known)}", unsupported=True)


def _peer(field: Field, direction: Direction) -> Iterator[Peer]:
    more = ("nodes", "networks") if direction is Direction.EGRESS else ()
    name, value = _only(field, ("namespaces", "pods", *more))
    if name == "networks":
        networks = value.items(most=MAX_NETWORKS, too_many=f"too many networks, the max is {MAX_NETWORKS}")
        if not networks:
            value.fail("must have at least one network")
        yield from (CidrPeer(cidrs.prefix(each), reach=Reach.ANYWHERE) for each in networks)
    elif name == "nodes":
        yield NodePeer(selectors.selector(label_selector(value, _of_node)))
    else:
        yield SelectorPeer(_pods_of((name, value)))


def _of_node(key: str) -> tuple[str, str]:
    return NODE, key


def _pods_of(chosen: tuple[str, Field]) -> Selector:
    name, field = chosen
    if name == "namespaces":
        return selectors.selector([*label_selector(field, of_namespace), selectors.IS_POD])
    both = ("namespaceSelector", "podSelector")
    found = field.mapping(both, required=both)
    spaces = label_selector(found["namespaceSelector"], of_namespace)
    return selectors.selector([*spaces, *label_selector(found["podSelector"], own), selectors.IS_POD])


# Ports


def _port(field: Field) -> PortMatch:
    """v1alpha1."""
    name, value = _only(field, ("portNumber", "portRange", "namedPort"))
    if name == "namedPort":
        return _named(value)
    if name == "portNumber":
        found = value.mapping(("protocol", "port"), required=("port",))
        number = found["port"].number(1, 65535)
        return PortMatch(_protocol(found.get("protocol")), number, number)
    found = value.mapping(("protocol", "start", "end"))
    return PortMatch(_protocol(found.get("protocol")), *_span(value, found))


def _protocol_of(field: Field) -> PortMatch:
    """v1alpha2."""
    name, value = _only(field, ("tcp", "udp", "sctp", "destinationNamedPort"))
    if name == "destinationNamedPort":
        return _named(value)
    protocol = PROTOCOLS[name.upper()]
    found = value.mapping(("destinationPort",))
    if "destinationPort" not in found:
        return PortMatch(protocol)
    which, port = _only(found["destinationPort"], ("number", "range"))
    if which == "number":
        number = port.number(1, 65535)
        return PortMatch(protocol, number, number)
    return PortMatch(protocol, *_span(port, port.mapping(("start", "end"))))


def _named(field: Field) -> PortMatch:
    name = field.text()
    if not name:
        field.fail("must not be empty")
    return PortMatch(PROTOCOLS["ANY"], name=name)


def _protocol(field: Field | None) -> frozenset[int]:
    word = field.text() if field is not None else "TCP"
    if field is not None and word not in ("TCP", "UDP", "SCTP"):
        field.fail(f"must be TCP, UDP or SCTP, not {quoted(word)}")
    return PROTOCOLS[word]


def _span(field: Field, found: Mapping[str, Field]) -> tuple[int, int]:
    for name in ("start", "end"):
        if name not in found:
            field.fail(f"{name} is required")
    first, last = found["start"].number(1, 65535), found["end"].number(1, 65535)
    if last < first:
        field.fail("end must not be less than start")
    return first, last


_OLD_ACTIONS: Final = {"Allow": Action.ALLOW, "Deny": Action.DENY}
_EDITIONS: Final[Mapping[str, _Edition]] = {
    ADMIN_KIND: _Edition({**_OLD_ACTIONS, "Pass": Action.PASS}, "ports", _port, 100),
    BASELINE_KIND: _Edition(_OLD_ACTIONS, "ports", _port, 100),
    CLUSTER_KIND: _Edition(
        {"Accept": Action.ALLOW, "Deny": Action.DENY, "Pass": Action.PASS}, "protocols", _protocol_of, 25
    ),
}
