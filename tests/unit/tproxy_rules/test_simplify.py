"""A simplified table gives every packet the verdict of the original table, and is not longer."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tproxy_rules.desired import MAX_TIERS, Desired, Endpoint, Entry, Table, Tier, Verdict, union
from tproxy_rules.digest import digest
from tproxy_rules.fake import FakeBackend, Packet
from tproxy_rules.simplify import simplified

PASS, ALLOW, STEER, DENY = Verdict.PASS, Verdict.ALLOW, Verdict.STEER, Verdict.DENY
POD = "10.1.0.9"
CLOSED = Tier((), closed=True)
PEERS = {"10.0.0.1": 1, "10.0.0.2": 2}
PACKETS = [Packet(peer, POD, protocol, port) for peer, protocol, port in product(PEERS, (1, 6, 17), (1, 2, 3))]


def entry(verdict: Verdict, *peers: int, protocol: int = 6, ports: tuple[int, int] = (0, 65535)) -> Entry:
    return Entry(verdict, protocol, *ports, any_peer=not peers, peers=peers)


ANYTHING = [entry(verdict, protocol=-1) for verdict in (PASS, ALLOW, DENY)]
SOMETHING = st.builds(
    lambda verdict, peers, protocol, ports: entry(
        verdict, *peers, protocol=6 if verdict is STEER else protocol, ports=ports
    ),
    st.sampled_from(Verdict),
    st.sampled_from(((), (1,), (2,), (1, 2))),
    st.sampled_from((1, 6, 17)),
    st.sampled_from(((1, 1), (1, 2), (2, 3), (0, 65535))),
)
STAGES = st.lists(SOMETHING | st.sampled_from(ANYTHING), max_size=3).map(lambda some: tuple(sorted(set(some))))
TABLES = st.lists(st.builds(Tier, st.lists(STAGES, max_size=4).map(tuple), st.booleans()), max_size=4).map(
    lambda tiers: Table(tuple(tiers))
)


def fates(table: Table) -> list[object]:
    backend = FakeBackend()
    identities = tuple((f"{address}/32", number) for address, number in PEERS.items())
    backend.apply(Desired(identities=identities, endpoints=(Endpoint(1, (POD,), ingress=table),)))
    return [backend.verdict_of(replace(packet, interface="eth0")) for packet in PACKETS]


def size(table: Table) -> tuple[int, int]:
    return len(table.tiers), sum(len(tier.stages) for tier in table.tiers)


@given(TABLES)
def test_the_law_is_kept(table: Table) -> None:
    short = simplified(table)
    assert fates(short) == fates(table)
    assert simplified(short) == short
    assert size(short) <= size(table)


def test_a_union_stays_what_it_is() -> None:
    table = union(sorted((entry(ALLOW, 1), entry(STEER, 2), entry(DENY, 3), entry(ALLOW, protocol=17))))
    assert simplified(table) == table
    assert simplified(union(())) == union(())
    assert simplified(Table((Tier((), closed=False),))) == Table(())


def one_by_one(*ordered: Entry, closed: bool = False) -> Table:
    return Table((Tier(tuple((one,) for one in ordered), closed),))


def test_ordered_rules_are_as_many_stages_as_their_conflicts_need() -> None:
    web, everyone = (80, 80), entry(DENY)
    apart = (entry(DENY, 1), entry(ALLOW, 3), entry(DENY, 5), entry(ALLOW, 4), entry(DENY, 1, protocol=17))
    assert simplified(one_by_one(*apart)) == Table((Tier((tuple(sorted(apart)),), closed=False),))
    exceptions = [
        one for peer in range(1, 100) for one in (entry(ALLOW, peer, ports=web), entry(DENY, peer), entry(DENY, 500))
    ]
    found = simplified(one_by_one(*exceptions, entry(ALLOW, 500), everyone))
    assert [{one.verdict for one in stage} for stage in found.tiers[0].stages] == [{ALLOW, DENY}, {DENY}]
    wins = (entry(DENY, 1), entry(ALLOW, 1, 2), entry(DENY, 2, 3), entry(ALLOW, 3, 4))
    assert len(simplified(one_by_one(*wins)).tiers[0].stages) == 2
    assert len(simplified(one_by_one(*reversed(wins), closed=True)).tiers[0].stages) == 2


def test_too_much_to_compare_is_left_in_its_order() -> None:
    crowd = tuple(range(1, 30_001))
    ordered = [entry(verdict, *crowd, ports=(port, port)) for port in range(1, 50) for verdict in (ALLOW, DENY)]
    found = simplified(one_by_one(*ordered, closed=True))
    assert fates(found) == fates(one_by_one(*ordered, closed=True))


def test_what_cannot_be_reached_is_left_out() -> None:
    closed = Tier(((entry(ALLOW, 1),),), closed=True)
    assert simplified(Table((closed, closed))) == Table((closed,))
    everything = Tier(((entry(ALLOW, protocol=-1),), (entry(DENY, 1),)), closed=False)
    assert simplified(Table((everything, closed))) == Table((Tier(everything.stages[:1], closed=True),))


def test_passing_is_kept_where_it_leads_past_something() -> None:
    admin = Tier(((entry(PASS, 1),), (entry(DENY),)), closed=False)
    closed = Tier(((entry(ALLOW, 2),),), closed=True)
    assert simplified(Table((admin, closed))) == Table((admin, closed))
    assert simplified(Table((admin,))) == Table((replace(admin, stages=((entry(ALLOW, 1),), (entry(DENY),))),))


@given(TABLES)
def test_equal_tables_have_equal_digests_whatever_is_empty_in_them(table: Table) -> None:
    padded = Table(tuple(Tier((), closed=False) for _ in table.tiers) + table.tiers)
    ours, theirs = (Desired(endpoints=(Endpoint(1, (POD,), ingress=one),)) for one in (table, padded))
    assert digest(ours) == digest(theirs)


def test_more_tiers_than_a_kernel_nests_are_closed(caplog: pytest.LogCaptureFixture) -> None:
    def passing(many: int) -> Table:
        return Table((*(Tier(((entry(PASS, 1),), (entry(DENY, 1, 2),)), closed=False) for _ in range(many)), CLOSED))

    most = passing(MAX_TIERS - 1)
    assert simplified(most) == most
    assert not caplog.records
    assert simplified(passing(MAX_TIERS)) == union(())
    assert f"{MAX_TIERS + 1} tiers" in caplog.text
