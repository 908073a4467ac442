"""Tables as lookup sets, prefixes as disjoint ranges: both must give the results of the entries, for every input."""

from __future__ import annotations

import itertools
from ipaddress import IPv4Address, ip_address, ip_network

from hypothesis import given
from hypothesis import strategies as st

from tproxy_rules.desired import Entry, Verdict
from tproxy_rules.networks import merge, split
from tproxy_rules.shapes import Shape, lookups

ALLOW = Verdict.ALLOW


def entry(protocol: int, first: int = 0, last: int = 65535, *peers: int, verdict: Verdict = ALLOW) -> Entry:
    return Entry(verdict, protocol, first, last, any_peer=not peers, peers=peers)


def test_each_kind_of_entry_has_its_shape() -> None:
    stage = (
        entry(-1),
        entry(-1, 0, 65535, 5),
        entry(6),
        entry(17, 0, 65535, 5),
        entry(17, 53, 53),
        entry(6, 80, 80, 5),
        entry(17, 100, 200),
        entry(6, 100, 200, 5),
        entry(1, 2048, 2048),
        entry(58, 32768, 32768, 5),
        entry(58, 256, 511),
        entry(1, 0, 255, 5),
    )
    assert lookups(stage)[ALLOW] == {
        Shape.ANY: {(-1, -1, -1): None},
        Shape.PEER: {(-1, -1, -1): (5,)},
        Shape.PROTOCOL: {(6, -1, -1): None},
        Shape.PEER_PROTOCOL: {(17, -1, -1): (5,)},
        Shape.PORT: {(17, 53, 53): None},
        Shape.PEER_PORT: {(6, 80, 80): (5,)},
        Shape.RANGE: {(17, 100, 200): None},
        Shape.PEER_RANGE: {(6, 100, 200): (5,)},
        Shape.TYPE: {(1, 2048, 2048): None},
        Shape.PEER_TYPE: {(58, 32768, 32768): (5,)},
        Shape.TYPES: {(58, 256, 511): None},
        Shape.PEER_TYPES: {(1, 0, 255): (5,)},
    }
    assert list(lookups(stage)) == [ALLOW]


def test_ranges_that_touch_are_one_and_the_whole_range_is_no_port() -> None:
    halves = (entry(6, 0, 1000), entry(6, 1001, 65535))
    assert lookups(halves)[ALLOW] == {Shape.PROTOCOL: {(6, -1, -1): None}}
    overlap = (entry(6, 10, 20), entry(6, 15, 30), entry(6, 40, 40))
    assert lookups(overlap)[ALLOW] == {
        Shape.PORT: {(6, 40, 40): None},
        Shape.RANGE: {(6, 10, 30): None},
    }


_RANGES = st.tuples(st.integers(0, 40), st.integers(0, 10)).map(lambda one: (one[0], one[0] + one[1]))


@given(st.lists(_RANGES, max_size=8))
def test_merge_keeps_the_numbers_and_leaves_gaps(ranges: list[tuple[int, int]]) -> None:
    merged = merge(ranges)
    assert {n for a, b in merged for n in range(a, b + 1)} == {n for a, b in ranges for n in range(a, b + 1)}
    assert all(before[1] + 1 < after[0] for before, after in itertools.pairwise(merged))


_ENTRIES = st.builds(
    lambda protocol, ports, peers: entry(protocol, *(ports if protocol >= 0 else (0, 65535)), *sorted(peers)),
    st.sampled_from((-1, 1, 6, 17)),
    _RANGES,
    st.sets(st.integers(1, 3), max_size=2),
)


@given(st.lists(_ENTRIES, max_size=6), st.integers(1, 3), st.sampled_from((1, 6, 17)), st.integers(0, 55))
def test_lookups_cover_what_the_entries_cover(entries: list[Entry], peer: int, protocol: int, port: int) -> None:
    def entry_covers(one: Entry) -> bool:
        return (one.any_peer or peer in one.peers) and one.protocol in (-1, protocol) and one.first <= port <= one.last

    def cell_covers(cell: tuple[int, int, int], peers: tuple[int, ...] | None) -> bool:
        of, first, last = cell
        return (peers is None or peer in peers) and of in (-1, protocol) and (first < 0 or first <= port <= last)

    found = lookups(tuple(entries)).get(ALLOW, {})
    assert all(found.values()), "an empty lookup is none"
    assert all(peers != () for cells in found.values() for peers in cells.values()), "a cell of nobody is none"
    covering = [1 for cells in found.values() for cell, peers in cells.items() if cell_covers(cell, peers)]
    assert bool(covering) == any(entry_covers(one) for one in entries)
    for shape, cells in found.items():
        assert sum(cell_covers(cell, peers) for cell, peers in cells.items()) <= 1, f"{shape}: cells overlap"


def test_hosts_defaults_and_prefixes_are_kept_apart() -> None:
    found = split((("0.0.0.0/0", 2), ("10.0.0.0/8", 7), ("10.0.0.1/32", 9), ("::/0", 3), ("fd00::1/128", 4)))[4]
    assert (found.default, found.hosts) == (2, {"10.0.0.1": 9})
    assert [(str(one.first), str(one.last), one.identity) for one in found.ranges] == [
        ("10.0.0.0", "10.255.255.255", 7)
    ]
    assert split(())[6].default == 0, "an identity no peer has"
    assert split((("::/0", 3), ("fd00::1/128", 4)))[6].hosts == {"fd00::1": 4}


_PREFIXES = st.tuples(st.integers(0, 255), st.integers(22, 31)).map(
    lambda one: str(ip_network((0x0A000000 + one[0] * 4, one[1]), strict=False))
)


@given(st.dictionaries(_PREFIXES, st.integers(1, 9), max_size=10), st.integers(0, 1100))
def test_the_longest_prefix_wins(prefixes: dict[str, int], offset: int) -> None:
    ranges = split(tuple(prefixes.items()))[4].ranges
    assert all(int(a.last) < int(b.first) for a, b in itertools.pairwise(ranges)), "disjoint, ascending"
    address = IPv4Address(0x0A000000 + offset)
    holding = [(ip_network(text).prefixlen, number) for text, number in prefixes.items() if address in ip_network(text)]
    found = [one.identity for one in ranges if int(one.first) <= int(address) <= int(one.last)]
    assert found == ([max(holding)[1]] if holding else [])


def test_ipv6_to_its_very_end() -> None:
    found = split((("ff00::/8", 5), ("ffff::/16", 6)))[6].ranges
    assert found[-1].last == ip_address("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")
    assert [one.identity for one in found] == [5, 6]
