"""The sets of iptables hold exactly the addresses of their identities, with `hash:net` lookup: longest member wins."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from hypothesis import given
from hypothesis import strategies as st

from tproxy_rules.iptables.sets import IpSet, PeerSets

PREFIXES = st.dictionaries(
    st.tuples(st.integers(0, 7), st.sampled_from((0, 1, 2, 30, 31, 32))).map(
        lambda drawn: str(ip_network((drawn[0] | (drawn[0] & 3) << 30, drawn[1]), strict=False))
    ),
    st.integers(1, 4),
    max_size=12,
)


def holds(made: IpSet, address: str) -> bool:
    """As the kernel looks it up."""
    parsed = ip_address(address)
    best = (-1, False)
    for member in made.members:
        prefix, _, exception = member.partition(" ")
        network = ip_network(prefix)
        assert network.prefixlen, "hash:net has no /0"
        if parsed in network:
            best = max(best, (network.prefixlen, not exception))
    return best[1]


def members(sets: PeerSets, *peers: int) -> tuple[str, ...]:
    made = sets.of(peers)
    assert made is not None
    return made.members


@given(PREFIXES, st.sets(st.integers(1, 4)), st.integers(0, 7), st.integers(0, 3))
def test_a_set_holds_whom_the_longest_prefix_names(
    prefixes: dict[str, int], peers: set[int], low: int, high: int
) -> None:
    address = str(ip_address(low | high << 30))
    found = [(ip_network(prefix), number) for prefix, number in prefixes.items()]
    holding = [(network.prefixlen, number) for network, number in found if ip_address(address) in network]
    identity = max(holding, default=(0, 0))[1]
    made = PeerSets(tuple(prefixes.items()), 4).of(tuple(sorted(peers)))
    assert (made is not None and holds(made, address)) == (identity in peers)


@given(PREFIXES, PREFIXES, st.sets(st.integers(1, 4), min_size=1), st.sets(st.integers(1, 4), min_size=1))
def test_a_name_stands_for_one_content(
    some: dict[str, int], others: dict[str, int], peers: set[int], also: set[int]
) -> None:
    one = PeerSets(tuple(some.items()), 4).of(tuple(sorted(peers)))
    two = PeerSets(tuple(others.items()), 4).of(tuple(sorted(also)))
    if one is not None and two is not None and one.name == two.name:
        assert one.members == two.members


def test_exceptions_and_the_default() -> None:
    identities = (("0.0.0.0/0", 2), ("10.0.0.0/8", 7), ("10.1.0.0/16", 8), ("10.1.0.1/32", 7), ("fd00::/8", 7))
    sets = PeerSets(identities, 4)
    assert members(sets, 7) == ("10.0.0.0/8", "10.1.0.0/16 nomatch", "10.1.0.1/32")
    assert members(sets, 2) == (
        "0.0.0.0/1", "10.0.0.0/8 nomatch", "10.1.0.0/16 nomatch", "10.1.0.1/32 nomatch", "128.0.0.0/1",
    )  # fmt: skip
    assert sets.of((9,)) is None
    assert members(PeerSets(identities, 6), 7) == ("fd00::/8",)


def test_equal_peers_share_a_set_and_its_name_follows_its_content() -> None:
    sets = PeerSets((("10.0.0.1/32", 7), ("10.0.0.2/32", 8)), 4)
    other = PeerSets((("10.0.0.1/32", 9), ("10.0.0.2/32", 8)), 4)
    assert sets.of((7,)) is sets.of((7,))
    first, second, third = sets.of((7,)), other.of((9,)), sets.of((8,))
    assert first is not None and second is not None and third is not None
    assert first.name == second.name != third.name
    assert len(first.name) <= 31
