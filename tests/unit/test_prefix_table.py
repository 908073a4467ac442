"""A table derived from another answers like one built from the same entries alone."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l7proxy.model.net import PrefixTable

PREFIXES = (
    *("0.0.0.0/0", "10.0.0.0/8", "10.0.0.0/30", "10.0.0.1/32", "10.0.0.2/32", "10.0.0.3/32"),
    *("::/0", "fd00::/8", "fd00::/126", "fd00::1/128", "fd00::2/128", "fd00::3/128"),
)
ADDRESSES = (
    "10.0.0.1",
    "10.0.0.2",
    "10.0.0.3",
    "10.9.9.9",
    "192.0.2.1",
    "fd00::1",
    "fd00::2",
    "fd00::3",
    "2001:db8::1",
)
Entries = dict[str, int]


def longest(entries: Entries, address: str) -> int | None:
    """The longest-prefix match, computed in a slow, obvious way."""
    holding = [text for text in entries if ip_address(address) in ip_network(text)]
    return entries[max(holding, key=lambda text: ip_network(text).prefixlen)] if holding else None


@given(st.lists(st.dictionaries(st.sampled_from(PREFIXES), st.integers(1, 3)), min_size=1, max_size=6))
def test_whatever_it_follows(some: list[Entries]) -> None:
    table: PrefixTable[int] | None = None
    for entries in some:
        table = PrefixTable(entries, table)
        assert [table.get(address) for address in ADDRESSES] == [longest(entries, one) for one in ADDRESSES]


def test_the_one_before_is_left_as_it_was() -> None:
    before = PrefixTable({"10.0.0.1/32": 1, "10.0.0.2/32": 2})
    after = PrefixTable({"10.0.0.1/32": 3}, before)
    assert (before.get("10.0.0.1"), before.get("10.0.0.2")) == (1, 2)
    assert (after.get("10.0.0.1"), after.get("10.0.0.2")) == (3, None)


def test_many_changes_at_once() -> None:
    many = {f"10.0.{number >> 8}.{number & 255}/32": number + 1 for number in range(512)}
    assert PrefixTable(many, PrefixTable({"10.0.0.0/8": 1})).get("10.0.1.1") == 258
    assert PrefixTable({"10.0.0.0/8": 1}, PrefixTable(many)).get("10.0.1.1") == 1


def test_what_is_no_prefix_is_refused() -> None:
    with pytest.raises(ValueError, match="pods"):
        PrefixTable({"pods": 1}, PrefixTable({"10.0.0.1/32": 1}))
