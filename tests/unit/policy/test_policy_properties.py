"""Laws of any policy: order does not matter, deny beats allow, decide equals a simple evaluator, parse is safe.

The evaluators here follow the semantics directly, one rule at a time, without compiling anything: slow, and hard to
get wrong.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_network
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from l7proxy.errors import PolicyError
from l7proxy.model.endpoint import Endpoint
from l7proxy.model.http import Request
from l7proxy.model.identity import HOST, RESERVED_IDENTITIES, Identity
from l7proxy.model.ids import EndpointId, IdentityId
from l7proxy.model.labels import Label, LabelSet, Operator, Requirement, Selector
from l7proxy.model.net import Network, within
from l7proxy.model.ref import RuleRef
from l7proxy.model.verdict import Action, Direction, DropReason, Verdict
from l7proxy.policy import decide, lang
from l7proxy.policy.compile import Compiler, compile_policies
from l7proxy.policy.rules import CidrPeer, HeaderMatch, HttpRule, HttpRules, Peer, PortMatch, Rule, SelectorPeer

if TYPE_CHECKING:
    from tests.unit.policy.conftest import Bench

# A small universe, so that rules often overlap.

KEYS, VALUES = ("a", "b"), ("1", "2")
PORTS, PROTOCOLS = (79, 80, 81, 443), (6, 17)
NAMES = ("http", "dns")
NETWORKS: tuple[Network, ...] = tuple(
    ip_network(text) for text in ("0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.1.1/32", "::/0", "2001:db8::/32")
)
REF = RuleRef("K", "ns", "p")


def identity(number: int, labels: Mapping[str, str], source: str = "k8s", **more: Any) -> Identity:
    return Identity(IdentityId(number), LabelSet.of(Label(source, k, v) for k, v in labels.items()), **more)


pods = st.builds(
    lambda labels, ports: (labels, ports),
    st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES)),
    st.frozensets(st.tuples(st.sampled_from(NAMES), st.sampled_from(PROTOCOLS), st.sampled_from(PORTS)), max_size=2),
)


@st.composite
def identity_tables(draw: st.DrawFn) -> dict[int, Identity]:
    table = {1: identity(1, {"host": ""}, "reserved"), 6: identity(6, {"remote-node": ""}, "reserved")}
    for number, network in enumerate(NETWORKS, 1000):
        table[number] = identity(number, {f"world-ipv{network.version}": ""}, "reserved", cidr=network)
    table[7] = identity(7, {"kube-apiserver": ""}, "reserved", cidr=NETWORKS[3])  # an address, but not an outside one
    for number, (labels, ports) in enumerate(draw(st.lists(pods, max_size=5)), 300):
        table[number] = identity(number, labels, named_ports=ports)
    return table


selectors = st.lists(
    st.builds(
        lambda source, key, operator, values: Requirement(
            source, key, operator, values if operator in (Operator.IN, Operator.NOT_IN) else ()
        ),
        st.sampled_from(("k8s", "any", "reserved")),
        st.sampled_from((*KEYS, "host", "world-ipv4")),
        st.sampled_from(Operator),
        st.sampled_from((("1",), ("2",), ("1", "2"), ("",))),
    ),
    max_size=2,
).map(lambda requirements: Selector(tuple(requirements)))


@st.composite
def cidr_peers(draw: st.DrawFn) -> CidrPeer:
    network = draw(st.sampled_from(NETWORKS))
    holes = [other for other in NETWORKS if within(other, network)]
    return CidrPeer(network, tuple(draw(st.lists(st.sampled_from(holes), max_size=2, unique=True))))


peers: st.SearchStrategy[tuple[Peer, ...] | None] = st.none() | st.lists(
    selectors.map(SelectorPeer) | cidr_peers(), max_size=2
).map(tuple)
port_matches = st.builds(
    lambda protocols, first, last, name: (
        PortMatch(protocols, min(first, last), max(first, last), name) if not name else PortMatch(protocols, name=name)
    ),
    st.frozensets(st.sampled_from(PROTOCOLS), min_size=1),
    st.sampled_from((0, *PORTS)),
    st.sampled_from((*PORTS, 65535)),
    st.sampled_from(("", "", *NAMES)),
)
http_rules = st.builds(
    HttpRule,
    ref=st.just(REF),
    method=st.sampled_from((None, "GET", "GET|POST", "P.*", ".*")),
    path=st.sampled_from((None, "/", "/a", "/a.*", "/(a|b)/[0-9]+", "/b", ".*", "(")),
    host=st.sampled_from((None, "h", "h(:80)?", "H")),
    headers=st.lists(
        st.builds(
            HeaderMatch,
            st.sampled_from(("x-a", "x-b")),
            st.sampled_from((None, "1", "1,2", ".*", "[0-9]")),
        ).flatmap(
            lambda match: (
                st.just(match) if match.value is None else st.sampled_from((match, replace(match, pattern=match.value)))
            )
        ),
        max_size=2,
    ).map(tuple),
    number=st.integers(1, 9),
)
rules = st.builds(
    lambda rule, http: (
        replace(rule, l7=HttpRules(http), ports=tuple(replace(p, protocols=frozenset({6})) for p in rule.ports))
        if http and rule.action is Action.ALLOW and rule.ports
        else rule
    ),
    st.builds(
        Rule,
        ref=st.builds(
            RuleRef, st.just("K"), st.just("ns"), st.sampled_from(("p", "q")), st.sampled_from(("r1", "r2", "r10"))
        ),
        subject=st.sampled_from((Selector(), Selector((Requirement("k8s", "a", Operator.IN, ("1",)),)))),
        direction=st.sampled_from((Direction.INGRESS, Direction.EGRESS)),
        action=st.sampled_from((Action.ALLOW, Action.ALLOW, Action.DENY)),
        peers=peers,
        ports=st.none() | st.lists(port_matches, max_size=2).map(tuple),
        default_deny=st.booleans(),
    ),
    st.none() | st.lists(http_rules, min_size=1, max_size=3).map(tuple),
)
rule_lists = st.lists(rules, max_size=6)


def endpoint(number: int, labels: Mapping[str, str], ports: frozenset[tuple[str, int, int]]) -> Endpoint:
    return Endpoint(
        EndpointId(number), "ns", f"e{number}", IdentityId(300), identity(0, labels).labels, ("10.9.9.9",), ports
    )


endpoints = st.lists(pods, min_size=1, max_size=3).map(
    lambda drawn: [endpoint(number, labels, ports) for number, (labels, ports) in enumerate(drawn, 1)]
)
requests = st.builds(
    Request,
    method=st.sampled_from((b"GET", b"POST", b"PUT", b"\xff")),
    path=st.sampled_from((b"/", b"/a", b"/ab", b"/a/1", b"/b/22", b"/b", b"/a\xff", b"(")),
    host=st.sampled_from((b"h", b"h:80", b"H")),
    headers=st.lists(
        st.tuples(st.sampled_from((b"x-a", b"x-b")), st.sampled_from((b"", b"1", b"2", b"1,2", b"\xff"))), max_size=3
    ),
)


# The slow and obvious evaluator.


def peer_matches(peer: Peer, who: Identity) -> bool:
    if isinstance(peer, SelectorPeer):
        return peer.selector.matches(who.labels)
    assert isinstance(peer, CidrPeer)
    if who.cidr is None or not any(label.source == "reserved" and "world" in label.key for label in who.labels.labels):
        return False
    return within(who.cidr, peer.network) and all(not within(who.cidr, hole) for hole in peer.excepts)


def port_matches_flow(match: PortMatch, rule: Rule, own: Endpoint, who: Identity, protocol: int, port: int) -> bool:
    if protocol not in match.protocols:
        return False
    if not match.name:
        return match.first <= port <= match.last
    holder = own.named_ports if rule.direction is Direction.INGRESS else who.named_ports
    return (match.name, protocol, port) in holder


def covers(rule: Rule, own: Endpoint, who: Identity, protocol: int, port: int) -> bool:
    by_peer = rule.peers is None or any(peer_matches(peer, who) for peer in rule.peers)
    by_port = rule.ports is None or any(port_matches_flow(m, rule, own, who, protocol, port) for m in rule.ports)
    return by_peer and by_port


def re_matches(pattern: str | None, text: bytes) -> bool:
    if pattern is None:
        return True
    try:
        return re.fullmatch(pattern, text.decode()) is not None
    except (re.error, UnicodeDecodeError):
        return False


def request_matches(rule: HttpRule, request: Request) -> bool:
    for match in rule.headers:
        values = [value for name, value in request.headers if name == match.name.encode()]
        joined = b",".join(values)
        if not values:
            return False
        same = match.value is None or match.value.encode() == joined
        if not (same or (match.pattern is not None and re_matches(match.pattern, joined))):
            return False
    line = ((rule.method, request.method), (rule.path, request.path), (rule.host, request.host))
    return all(re_matches(pattern, text) for pattern, text in line)


def obvious(
    all_rules: list[Rule],
    own: Endpoint,
    direction: Direction,
    who: Identity,
    protocol: int,
    port: int,
    request: Request,
) -> tuple[str, bool]:
    """(the L4 result, whether the request passes), directly from the semantics, sentence by sentence."""
    governing = [rule for rule in all_rules if rule.direction is direction and rule.subject.matches(own.labels)]
    default_deny = any(rule.default_deny for rule in governing)
    covering = [rule for rule in governing if covers(rule, own, who, protocol, port)]
    if any(rule.action is Action.DENY for rule in covering):
        return "denied", False
    steering = [rule for rule in covering if rule.http]
    plain = [rule for rule in covering if not rule.http]
    local_host = direction is Direction.INGRESS and who.id == HOST
    everything_passes = bool(plain) or local_host or not default_deny
    if steering:
        matched = any(request_matches(http, request) for rule in steering for http in rule.http)
        return "steered", everything_passes or matched
    return ("allowed", True) if everything_passes else ("nothing allows", False)


def said(policy: decide.PortPolicy) -> str:
    match policy.l4.verdict, policy.l4.drop_reason:
        case Verdict.DROPPED, DropReason.POLICY_DENY:
            return "denied"
        case Verdict.DROPPED, _:
            return "nothing allows"
        case Verdict.REDIRECTED, _:
            return "steered"
    return "allowed"


@settings(max_examples=250, deadline=None)
@given(
    rule_lists, endpoints, identity_tables(), st.sampled_from((1, 6, 17)), st.sampled_from((*PORTS, 0, 65535)), requests
)
def test_decide_agrees_with_the_obvious(
    all_rules: list[Rule],
    local: list[Endpoint],
    identities: dict[int, Identity],
    protocol: int,
    port: int,
    request_: Request,
) -> None:
    compiled = compile_policies(all_rules, local, identities)
    for own in local:
        for direction in (Direction.INGRESS, Direction.EGRESS):
            table = compiled[own.id].direction(direction)
            for who in identities.values():
                answer = decide.port(table, who.id, protocol, port)
                passes = answer.judge(request_).verdict is not Verdict.DROPPED
                expected = obvious(all_rules, own, direction, who, protocol, port, request_)
                assert (said(answer), passes) == expected, (own, direction, who)


@settings(max_examples=150, deadline=None)
@given(rule_lists, endpoints, identity_tables(), st.randoms(use_true_random=False))
def test_order_and_doubles_do_not_matter(
    all_rules: list[Rule], local: list[Endpoint], identities: dict[int, Identity], random: Any
) -> None:
    first = compile_policies(all_rules, local, identities)
    shuffled, other, table = [*all_rules, *all_rules], list(local), list(identities.items())
    for each in (shuffled, other, table):
        random.shuffle(each)
    second = compile_policies(iter(shuffled), iter(other), dict(table))
    assert first == second
    assert repr(first) == repr(second)


@settings(max_examples=150, deadline=None)
@given(rule_lists, endpoints, identity_tables(), rules)
def test_deny_always_beats_allow(
    all_rules: list[Rule], local: list[Endpoint], identities: dict[int, Identity], deny: Rule
) -> None:
    deny = replace(deny, action=Action.DENY, l7=None)
    before, after = compile_policies([deny], local, identities), compile_policies([*all_rules, deny], local, identities)
    for own in local:
        for who, port in ((who, port) for who in identities for port in PORTS):
            alone = decide.port(before[own.id].direction(deny.direction), who, 6, port)
            if alone.l4.drop_reason is DropReason.POLICY_DENY:
                together = decide.port(after[own.id].direction(deny.direction), who, 6, port)
                assert together.l4.drop_reason is DropReason.POLICY_DENY


@settings(max_examples=150, deadline=None)
@given(rule_lists, endpoints, identity_tables(), rules)
def test_another_allow_never_takes_anything_away_under_default_deny(
    all_rules: list[Rule], local: list[Endpoint], identities: dict[int, Identity], more: Rule
) -> None:
    more = replace(more, action=Action.ALLOW, default_deny=True)
    base = [*all_rules, replace(more, peers=(), ports=None, l7=None)]
    before, after = compile_policies(base, local, identities), compile_policies([*base, more], local, identities)
    for own in local:
        for who, port in ((who, port) for who in identities for port in PORTS):
            was = decide.port(before[own.id].direction(more.direction), who, 6, port)
            now = decide.port(after[own.id].direction(more.direction), who, 6, port)
            assert now.l4.allowed or not was.l4.allowed


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(rule_lists, endpoints, identity_tables()), min_size=2, max_size=5), st.data())
def test_a_compiler_with_a_memory_answers_like_a_new_one(
    worlds: list[tuple[list[Rule], list[Endpoint], dict[int, Identity]]], data: st.DataObject
) -> None:
    """Each step changes rules, endpoints or identities, or all; equal values stay the same object."""
    compiler = Compiler()
    rules, local, identities = worlds[0]
    for step in worlds[1:]:
        before = compiler.compile(rules, local, identities)
        assert before == compile_policies(rules, local, identities)
        what = data.draw(st.sampled_from(["rules", "endpoints", "identities", "nothing", "all"]))
        rules = step[0] if what in ("rules", "all") else rules
        local = step[1] if what in ("endpoints", "all") else local
        identities = step[2] if what in ("identities", "all") else identities
        after = compiler.compile(rules, local, identities)
        assert after == compile_policies(rules, local, identities)
        if what == "nothing":
            assert all(after[number] is before[number] for number in before)


@settings(max_examples=100, deadline=None)
@given(rule_lists, endpoints, identity_tables())
def test_tables_are_canonical(all_rules: list[Rule], local: list[Endpoint], identities: dict[int, Identity]) -> None:
    for policy in compile_policies(all_rules, local, identities).values():
        for table in (policy.ingress, policy.egress):
            if table is None:
                continue
            (tier,) = table.tiers
            (stage,) = tier.stages or ((),)
            assert len(set(stage)) == len(stage)
            written = [entry.action for entry in stage if entry.ref.kind != "built-in"]
            assert written == sorted(written, reverse=True)
            for entry in stage:
                assert entry.peers is None or (entry.peers and list(entry.peers) == sorted(set(entry.peers)))
                assert (entry.l7 is not None) == (entry.action is Action.REDIRECT)
                assert entry.protocol is not None or (entry.first, entry.last) == (0, 65535)


@settings(max_examples=300, deadline=None)
@given(st.lists(http_rules, min_size=1, max_size=8), st.lists(requests, min_size=1, max_size=6))
def test_a_table_agrees_with_one_rule_after_the_other(some: list[HttpRule], asked: list[Request]) -> None:
    table = decide.HttpTable(tuple(some))
    for request in [*asked, *asked]:  # the second round is answered from the cache
        decision = table.judge(request)
        assert decision.allowed is any(request_matches(rule, request) for rule in some)
        assert decision.allowed or decision.reason.startswith("no rule matched; nearest: policy ns/p rule ")


@settings(max_examples=300, deadline=None)
@given(st.lists(http_rules, min_size=1, max_size=8), requests)
def test_the_nearest_rule_has_most_clauses_satisfied(some: list[HttpRule], request: Request) -> None:
    assume(not any(request_matches(rule, request) for rule in some))
    some = [
        replace(rule, number=place, headers=tuple(dict.fromkeys(rule.headers))) for place, rule in enumerate(some, 1)
    ]

    def score(rule: HttpRule) -> tuple[int, int, int]:
        parts = [replace(HttpRule(REF), **{part: getattr(rule, part)}) for part in ("method", "path", "host")]
        parts += [HttpRule(REF, headers=(header,)) for header in rule.headers]
        held = [request_matches(part, request) for part in parts if part != HttpRule(REF)]
        return held.count(True), -held.count(False), -rule.number

    reason = decide.HttpTable(tuple(some)).judge(request).reason
    assert f" rule {max(some, key=score).number}, " in reason


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=12), st.binary(max_size=12))
def test_no_pattern_and_no_bytes_make_judging_raise(pattern: str, text: bytes) -> None:
    header = HeaderMatch("x-a", pattern, pattern)
    rule = HttpRule(REF, pattern, pattern, pattern, (header,))
    decide.HttpTable((rule,)).judge(Request(text, text, text, [(b"x-a", text)]))


# Documents.

WORDS = (
    *("apiVersion", "kind", "metadata", "name", "namespace", "labels", "description", "spec", "specs"),
    *("endpointSelector", "nodeSelector", "podSelector", "policyTypes", "enableDefaultDeny"),
    *("ingress", "egress", "ingressDeny", "egressDeny", "icmps", "toFQDNs"),
    *("fromEndpoints", "toEndpoints", "fromCIDR", "toCIDRSet", "fromCIDRSet", "cidr", "except", "fromEntities"),
    *("toPorts", "ports", "port", "endPort", "protocol", "rules", "http", "method", "path", "host", "headers"),
    *("matchLabels", "matchExpressions", "key", "operator", "values"),
    *("reserved:host", "$world", "io.kubernetes.pod.namespace"),
    *("fromNodes", "toServices", "toFQDNs", "icmps", "fields", "type", "family", "cidrGroupRef", "cidrGroupSelector"),
    *("k8sService", "serviceName", "k8sServiceSelector", "selector", "dns", "matchName", "matchPattern", "serverNames"),
    *("terminatingTLS", "secret", "listener", "envoyConfig", "authentication", "mode", "log", "value", "nodeSelector"),
)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8),
    st.sampled_from(("80", "0", "http", "TCP", "ANY", "10.0.0.0/8", "::/0", "all", "world", "In", "Exists", "default",
                     "/a.*", "(", "X-A: .*", "\ud800", "a" * 9000, "Ingress")),
)  # fmt: skip
DOCUMENTS = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=6) | st.integers(), inner, max_size=5)
    ),
    max_leaves=25,
)
KINDS = st.sampled_from(sorted(lang.LANGUAGES))


def check_safe(document: Any) -> None:
    """parse, notes and refuse: rules, or a PolicyError that names a field of the document; nothing else."""
    try:
        parsed = lang.parse(document)
        lang.notes(document)
    except PolicyError as error:
        assert error.message
        assert str(error).isprintable()
        assert str(error) in [str(fault) for fault in lang.faults(document)]
    else:
        assert parsed or lang.faults(document), "nothing is accepted and silently not enforced"
        assert all(fault.unsupported for fault in lang.faults(document))
    for rule in lang.refuse(document, "why"):
        assert rule.action is Action.DENY
        assert rule.refusal == "why"
        beyond = [labels for labels in RESERVED_IDENTITIES.values() if rule.subject.matches(labels)]
        assert not beyond, "a refusal never selects beyond pods"


@settings(max_examples=250, deadline=None)
@given(KINDS, DOCUMENTS, DOCUMENTS, DOCUMENTS)
def test_no_document_makes_parse_raise_anything_but_a_policy_error(
    which: tuple[str, str], metadata: Any, spec: Any, specs: Any
) -> None:
    group, kind = which
    check_safe({"apiVersion": f"{group}/v2", "kind": kind, "metadata": metadata, "spec": spec, "specs": specs})
    check_safe({"apiVersion": f"{group}/v2", "kind": kind, "metadata": {"name": "p"}, "spec": spec})


FULL = """
endpointSelector: {matchLabels: {app: server}, matchExpressions: [{key: v, operator: NotIn, values: ['1']}]}
enableDefaultDeny: {ingress: true, egress: false}
description: all that we know
log: {value: seen}
labels: [{key: a, value: b, source: k8s}]
ingress:
- fromEndpoints: [{}, {matchLabels: {'k8s:io.kubernetes.pod.namespace': other}}]
  toPorts:
  - ports: [{port: '80', protocol: TCP}, {port: http, protocol: TCP}, {port: '90', endPort: 99, protocol: TCP}]
    rules: {http: [{method: GET, path: '/a.*', host: h, headers: ['X-A: .*', 'X-B']}, {}]}
