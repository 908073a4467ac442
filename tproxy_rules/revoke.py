"""Deletes conntrack entries of connections that a new desired state does not allow.

Replies pass by conntrack direction, and an entry lives as long as there is traffic. So an entry is deleted when its
original direction is refused, and when an address moves to another owner: peers of the old owner must not reach the new
one. Apply the new state first: under the old rules a deleted entry would be created again.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from tproxy_rules.backend import KernelError
from tproxy_rules.conntrack import Conntrack, Tracked
from tproxy_rules.desired import Desired, Endpoint, Port, Prefixes, Table, Verdict, VersionedPrefixes
from tproxy_rules.evaluate import Evaluator, is_wider
from tproxy_rules.networks import is_host
from tproxy_rules.validate import TCP

_NO_ADDRESSES: Final[frozenset[str]] = frozenset()


@dataclass(frozen=True, slots=True)
class Taken:
    """The difference of two desired states that may end tracked connections. All addresses are canonical text.

    `left` are addresses of local pods that are gone or moved to another pod: all their entries go. `moved` are other
    host addresses whose identity changed: their entries go except TCP, which its peers reset themselves, and whose NAT
    must survive a mere change of labels. `judged` are addresses whose connections may be refused now; None means all.
    `before` is the state before the change, None if unknown.
    """

    left: frozenset[str] = _NO_ADDRESSES
    moved: frozenset[str] = _NO_ADDRESSES
    judged: frozenset[str] | None = _NO_ADDRESSES
    before: Desired | None = None

    def __bool__(self) -> bool:
        return bool(self.left or self.moved) or self.judged is None or bool(self.judged)

    def addresses(self, after: Desired) -> frozenset[str]:
        """The addresses whose entries must be checked. Without a policy nothing can be refused."""
        judged = _governed(after) if self.judged is None else self.judged
        return self.left | self.moved | judged

    def then(self, later: Taken) -> Taken:
        """This change followed by `later`."""
        if not self:
            return later
        judged = None if self.judged is None or later.judged is None else self.judged | later.judged
        return Taken(self.left | later.left, self.moved | later.moved, judged, self.before)


EVERYTHING: Final = Taken(judged=None)
"""The change that a new process must assume."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """`removed` entries are deleted. `spared` entries are refused, too, but the proxy will end their connections."""

    removed: int
    spared: int


def taken(before: Desired | None, after: Desired) -> Taken:
    """The difference of two states. Pure. Fast for small changes: equal parts are mostly the same object."""
    if before is None:
        return EVERYTHING
    was, now = _owners(before), _owners(after)
    hosts, moved, redrawn = _renamed(before.identities, after.identities)
    left = {address for address, owner in was.items() if address in now and _passed(owner, now[address])}
    left |= _gone(was.keys() - now.keys(), after.identities)
    moved -= was.keys() | now.keys()
    if not any(one.ingress or one.egress for one in after.endpoints):
        return Taken(frozenset(left), frozenset(moved), before=before)
    redirected = after.settings.redirected
    if redrawn or before.host_identity != after.host_identity or before.settings.redirected - redirected:
        return Taken(frozenset(left), frozenset(moved), None, before)
    older = {one.id: one for one in before.endpoints}
    judged = {address for one in after.endpoints for address in _narrowed(older.get(one.id), one, redirected)} | hosts
    return Taken(frozenset(left), frozenset(moved), frozenset(judged), before)


def revoke(change: Taken, after: Desired, *, spare: bool) -> Outcome:
    """Delete the affected entries in the calling thread's network namespace; `after` must be applied. KernelError.

    With `spare`, TCP connections through the proxy are kept: the proxy got the policy first and ends them itself, and
    its last packets must still count as replies. Call again without `spare` to delete the rest.
    """
    judge = Evaluator(after, _local_addresses())
    former = Evaluator(change.before) if change.before is not None else None
    doomed: list[Tracked] = []
    spared = 0
    with Conntrack() as conntrack:
        for entry in conntrack.entries(change.addresses(after)):
            if _is_lost(entry, change):
                doomed.append(entry)
            elif _is_refused(entry, change, judge, after.settings.mark_upstream):
                if spare and _is_served(entry, former):
                    spared += 1
                else:
                    doomed.append(entry)
        removed = sum([conntrack.delete(entry) for entry in doomed])
    return Outcome(removed, spared)


# --- conntrack entries ------------------------------------------------------------------------------------------------


def _is_lost(entry: Tracked, change: Taken) -> bool:
    """True if an address of the entry has a new owner."""
    if entry.addresses & change.left:
        return True
    return entry.connection.protocol != TCP and not entry.addresses.isdisjoint(change.moved)


def _is_refused(entry: Tracked, change: Taken, judge: Evaluator, upstream: int) -> bool:
    """True if the entry is refused. The proxy ends its own connections itself, so they are excluded."""
    concerned = change.judged is None or not entry.addresses.isdisjoint(change.judged)
    return concerned and not entry.mark & upstream and judge.of(entry.connection) is Verdict.DENY


def _is_served(entry: Tracked, former: Evaluator | None) -> bool:
    return entry.connection.protocol == TCP and (former is None or former.of(entry.connection) is Verdict.STEER)


def _local_addresses() -> frozenset[str]:
    try:
        with IPRoute() as netlink:
            found = [one.get_attr("IFA_LOCAL") or one.get_attr("IFA_ADDRESS") for one in netlink.get_addr()]
    except (OSError, NetlinkError) as error:
        raise KernelError(f"conntrack: cannot list the node's addresses: {error}") from error
    return frozenset(address for address in found if address)


# --- desired states ---------------------------------------------------------------------------------------------------

_Owner = tuple[int, Port | None]


def _owners(desired: Desired) -> dict[str, _Owner]:
    return {address: (one.id, one.port) for one in desired.endpoints for address in one.addresses}


def _governed(desired: Desired) -> frozenset[str]:
    return frozenset(address for one in desired.endpoints if one.ingress or one.egress for address in one.addresses)


def _passed(old: _Owner, new: _Owner) -> bool:
    """True if the address moved to another pod: by interface, which a pod keeps, or by id if one is unknown."""
    if old[1] is not None and new[1] is not None:
        return old[1] != new[1]
    return old[0] != new[0]


def _gone(absent: Collection[str], identities: Prefixes) -> set[str]:
    """Those without an identity: a pod without policy and with unknown interface is no endpoint, but has one."""
    if not absent:
        return set()
    known = identities.get if isinstance(identities, VersionedPrefixes) else dict(identities).get
    return {address for address in absent if known(_host(address)) is None}


def _renamed(before: Prefixes, after: Prefixes) -> tuple[set[str], set[str], bool]:
    """Host addresses with a changed identity; those of them that had one before; whether a range changed."""
    gone, come = _differing(before, after)
    hosts = {prefix.partition("/")[0] for prefix, _ in gone | come if is_host(prefix)}
    had = {prefix.partition("/")[0] for prefix, _ in gone if is_host(prefix)}
    return hosts, had, any(not is_host(prefix) for prefix, _ in gone | come)


def _differing(before: Prefixes, after: Prefixes) -> tuple[set[tuple[str, int]], set[tuple[str, int]]]:
    """What is in one of them only: before, and after."""
    if isinstance(before, VersionedPrefixes) and isinstance(after, VersionedPrefixes):
        changed = after.changed_since(before)
        if changed is not None:
            old = {(one, number) for one in changed if (number := before.get(one)) is not None}
            new = {(one, number) for one in changed if (number := after.get(one)) is not None}
            return old - new, new - old
    old, new = set(before), set(after)
    return old - new, new - old


def _host(address: str) -> str:
    return f"{address}/128" if ":" in address else f"{address}/32"


def _narrowed(before: Endpoint | None, after: Endpoint, redirected: Collection[int]) -> Collection[str]:
    """Addresses of the endpoint for which `after` may refuse what `before` accepted."""
    if after.ingress is None and after.egress is None:
        return ()
    if before is None or any(
        _is_narrower(old, new, redirected)
        for old, new in ((before.ingress, after.ingress), (before.egress, after.egress))
    ):
        return after.addresses
    return set(after.addresses) - set(before.addresses)


def _is_narrower(before: Table | None, after: Table | None, redirected: Collection[int]) -> bool:
    return after is not None and before is not after and (before is None or not is_wider(before, after, redirected))
