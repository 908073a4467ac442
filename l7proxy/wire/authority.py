"""Authorities (Host, and the authority of absolute targets) that every server reads the same way (RFC 3986 3.2).

A name or an address with an optional port. Refused although the grammar has them: userinfo, percent-encoding and
sub-delimiters (a comma has made two hosts of one).
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

MAX_AUTHORITY: Final = 260
"""Bytes: a DNS name is at most 253, a port 6."""

PLAIN: Final = rb"(?:[A-Za-z0-9._~-]++|\[[0-9A-Fa-f:.]++\])(?::[0-9]{1,5}+)?+"
"""Of any length."""

_PLAIN = re.compile(PLAIN)


def is_plain(authority: bytes) -> bool:
    return len(authority) <= MAX_AUTHORITY and _known(authority)


@lru_cache(maxsize=512)
def _known(authority: bytes) -> bool:
    """Clients name few hosts, and a look-up is cheaper than a match. Bounded: it is filled by strangers."""
    return _PLAIN.fullmatch(authority) is not None