- fromCIDRSet: [{cidr: 10.0.0.0/8, except: [10.1.0.0/16]}]
- icmps: [{fields: [{type: 8}, {family: IPv6, type: EchoRequest}]}]
- fromEndpoints: [{}]
  authentication: {mode: required}
ingressDeny: [{fromEntities: [world]}]
egress:
- toCIDR: [192.0.2.0/24]
  toPorts: [{ports: [{port: '0'}]}]
- toEndpoints: []
- toServices:
  - k8sService: {serviceName: s, namespace: n}
    k8sServiceSelector: {selector: {matchLabels: {a: b}}, namespace: n}
- toCIDRSet: [{cidrGroupRef: g, except: [10.0.0.0/8]}, {cidrGroupSelector: {}}]
- toFQDNs: [{matchName: a.example}, {matchPattern: '*.example'}]
- toPorts:
  - ports: [{port: '53', protocol: ANY}]
    rules: {dns: [{matchPattern: '*', matchName: a}]}
  - ports: [{port: '443', protocol: TCP}]
    serverNames: [a.example, '**.example']
    terminatingTLS: {secret: {namespace: s, name: n}, certificate: c}
    originatingTLS: {secret: {name: n}, trustedCA: c}
    rules: {http: [{}]}
  - ports: [{port: '443'}]
    listener: {name: l, priority: 1, envoyConfig: {kind: CiliumEnvoyConfig, name: e}}
