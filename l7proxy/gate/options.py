"""Options of HTTP gates, and the limits on what one connection can make us buffer or do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from l7proxy.wire.path import PathRules


@dataclass(frozen=True, slots=True)
class HttpOptions:
    """`flow_headers` and `flow_query` add to flows what may contain secrets. `secret_headers` are those that rules
    compare with a secret: their values are never shown. Header names are lower case. `deny_header`: denied clients
    get the reason.
    """

    paths: PathRules = field(default_factory=PathRules)
    flow_headers: frozenset[bytes] = frozenset()
    secret_headers: frozenset[bytes] = frozenset()
    flow_query: bool = False
    deny_header: bool = False


DEFAULT_OPTIONS: Final = HttpOptions()


MAX_HELD: Final = 64 << 10
"""Bytes of further requests buffered while one is in progress; more stay in the kernel (Pause)."""

MAX_DRAINED: Final = 64 << 10
"""Bytes of a denied request's body that are discarded to keep its connection open."""

MAX_DENIED: Final = 64
"""Requests denied from one read. The last one ends the connection: no honest client pipelines so many denied requests,
and each costs us more than the client, while all other clients wait."""

MAX_INTERIM: Final = 16
"""1xx responses before the final one."""
