"""What an operator can choose about HTTP gates, and the bounds of what one connection may make us hold."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from l7proxy.wire.path import PathRules


@dataclass(frozen=True, slots=True)
class HttpOptions:
    """`flow_headers` (lower case names) and `flow_query` open flows to what may hold secrets; `secret_headers` stay
    shut all the same. `deny_header` tells refused clients why."""

    paths: PathRules = field(default_factory=PathRules)
    flow_headers: frozenset[bytes] = frozenset()
    secret_headers: frozenset[bytes] = frozenset()
    flow_query: bool = False
    deny_header: bool = False


MAX_HELD: Final = 64 << 10
"""Bytes of further requests held while one is answered; more stay in the kernel (Pause)."""

MAX_DRAINED: Final = 64 << 10
"""Bytes of a refused request's body that are read away so that its connection can go on."""

MAX_DENIED: Final = 64
"""Requests denied out of one read. Their connection ends with the last: nobody pipelines so much that is refused, and
each costs us more than it costs the client, with everybody else waiting."""

MAX_INTERIM: Final = 16
"""1xx responses before the final one."""
