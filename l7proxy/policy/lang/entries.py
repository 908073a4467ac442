"""Converts one entry of ingress, egress, ingressDeny or egressDeny of a Cilium policy into rules.

Each toPorts and each icmps item becomes one rule, and so does an entry without either. Only fields that are not
supported fail, and they are reported by name: an allow rule that only adds peers or queries (toFQDNs, rules.dns)
allows nothing; one with a further requirement (TLS, server names, a listener, authentication) denies what it covers,
because another rule may allow the same traffic without the requirement.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

from l7proxy.model.labels import RESERVED, Selector
from l7proxy.model.verdict import Action, Direction
from l7proxy.policy.l7 import DENIED, kind_of
from l7proxy.policy.lang import dns, icmp, peers, tls
from l7proxy.policy.lang.document import Document
from l7proxy.policy.lang.fields import Field, quoted
from l7proxy.policy.lang.http import http_rule
from l7proxy.policy.lang.ports import ports
from l7proxy.policy.rules import AnyPeer, DnsRules, EveryPeer, HttpRules, L7Rules, Peer, PortMatch, Rule

_AUTHENTICATION: Final = ("disabled", "required", "test-always-fail")


@dataclass(frozen=True, slots=True)
class Scope:
    """What all entries of one spec share. `subject` None: nodes, for which policy is not enforced."""

    document: Document
    subject: Selector | None
    default_deny: Mapping[Direction, bool]
    log: str

    @property
    def for_init(self) -> bool:
        found = self.subject.requirements if self.subject else ()
        return any(each.source == RESERVED and each.key == "init" for each in found)


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of ingress, egress, ingressDeny or egressDeny.

    `who` are its peers, `covered` all peers that it may mean. `refusal`: why all of `covered` are denied.
    """

    scope: Scope
    direction: Direction
    action: Action
    who: tuple[Peer, ...] | None
    covered: tuple[Peer, ...] | None
    refusal: str = ""

    @property
    def document(self) -> Document:
        return self.scope.document

    def rule(
        self,
        at: Field,
        what: tuple[PortMatch, ...] | None = None,
        *,
        l7: L7Rules | None = None,
        refusal: str = "",
    ) -> Iterator[Rule]:
        scope, refusal = self.scope, self.refusal or refusal
        if scope.subject is None:
            return
        unenforced = l7 is not None and not kind_of(l7).enforced
        yield Rule(
            ref=scope.document.counted_ref(at.at),
            subject=scope.subject,
            direction=self.direction,
            action=Action.DENY if refusal else self.action,
            peers=_but_the_host(self.covered, self.direction) if refusal else () if unenforced else self.who,
            ports=what,
            l7=l7,
            default_deny=scope.default_deny[self.direction],
            refusal=refusal,
            log=scope.log,
        )


def rules_of(place: Field, direction: Direction, action: Action, scope: Scope) -> Iterator[Rule]:
    """The rules of one entry: one for each toPorts or icmps item, else one for the entry."""
    deny = action is Action.DENY
    fields = (*peers.names(direction, deny=deny), "icmps", "toPorts", *(() if deny else ("authentication",)))
    found = place.mapping(fields)
    icmps = found["icmps"].items() if "icmps" in found else []
    cells = found["toPorts"].items() if "toPorts" in found else []
    if icmps:
        _check_icmps(place, found["icmps"], cells, scope.document)
    document = scope.document
    read = partial(peers.peers, place, found, direction, document, deny=deny, for_init=scope.for_init)
    who: tuple[Peer, ...] | None = document.part(read, ())
    for name in place.without_value():
        document.note(
            Field(None, place.key(name)), "has no value, the same as an absent field; use [] for an empty list"
        )
    if who is None and not cells and not icmps:
        who = ()  # `{}` matches nothing
    asked = found.get("authentication")
    refusal = document.part(partial(_authentication, asked, document), "") if asked is not None else ""
    entry = Entry(scope, direction, action, who, who if peers.all_known(found) else peers.WORLD, refusal)
    if not cells and not icmps:
        yield from entry.rule(place)
    for cell in icmps:
        yield from document.collect(partial(_messages, cell, entry))
    for cell in cells:
        yield from document.collect(partial(_cell, cell, entry))


def _messages(cell: Field, entry: Entry) -> Iterator[Rule]:
    """One icmps item."""
    yield from entry.rule(cell, icmp.messages(cell))


def _check_icmps(place: Field, icmps: Field, cells: list[Field], document: Document) -> None:
    if not document.options.icmp:
        what = 'ICMP rules can only be applied when the "enable-icmp-rules" flag is set'
        icmps.fail(what, unsupported=True)
    if cells:
        place.fail("the ICMPs block may only be present without ToPorts. Define a separate rule to use ToPorts")


def _authentication(field: Field, document: Document) -> str:
    """The reason to deny, because authentication is not supported; "" when it is `disabled`."""
    found = field.mapping(("mode",), required=("mode",))
    mode = found["mode"].text()
    if mode not in _AUTHENTICATION:
        found["mode"].fail(f"must be {', '.join(_AUTHENTICATION)}, not {quoted(mode)}")
    return "" if mode == "disabled" else document.unenforceable(field, DENIED)


def _cell(cell: Field, entry: Entry) -> Iterator[Rule]:
    """One toPorts item."""
    document = entry.document
    if entry.action is Action.DENY:
        found = cell.mapping(("ports",))
        yield from entry.rule(cell, ports(found["ports"], document, l7=None) if "ports" in found else ())
        return
    found = cell.mapping(("ports", "rules", *tls.FIELDS))
    at, l7 = _l7(found["rules"], entry) if "rules" in found else (cell, None)
    what = ports(found["ports"], document, l7=l7) if "ports" in found else ()
    names, closed = tls.read(cell, found, document, entry.direction, l7=l7 is not None)
    if isinstance(l7, DnsRules) and not what:
        cell.fail("port 53 must be specified for DNS rules")
    if l7 is not None and not kind_of(l7).enforced:
        document.unenforceable(at, kind_of(l7).unenforced)
    refusal = "; ".join([document.unenforceable(field, DENIED) for field in closed])
    yield from entry.rule(cell, what, l7=l7 or names, refusal=refusal)


def _l7(field: Field, entry: Entry) -> tuple[Field, L7Rules | None]:
    """The L7 rules and their field. Empty lists count as no rules, so nothing is redirected."""
    found = field.mapping(("http", "dns"), later=("kafka", "l7proto", "l7"))
    http = found["http"].items() if "http" in found else []
    queries = found["dns"].items() if "dns" in found else []
    if entry.scope.subject is None and (http or queries) and entry.direction is Direction.INGRESS:
        field.fail("L7 policy is not supported on host ingress yet")
    if entry.scope.subject is None and http:
        field.fail("L7 protocol HTTP is not supported on host egress yet")
    if len(found) > 1:
        field.fail("multiple L7 protocol rule types specified in single rule")
    if queries and entry.direction is Direction.INGRESS:
        found["dns"].fail("DNS rules are not allowed on ingress")
    if queries:
        return found["dns"], DnsRules(tuple(map(dns.rule, queries)))
    if http:
        return found["http"], HttpRules(tuple(found["http"].each(partial(http_rule, document=entry.document))))
    return field, None


def _but_the_host(who: tuple[Peer, ...] | None, direction: Direction) -> tuple[Peer, ...] | None:
    """The peers to deny: on ingress without the local host, for kubelet's probes."""
    if direction is Direction.EGRESS:
        return who
    return (EveryPeer(() if who is None else (AnyPeer(who),), none_of=peers.HOST),)
