"""Checks authorities (Host, and the authority of absolute targets; RFC 3986 3.2) that all servers parse the same.

A name or an address with an optional port. Rejected although the grammar allows them: userinfo, percent-encoding and
sub-delimiters (some servers split a host at a comma).
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

MAX_AUTHORITY: Final = 260
"""Bytes: a DNS name is at most 253, a port 6."""

PLAIN: Final = rb"(?:[A-Za-z0-9._~-]++|\[[0-9A-Fa-f:.]++\])(?::[0-9]{1,5}+)?+"
"""Without a limit of length."""

_PLAIN = re.compile(PLAIN)


def is_plain(authority: bytes) -> bool:
    return len(authority) <= MAX_AUTHORITY and _known(authority)


@lru_cache(maxsize=512)
def _known(authority: bytes) -> bool:
    """Cached: clients name few hosts, and a lookup is cheaper than a match. Bounded: untrusted clients fill it."""
    return _PLAIN.fullmatch(authority) is not None
