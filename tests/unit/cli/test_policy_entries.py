"""How `policy get` writes the ports of an entry, and ICMP types and codes, which tables store as ports."""

from __future__ import annotations

import pytest

from l7proxy.cli.policy import _ports

ROWS = [
    (None, 0, 65535, "every port"),
    ("TCP", 80, 80, "80/TCP"),
    ("TCP", 80, 90, "80-90/TCP"),
    ("UDP", 0, 65535, "all/UDP"),
    ("ICMP", 8 << 8, 8 << 8 | 255, "8/ICMP"),
    ("ICMPV6", 128 << 8, 128 << 8 | 255, "128/ICMPV6"),
    ("ICMP", 3 << 8 | 4, 3 << 8 | 4, "3.4/ICMP"),
    ("ICMP", 0, 0, "0/ICMP"),
    ("ICMP", 0, 65535, "all/ICMP"),
    ("47", 0, 65535, "all/47"),
]


@pytest.mark.parametrize(("protocol", "first", "last", "shown"), ROWS, ids=[row[3] for row in ROWS])
def test_ports(protocol: str | None, first: int, last: int, shown: str) -> None:
    assert _ports({"protocol": protocol, "first": first, "last": last}) == shown
