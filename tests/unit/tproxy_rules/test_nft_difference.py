"""The commands that change one table into another: only the difference, in an order that the kernel accepts."""

from __future__ import annotations

from dataclasses import replace

from tproxy_rules.desired import Desired, Endpoint, Entry, Stage, Table, Tier, Verdict, union
from tproxy_rules.digest import normalise
from tproxy_rules.memo import Memo
from tproxy_rules.nft import inet as nft_inet
from tproxy_rules.nft.policy import Asked, asked
from tproxy_rules.nft.table import alike, delta

ALLOW, DENY, PASS = Verdict.ALLOW, Verdict.DENY, Verdict.PASS


def entry(verdict: Verdict, *peers: int, port: int = 80) -> Entry:
    return Entry(verdict, 6, port, port, any_peer=not peers, peers=peers)


def pod(number: int, table: Table | None) -> Endpoint:
    return Endpoint(number, (f"10.1.0.{number}",), ingress=table)


WEB, DB = union((entry(ALLOW, 5, 6), entry(DENY, 7))), union((entry(ALLOW, 5, port=5432),))
NETS = (("10.2.0.0/16", 5), ("10.3.0.1/32", 6), ("10.3.0.2/32", 7))
SNAPSHOT = Desired(identities=NETS, endpoints=(pod(1, WEB), pod(2, WEB), pod(3, DB)))


def lines(old: Desired, new: Desired) -> list[str]:
    tables = [nft_inet.table(normalise(one)) for one in (old, new)]
    assert alike(*tables)
    return delta(*tables).splitlines()


def test_the_same_is_nothing() -> None:
    assert lines(SNAPSHOT, SNAPSHOT) == []


def test_an_address_is_one_element() -> None:
    grown = replace(SNAPSHOT, identities=(*NETS, ("10.3.0.3/32", 5)))
    assert lines(SNAPSHOT, grown) == ["add element inet l7proxy host4 { 10.3.0.3 : 0:5 }"]
    assert lines(grown, SNAPSHOT) == ["delete element inet l7proxy host4 { 10.3.0.3 }"]
    moved = replace(SNAPSHOT, identities=(*NETS[:2], ("10.3.0.2/32", 5)))
    assert lines(SNAPSHOT, moved) == [
        "delete element inet l7proxy host4 { 10.3.0.2 }",
        "add element inet l7proxy host4 { 10.3.0.2 : 0:5 }",
    ]


def test_prefixes_are_written_anew() -> None:
    grown = replace(SNAPSHOT, identities=(*NETS, ("10.4.0.0/16", 6)))
    assert lines(SNAPSHOT, grown) == [
        "flush map inet l7proxy net4",
        "add element inet l7proxy net4 { 10.2.0.0-10.2.255.255 : 0:5, 10.4.0.0-10.4.255.255 : 0:6 }",
    ]


def test_a_peer_is_one_element_for_all_who_share_the_set() -> None:
    more = union((entry(ALLOW, 5, 6, 70_000), entry(DENY, 7)))
    grown = replace(SNAPSHOT, endpoints=(pod(1, more), pod(2, more), pod(3, DB)))
    assert lines(SNAPSHOT, grown) == ["add element inet l7proxy i1_0_0_allow_peer_port { 1:1170 . 6 . 80 }"]


def test_who_no_longer_shares_gets_sets_under_the_own_name() -> None:
    alone = replace(SNAPSHOT, endpoints=(pod(1, DB), pod(2, WEB), pod(3, DB)))
    found = lines(SNAPSHOT, alone)
    assert "flush chain inet l7proxy ingress_2" in found
    assert any(line.startswith("\tset i2_0_0_allow_peer_port") for line in found)
    assert "delete element inet l7proxy i1_0_0_allow_peer_port { 0:5 . 6 . 80, 0:6 . 6 . 80 }" in found
    assert "delete set inet l7proxy i3_0_0_allow_peer_port" in found


def test_a_pod_goes_from_the_map_before_its_chains_and_these_before_its_sets() -> None:
    found = lines(SNAPSHOT, replace(SNAPSHOT, endpoints=SNAPSHOT.endpoints[:2]))
    order = [
        "flush chain inet l7proxy ingress_3",
        "delete element inet l7proxy ingress4 { 10.1.0.3 }",
        "delete chain inet l7proxy ingress_3",
        "delete set inet l7proxy i3_0_0_allow_peer_port",
    ]
    assert [line for line in found if line in order] == order
    found = lines(replace(SNAPSHOT, endpoints=SNAPSHOT.endpoints[:2]), SNAPSHOT)
    order = ["add chain inet l7proxy ingress_3", "add element inet l7proxy ingress4 { 10.1.0.3 : jump ingress_3 }"]
    assert [line for line in found if line in order] == order


def test_tiers_are_chains_and_passing_leads_to_the_next() -> None:
    admin = Tier(((entry(PASS, 5),), (entry(DENY),)), closed=False)
    table = Table((admin, Tier(((entry(ALLOW, 5),),), closed=True)))
    text = nft_inet.table(normalise(Desired(endpoints=(pod(1, table),)))).chains
    assert text["ingress_1"].rules[1:] == (
        "meta priority . meta l4proto . th dport @i1_0_0_pass_peer_port goto ingress_1_1",
        "meta l4proto . th dport @i1_0_1_deny_port goto ingress_1_deny",
        "goto ingress_1_1",
    )
    assert text["ingress_1_1"].rules[0].endswith("goto ingress_1_allow")
    assert text["ingress_1_1"].rules[-1] == "goto refuse"
    assert [name for name in text if name.startswith("ingress_1")] == [
        "ingress_1_deny", "ingress_1_allow", "ingress_1", "ingress_1_1",
    ]  # fmt: skip


def test_stages_are_worked_out_once_for_as_long_as_they_are_asked_for() -> None:
    worked: list[Stage] = []

    def ask(stage: Stage) -> Asked:
        worked.append(stage)
        return asked(stage)

    memo = Memo(ask)
    snapshot = normalise(SNAPSHOT)
    for _ in range(3):
        nft_inet.table(snapshot, memo)
        memo.turn()
    assert len(worked) == 2
    memo.turn()
    nft_inet.table(snapshot, memo)
    assert len(worked) == 4, "what was not asked for is forgotten"