egressDeny: [{toEntities: [host], toPorts: [{ports: [{port: '22'}]}]}]
"""


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path]
    steps = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, inner in steps:
        found += places(inner, (*path, step))
    return found


@settings(max_examples=250, deadline=None)
@given(st.data(), DOCUMENTS)
def test_a_good_document_with_one_thing_changed_is_read_or_refused(
    bench: Bench, data: st.DataObject, junk: Any
) -> None:
    document = copy.deepcopy(bench.cnp(FULL))
    path = data.draw(st.sampled_from(places(document)[1:]))
    inner = document
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = junk
    check_safe(document)


def test_the_good_document_is_good(bench: Bench) -> None:
    assert len(lang.parse(bench.cnp(FULL))) == 14


@pytest.mark.parametrize("extra", ["x", "Ports", "httpp", "from", ""])
def test_an_unknown_key_is_refused_in_every_mapping_of_a_document(extra: str, bench: Bench) -> None:
    """In mappings with defined keys; below matchLabels and in metadata.labels any key is allowed."""
    good = bench.cnp(FULL)
    mappings = [path for path in places(good) if path[-1:] != ("matchLabels",) and isinstance(at(good, path), dict)]
    assert len(mappings) > 20
    for path in mappings:
        document = copy.deepcopy(good)
        at(document, path)[extra] = []
        with pytest.raises(PolicyError) as caught:
            lang.parse(document)
        assert caught.value.message.startswith(f"unknown field {json.dumps(extra)}"), path


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        value = value[step]
    return value


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_namespaced_policy_never_selects_beyond_its_namespace(bench: Bench, data: st.DataObject) -> None:
    key = st.sampled_from(
        (
            "app",
            "k8s:app",
            "any:app",
            "reserved:host",
            "$world",
            "io.kubernetes.pod.namespace",
            "k8s:io.kubernetes.pod.namespace",
        )
    )
    value = st.sampled_from(("x", "default", "other", ""))
    terms = st.one_of(
        st.builds(lambda k, o: {"key": k, "operator": o}, key, st.sampled_from(("Exists", "DoesNotExist"))),
        st.builds(
            lambda k, o, v: {"key": k, "operator": o, "values": v},
            key,
            st.sampled_from(("In", "NotIn")),
            st.lists(value, min_size=1, max_size=2),
        ),
    )
    selector = {
        "matchLabels": data.draw(st.dictionaries(key, value, max_size=2)),
        "matchExpressions": data.draw(st.lists(terms, max_size=2)),
    }
    document = bench.cnp("{ingress: [{}]}")
    document["spec"]["endpointSelector"] = selector
    foreign = [
        LabelSet.of([Label("k8s", "io.kubernetes.pod.namespace", "other"), Label("k8s", "app", "x")]),
        LabelSet.of([Label("reserved", "host")]),
        LabelSet.of([Label("reserved", "world"), Label("any", "io.kubernetes.pod.namespace", "default")]),
    ]
    for rule in (*lang.parse(document), *lang.refuse(document, "why")):
        assert not any(rule.subject.matches(labels) for labels in foreign)
