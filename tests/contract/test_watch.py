"""External changes of our tables: reported correctly or not at all."""

from __future__ import annotations

import select
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.contract.conftest import Namespace
from tproxy_rules.nft.watch import NftMonitor, Watch, generation

pytestmark = pytest.mark.sandbox


@pytest.fixture
def node(sandbox: None) -> Iterator[Namespace]:
    made = Namespace()
    yield made
    made.close()


def test_commits_of_others_are_followed_and_ours_are_counted(node: Namespace) -> None:
    watch, since = node.do(Watch), node.do(generation)
    assert node.do(lambda: watch.followed(since)) == since
    node.sh("nft add table inet other", "nft add table ip l7proxy", "nft add chain inet other l7proxy")
    assert node.do(lambda: watch.followed(since)) == since + 3
    node.sh("nft add table inet other2", "nft add table inet l7proxy", "nft add table inet other3")
    assert node.do(lambda: watch.followed(since + 3)) is None
    assert node.do(lambda: watch.followed(since + 3, ours=1)) == since + 6
    node.sh("nft add table bridge l7proxy")
    assert node.do(lambda: watch.followed(since + 6)) is None
    assert node.do(lambda: watch.followed(since + 6, ours=1)) == since + 7


@pytest.mark.parametrize(
    "change",
    [
        "nft add rule inet l7proxy c accept",
        "nft flush chain inet l7proxy c",
        "nft add element inet l7proxy s { 10.0.0.1 }",
        "nft delete table inet l7proxy",
        "nft add table inet l7proxy { flags dormant; }",
        "nft flush ruleset",
    ],
)
def test_any_change_of_ours_is_seen(node: Namespace, change: str) -> None:
    node.feed("nft -f -", "table inet l7proxy {\n set s { type ipv4_addr; }\n chain c {\n drop\n }\n}\n")
    watch, since = node.do(Watch), node.do(generation)
    node.sh("nft add table inet other", change, "nft add table inet other2")
    assert node.do(lambda: watch.followed(since)) is None


def test_an_alarm_rings_when_ours_is_taken_away_and_for_nothing_of_others(node: Namespace) -> None:
    ours = "table inet l7proxy {\n set s { type ipv4_addr; }\n chain c {\n drop\n }\n}\n"
    node.feed("nft -f -", ours)
    with closing(node.do(NftMonitor)) as alarm:
        assert not alarm.rang()
        node.sh(
            "nft add table inet other", "nft delete table inet other", "nft add element inet l7proxy s { 10.0.0.1 }"
        )
        assert select.select([alarm], [], [], 5)[0]
        assert not alarm.rang()
        for removal in ("nft flush chain inet l7proxy c", "nft delete table inet l7proxy", "nft flush ruleset"):
            node.feed("nft -f -", ours)
            assert not alarm.rang()
            node.sh(removal)
            assert select.select([alarm], [], [], 5)[0]
            assert alarm.rang(), removal
            assert not alarm.rang()


def test_what_was_lost_is_not_vouched_for(node: Namespace) -> None:
    """More events at once than the buffer holds, with one of our own changes among them."""
    watch, since = node.do(Watch), node.do(generation)
    elements = ", ".join(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}" for n in range(300_000))
    flood = f"table inet other {{\n set s {{\n type ipv4_addr\n elements = {{ {elements} }}\n }}\n}}\n"
    node.feed("nft -f -", flood)
    node.sh("nft add table inet l7proxy", "nft add table inet other2")
    assert node.do(lambda: watch.followed(since)) is None
    now = node.do(generation)
    node.sh("nft add table inet other3")
    assert node.do(lambda: watch.followed(now)) in (None, now + 1)
    now = node.do(generation)
    node.sh("nft add table inet other4")
    assert node.do(lambda: watch.followed(now)) == now + 1, "and then all is well again"
