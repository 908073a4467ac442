"""Parses NetworkPolicy (networking.k8s.io/v1), as the API documents it.

A policy isolates the pods it selects in the directions of its policyTypes, and its items allow traffic; it cannot deny
anything else. An empty list counts as absent: no `from` is every peer, no `ports` is every port and protocol, and an
item `{}` allows everything. ipBlock matches any address, also of pods and nodes.

With `Options.kubernetes_like_cilium` it is read as Cilium does: ipBlock matches only addresses outside, items apply
although their direction is not in policyTypes, and labels that Cilium excludes from identities never match.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Final

from l7proxy.model.labels import EVERYTHING, K8S, Selector
from l7proxy.model.net import Network, within
from l7proxy.model.verdict import BOTH, Direction
from l7proxy.policy.lang import cidrs, selectors
from l7proxy.policy.lang.document import Document
from l7proxy.policy.lang.envelope import Spell, label_selector, of_namespace, opened, own
from l7proxy.policy.lang.fields import Field, Locate, quoted
from l7proxy.policy.lang.options import Options
from l7proxy.policy.lang.peers import PEER_FIELD
from l7proxy.policy.lang.ports import PROTOCOLS
from l7proxy.policy.rules import CidrPeer, Peer, PortMatch, Reach, Rule, SelectorPeer

GROUP: Final = "networking.k8s.io"
VERSION: Final = "v1"
KIND: Final = "NetworkPolicy"

_SUPPORTED: Final = ("SCTP", "TCP", "UDP")
_PORT_NAME: Final = re.compile(r"(?=.{1,15}$)(?=[0-9-]*[a-z])[a-z0-9]+(-[a-z0-9]+)*")
"""An IANA service name (RFC 6335 section 5.1), in lower case as in Kubernetes."""


def parse(root: Mapping[object, object], locate: Locate | None, options: Options) -> tuple[Document, tuple[Rule, ...]]:
    """The document with its notes and faults, and its rules, which are valid only without faults."""
    document, found = opened(root, locate, options, namespaced=True)
    spec = found.get("spec", Field({}, "spec"))
    return document, tuple(document.collect(partial(_spec, spec, document)))


def _spec(spec: Field, document: Document) -> Iterator[Rule]:
    found = spec.mapping(("podSelector", "policyTypes", "ingress", "egress"))
    subject = document.part(partial(_subject, found.get("podSelector"), document), EVERYTHING)
    items = {direction: found[direction.word].items() if direction.word in found else [] for direction in BOTH}
    types = _types(found.get("policyTypes"), items)
    for direction in BOTH:
        read = [
            rule
            for item in items[direction]
            for rule in document.collect(partial(_item, item, direction, subject, document))
        ]
        isolates = direction in types
        if document.options.kubernetes_like_cilium:
            isolates = bool(items[direction]) or isolates
        if not isolates:
            if items[direction]:
                document.note(
                    found[direction.word], f"has no effect: policyTypes does not include {direction.name.capitalize()}"
                )
            continue
        yield from read
        if not items[direction]:
            yield Rule(document.counted_ref(_place(found, direction)), subject, direction, peers=())


def _place(found: Mapping[str, Field], direction: Direction) -> str:
    """The path of the field that isolates a direction without allowing anything."""
    for name in (direction.word, "policyTypes"):
        if name in found:
            return found[name].at
    return "spec"


def _types(field: Field | None, items: Mapping[Direction, list[Field]]) -> frozenset[Direction]:
    """Without policyTypes: ingress always, egress when there are egress items."""
    listed = field.items(most=2, too_many="may not specify more than two policyTypes") if field is not None else []
    if not listed:
        return frozenset(BOTH if items[Direction.EGRESS] else (Direction.INGRESS,))
    return frozenset(_type(item) for item in listed)


def _type(field: Field) -> Direction:
    for direction in BOTH:
        if field.text() == direction.name.capitalize():
            return direction
    return field.fail(f'unsupported value {quoted(field.text())}: supported values: "Egress", "Ingress"')


def _subject(field: Field | None, document: Document) -> Selector:
    wanted = label_selector(field, _spell(document)) if field is not None else []
    return selectors.selector([*wanted, selectors.in_namespace(document.namespace)])


def _spell(document: Document) -> Spell:
    return _in_identities if document.options.kubernetes_like_cilium else own


def _in_identities(key: str) -> tuple[str, str]:
    return K8S, key


def _item(item: Field, direction: Direction, subject: Selector, document: Document) -> Iterator[Rule]:
    found = item.mapping(("ports", PEER_FIELD[direction]))
    side = PEER_FIELD[direction]
    whom = found[side].each(partial(_peer, document=document)) if side in found else []
    what = found["ports"].each(_port) if "ports" in found else []
    yield Rule(
        ref=document.counted_ref(item.at),
        subject=subject,
        direction=direction,
        peers=tuple(whom) or None,
        ports=tuple(what) or None,
    )


def _peer(field: Field, document: Document) -> Peer:
    found = field.mapping(("podSelector", "namespaceSelector", "ipBlock"))
    if not found:
        field.fail("must specify a peer")
    if "ipBlock" in found:
        if len(found) > 1:
            field.fail("may not specify both ipBlock and another peer")
        return _block(found["ipBlock"], document.options)
    wanted = label_selector(found["podSelector"], _spell(document)) if "podSelector" in found else []
    if "namespaceSelector" in found:
        spaces = label_selector(found["namespaceSelector"], of_namespace)
        return SelectorPeer(selectors.selector([*wanted, *spaces, selectors.IS_POD]))
    return SelectorPeer(selectors.selector([*wanted, selectors.in_namespace(document.namespace)]))


def _block(field: Field, options: Options) -> CidrPeer:
    found = field.mapping(("cidr", "except"), required=("cidr",))
    network = cidrs.prefix(found["cidr"])
    holes: set[Network] = set()
    for each in found["except"].items() if "except" in found else ():
        hole = cidrs.prefix(each)
        if not within(hole, network) or hole == network:
            each.fail(f"must be a strict subset of cidr: {found['cidr'].text()} does not contain {each.text()}")
        holes.add(hole)
    excepts = tuple(sorted(holes, key=lambda hole: (int(hole.network_address), hole.prefixlen)))
    return CidrPeer(network, excepts, options.cidr_reach if options.kubernetes_like_cilium else Reach.ANYWHERE)


def _port(field: Field) -> PortMatch:
    found = field.mapping(("protocol", "port", "endPort"))
    protocol = found["protocol"].text() if "protocol" in found else "TCP"
    if protocol not in _SUPPORTED:
        found["protocol"].fail(
            f"unsupported value {quoted(protocol)}: supported values: " + ", ".join(f'"{one}"' for one in _SUPPORTED)
        )
    numbers = PROTOCOLS[protocol]
    if "port" not in found:
        if "endPort" in found:
            found["endPort"].fail("may not be specified when `port` is not specified")
        return PortMatch(numbers)
    if isinstance(found["port"].value, str):
        if "endPort" in found:
            found["endPort"].fail("may not be specified when `port` is non-numeric")
        return PortMatch(numbers, name=port_name(found["port"]))
    first = found["port"].number(1, 65535)
    last = found["endPort"].number(1, 65535) if "endPort" in found else first
    if last < first:
        found["endPort"].fail("must be greater than or equal to `port`")
    return PortMatch(numbers, first, last)


def port_name(field: Field) -> str:
    """The name of a container port."""
    text = field.text()
    if not _PORT_NAME.fullmatch(text):
        hint = ": write a number without quotes" if text.isdecimal() else ""
        rule = "at most 15 lower case letters, digits and '-', a letter among them"
        field.fail(f"{quoted(text)} is not a port name: {rule}{hint}")
    return text
