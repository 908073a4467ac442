"""Evaluation of conntrack entries against the fake's semantics, and which ones a new desired state must recheck."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from tproxy_rules.desired import Desired, Endpoint, Entry, Frontend, Port, Settings, Table, Tier, Verdict
from tproxy_rules.evaluate import Connection, Evaluator, is_wider
from tproxy_rules.fake import FakeBackend, Fate, Packet
from tproxy_rules.revoke import taken

NODE = "10.1.0.1"
PODS = ("10.1.0.11", "10.1.0.12", "fd00:1::b")
OTHERS = ("10.2.0.5", "10.3.0.6", "8.8.8.8", "fd00:2::5", "2001:db8::1")
VETHS = dict(zip(PODS, ("veth1", "veth2", "veth3"), strict=True))
IDENTITIES = st.integers(5, 8)
PORTS = st.sampled_from((0, 53, 80, 0x0800, 65535))


def _entry(verdict: Verdict, protocol: int, ports: tuple[int, int], peers: list[int]) -> Entry:
    fits = protocol in (6, 17) or verdict is not Verdict.STEER
    first, last = (min(ports), max(ports)) if protocol in (6, 17, 1) else (0, 65535)
    return Entry(verdict if fits else Verdict.ALLOW, protocol, first, last, any_peer=not peers, peers=tuple(peers))


ENTRIES = st.builds(
    _entry,
    st.sampled_from(Verdict),
    st.sampled_from((-1, 6, 17, 1, 47)),
    st.tuples(PORTS, PORTS),
    st.lists(IDENTITIES, max_size=2),  # in any order: a desired state need not be canonical
)
STAGES = st.lists(ENTRIES, max_size=3).map(tuple)
TABLES = st.builds(
    lambda tiers: Table(tuple(Tier(tuple(stages), closed) for stages, closed in tiers)),
    st.lists(st.tuples(st.lists(STAGES, max_size=2), st.booleans()), max_size=2),
)
PREFIXES = st.dictionaries(
    st.sampled_from(
        (
            "0.0.0.0/0",
            "10.0.0.0/8",
            "10.2.0.0/16",
            "10.2.0.5/32",
            "10.1.0.11/32",
            "10.3.0.6/32",
            "fd00::/8",
            "fd00:1::b/128",
        )
    ),
    IDENTITIES,
).map(lambda found: tuple(found.items()))
ENDPOINTS = st.lists(st.tuples(st.none() | TABLES, st.none() | TABLES), min_size=3, max_size=3).map(
    lambda tables: tuple(
        Endpoint(number, (address,), Port(VETHS[address]), *tables[number - 1])
        for number, address in enumerate(PODS, 1)
    )
)
LISTENERS = st.sampled_from((((6, 15001),), ((6, 15001), (17, 15053)), ()))
SETTINGS = st.builds(Settings, listeners=LISTENERS)
SNAPSHOTS = st.builds(Desired, settings=SETTINGS, identities=PREFIXES, endpoints=ENDPOINTS, host_identity=st.just(5))
CONNECTIONS = st.builds(
    Connection,
    st.sampled_from((NODE, *PODS, *OTHERS)),
    st.sampled_from((*PODS, *OTHERS)),
    st.sampled_from((6, 17, 1, 47)),
    PORTS,
).filter(lambda one: (":" in one.source) == (":" in one.destination))
MEANING = {Fate.PASS: Verdict.ALLOW, Fate.STEER: Verdict.STEER, Fate.REFUSE: Verdict.DENY}


@given(SNAPSHOTS, CONNECTIONS)
def test_the_judge_says_what_the_law_says(snapshot: Desired, one: Connection) -> None:
    fake = FakeBackend()
    fake.apply(snapshot)
    interface = "" if one.source == NODE else VETHS.get(one.source, "uplink")
    fate = fake.verdict_of(Packet(one.source, one.destination, one.protocol, one.port, interface))
    assert Evaluator(snapshot, {NODE}).of(one) is MEANING[fate]


@given(SNAPSHOTS, SNAPSHOTS, CONNECTIONS)
def test_what_a_change_refuses_is_looked_at(before: Desired, after: Desired, one: Connection) -> None:
    _whatever_is_newly_refused_is_looked_at(before, after, one)


@given(SNAPSHOTS, st.integers(0, 2), ENTRIES, CONNECTIONS)
def test_what_one_more_entry_refuses_is_looked_at(before: Desired, number: int, more: Entry, one: Connection) -> None:
    """A small change, which usually does not need a check of all entries."""
    changed = before.endpoints[number]
    if changed.ingress is None or not changed.ingress.tiers or not changed.ingress.tiers[0].stages:
        return
    first = changed.ingress.tiers[0]
    wider = replace(first, stages=((*first.stages[0], more), *first.stages[1:]))
    changed = replace(changed, ingress=Table((wider, *changed.ingress.tiers[1:])))
    after = replace(before, endpoints=(*before.endpoints[:number], changed, *before.endpoints[number + 1 :]))
    _whatever_is_newly_refused_is_looked_at(before, after, one)


def _whatever_is_newly_refused_is_looked_at(before: Desired, after: Desired, one: Connection) -> None:
    refused = [Evaluator(snapshot, {NODE}).of(one) is Verdict.DENY for snapshot in (before, after)]
    if refused == [False, True]:
        assert {one.source, one.destination} & taken(before, after).addresses(after)


@given(TABLES, TABLES, CONNECTIONS, SETTINGS)
def test_a_wider_table_refuses_nothing_more(before: Table, more: Table, one: Connection, settings: Settings) -> None:
    tiers = zip(before.tiers, more.tiers, strict=False)
    joined = [
        Tier(tuple((*a, *b) for a, b in zip(old.stages, new.stages, strict=False)), old.closed) for old, new in tiers
    ]
    for after in (Table(tuple(joined)), more):
        if is_wider(before, after, settings.redirected):
            old, new = (
                Evaluator(Desired(settings, endpoints=(Endpoint(1, (one.destination,), ingress=table),))).of(one)
                for table in (before, after)
            )
            assert old is Verdict.DENY or new is not Verdict.DENY


def test_a_service_address_is_the_proxys_to_judge() -> None:
    closed = Endpoint(1, (PODS[0],), egress=Table((Tier((), closed=True),)))
    snapshot = Desired(endpoints=(closed,), frontends=(Frontend("10.96.0.9", 6, 80, steer=True),))
    judge = Evaluator(snapshot)
    assert judge.of(Connection(PODS[0], "10.96.0.9", 6, 80)) is Verdict.STEER
    assert judge.of(Connection(PODS[0], "10.96.0.9", 6, 81)) is Verdict.DENY


A, B = Endpoint(1, ("10.1.0.11",), Port("veth1")), Endpoint(2, ("10.1.0.12",), Port("veth2"))
KNOWN = (("10.1.0.11/32", 11), ("10.1.0.12/32", 12), ("10.2.0.5/32", 25))


def test_whose_address_is_somebody_elses() -> None:
    """The pod is gone, or its address has another pod or interface; a pod with changed labels does not count."""
    before = Desired(identities=KNOWN, endpoints=(A, B))

    def left(after: Desired) -> set[str]:
        return set(taken(before, after).left)

    assert left(replace(before, identities=KNOWN[1:], endpoints=(B,))) == {"10.1.0.11"}
    assert left(replace(before, endpoints=(B,))) == set(), "no policy and no interface, but an identity: still there"
    assert left(replace(before, endpoints=(replace(A, id=7), B))) == set(), (
        "another number for what the interface leads to"
    )
    assert left(replace(before, endpoints=(replace(A, id=7, port=None), B))) == {"10.1.0.11"}
    assert left(replace(before, endpoints=(replace(A, port=Port("veth9")), B))) == {"10.1.0.11"}
    assert left(replace(before, endpoints=(replace(A, port=None), B))) == set()
    assert left(replace(before, identities=(("10.1.0.11/32", 99), *KNOWN[1:]))) == set()


def test_another_nodes_address_that_is_somebody_elses_loses_all_but_tcp() -> None:
    before = Desired(identities=KNOWN, endpoints=(A, B))
    for after in (KNOWN[:2], (*KNOWN[:2], ("10.2.0.5/32", 26))):
        assert taken(before, replace(before, identities=after)).moved == {"10.2.0.5"}
    assert not taken(before, before)
    assert not taken(before, replace(before, identities=(*KNOWN, ("10.2.0.6/32", 25)))), "one more, and no policy"
