"""A worker's active policies: one immutable index of the newest policy snapshot, replaced as a whole.

Publishing replaces the index, then notifies every open session. A session that asks in between gets the new answer.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from ipaddress import IPv6Network
from typing import Final, Protocol

from l7proxy.errors import LinkError
from l7proxy.link.fence import Fence, stamp
from l7proxy.link.messages import PolicySnapshot
from l7proxy.model.endpoint import Backend, Frontend
from l7proxy.model.identity import FIRST_POD_IDENTITY, LOCAL_SCOPE, UNKNOWN
from l7proxy.model.net import HostPort
from l7proxy.model.policy_verdict import PolicyVerdict
from l7proxy.model.verdict import Direction, Verdict
from l7proxy.policy import decide
from l7proxy.policy.endpoints import ConnectionPolicy, EndpointIndex
from l7proxy.policy.rules import HttpRules

TCP: Final = 6
MANY: Final = 64
"""Port rules with at least this many HTTP rules are compiled in advance; fewer compile within a millisecond."""
NUDGED_AT_ONCE: Final = 32
"""Sessions re-evaluated before other work of the event loop gets a turn; each may have 100 streams."""


class PolicyIndex:
    """Lookups in one policy snapshot. ValueError when it has an invalid address or prefix.

    `before` is the previous index: what is equal in both is not parsed again.
    """

    def __init__(self, snapshot: PolicySnapshot, before: PolicyIndex | None = None) -> None:
        self.snapshot = snapshot
        self.revision = snapshot.revision
        self.stamp = stamp(snapshot)
        self.node_addresses = frozenset(snapshot.node_addresses)
        self.options = snapshot.http
        known = before._ends if before is not None else None
        self._ends: EndpointIndex = EndpointIndex(snapshot.endpoints, snapshot.identities, known)
        self._frontends = {(f.address, f.port): f for f in snapshot.frontends if f.protocol == TCP}

    @property
    def problems(self) -> tuple[str, ...]:
        return self._ends.problems

    def make_ready(self) -> None:
        """Compile large sets of HTTP rules now: else the first session that needs one would delay all others."""
        for endpoint in self.snapshot.endpoints:
            for direction in (endpoint.policy.ingress, endpoint.policy.egress):
                for entry in direction.entries if direction is not None else ():
                    if isinstance(entry.l7, HttpRules) and len(entry.l7.rules) >= MANY:
                        peer = entry.peers[0] if entry.peers else UNKNOWN
                        for table in decide.port(direction, peer, TCP, entry.first, self._ends.tables).tables:
                            table.make_ready()

    def identity(self, address: str) -> int:
        return self._ends.identity(address)

    def owner(self, address: str) -> int | str:
        """The key of the share that a connection from this address counts against: see `proxy.server.shares`."""
        endpoint = self._ends.endpoint(address)
        if endpoint is not None:
            return endpoint.id
        if ":" in address and not FIRST_POD_IDENTITY <= self.identity(address) < LOCAL_SCOPE:
            return str(IPv6Network((address, 64), strict=False))
        return address

    def frontend(self, destination: HostPort) -> Frontend | None:
        return self._frontends.get((destination.address, destination.port))

    def lookup(self, source: str, destination: str, port: int) -> ConnectionPolicy:
        """The policy of a TCP connection between two addresses (canonical form). Cached."""
        return self._ends.lookup(source, destination, TCP, port)


class Watcher(Protocol):
    """An open session. These methods must not raise."""

    def policy_changed(self) -> None:
        """Another index is active."""

    def drain(self) -> None:
        """The worker is stopping: the next answer is the last one."""

    def end_idle(self) -> None:
        """End if no request is in progress."""

    def cut(self, reason: str) -> None:
        """End now."""


class PolicyStore:
    """The active index, and the sessions to notify of a new one. A session joins before its first lookup."""

    def __init__(self, fence: Fence | None = None) -> None:
        self.index: PolicyIndex | None = None
        self.fence = fence or Fence()
        self._watchers: dict[Watcher, None] = {}
        self._empty = asyncio.Event()
        self._empty.set()

    def __len__(self) -> int:
        return len(self._watchers)

    def __iter__(self) -> Iterator[Watcher]:
        return iter(list(self._watchers))

    def join(self, watcher: Watcher) -> None:
        self._watchers[watcher] = None
        self._empty.clear()

    def leave(self, watcher: Watcher) -> None:
        self._watchers.pop(watcher, None)
        if not self._watchers:
            self._empty.set()

    async def empty(self) -> None:
        """Return when all sessions have left."""
        await self._empty.wait()

    async def publish(self, snapshot: PolicySnapshot) -> tuple[str, ...]:
        """Make this snapshot active. Returns the problems found, once every open session is re-evaluated; only then the
        fence counts it as applied.

        LinkError when the snapshot cannot be used: the previous one stays active.
        """
        try:
            index = await asyncio.to_thread(_ready, snapshot, self.index)
        except (ValueError, TypeError) as error:
            raise LinkError(f"policy revision {snapshot.revision} cannot be applied: {error}") from error
        self.index = index
        for number, watcher in enumerate(self):
            watcher.policy_changed()
            if number % NUDGED_AT_ONCE == NUDGED_AT_ONCE - 1:
                await asyncio.sleep(0)
        self.fence.applied = index.stamp
        return index.problems


def _ready(snapshot: PolicySnapshot, before: PolicyIndex | None) -> PolicyIndex:
    index = PolicyIndex(snapshot, before)
    index.make_ready()
    return index


def choose(frontend: Frontend) -> Backend | None:
    """A random backend, as kube-proxy chooses; None when the Service has no backends."""
    return random.choice(frontend.backends) if frontend.backends else None


def refusal(
    reason: str, *, verdict: Verdict = Verdict.DROPPED, direction: Direction = Direction.INGRESS
) -> PolicyVerdict:
    """A verdict of the proxy itself, not of a policy."""
    return PolicyVerdict(verdict, direction, reason=reason)
