"""What a new picture takes away from connections that are tracked already.

Replies pass by conntrack's direction, and an entry lives on as long as anybody sends. So entries go when their original
direction is refused, and when an address passes to somebody else: the peers of its last owner may not go on speaking to
the next. The rules of the new picture must be in force before: else what is deleted is made anew.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from tproxy_rules.backend import KernelError
from tproxy_rules.conntrack import Conntrack, Tracked
from tproxy_rules.desired import Desired, Endpoint, Port, Prefixes, Table, Verdict
from tproxy_rules.evaluate import Evaluator, is_wider
from tproxy_rules.validate import TCP

_NOBODY: Final[frozenset[str]] = frozenset()


@dataclass(frozen=True, slots=True)
class Taken:
    """What changed between two pictures, as far as tracked connections may have to end for it. All is canonical text.

    `left` are addresses of pods here that went or passed to another pod: all of theirs goes. `moved` are others' host
    addresses that are somebody else's by identity: of theirs all but TCP goes, which its own peers reset, and whose
    translation by the node a mere change of labels must not cut. `judged` are addresses whose connections may be
    refused now, None all. `before` is the picture from which the change began, None where nobody knows.
    """

    left: frozenset[str] = _NOBODY
    moved: frozenset[str] = _NOBODY
    judged: frozenset[str] | None = _NOBODY
    before: Desired | None = None

    def __bool__(self) -> bool:
        return bool(self.left or self.moved) or self.judged is None or bool(self.judged)

    def addresses(self, after: Desired) -> frozenset[str]:
        """All of which entries must be looked at. What nobody governs cannot be refused."""
        judged = _governed(after) if self.judged is None else self.judged
        return self.left | self.moved | judged

    def then(self, later: Taken) -> Taken:
        """Both, in this order."""
        if not self:
            return later
        judged = None if self.judged is None or later.judged is None else self.judged | later.judged
        return Taken(self.left | later.left, self.moved | later.moved, judged, self.before)


EVERYTHING: Final = Taken(judged=None)
"""What a fresh process must take to have changed."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """`removed` entries are gone. `spared` are refused, too, but the proxy is still about to end them."""

    removed: int
    spared: int


def taken(before: Desired | None, after: Desired) -> Taken:
    """Pure. Cheap where little changed: equal parts of two pictures are mostly the same value."""
    if before is None:
        return EVERYTHING
    was, now = _owners(before), _owners(after)
    hosts, moved, redrawn = _renamed(before.identities, after.identities)
    left = {address for address, owner in was.items() if address in now and _passed(owner, now[address])}
    left |= _gone(was.keys() - now.keys(), after.identities)
    moved -= was.keys() | now.keys()
    if not any(one.ingress or one.egress for one in after.endpoints):
        return Taken(frozenset(left), frozenset(moved), before=before)
    if redrawn or before.host_identity != after.host_identity:
        return Taken(frozenset(left), frozenset(moved), None, before)
    older = {one.id: one for one in before.endpoints}
    judged = {address for one in after.endpoints for address in _narrowed(older.get(one.id), one)} | hosts
    return Taken(frozenset(left), frozenset(moved), frozenset(judged), before)


def revoke(change: Taken, after: Desired, *, spare: bool) -> Outcome:
    """Delete the entries that go, in the calling thread's network namespace; `after` must be in force. KernelError.

    With `spare`, TCP that the proxy served stays: it knew the picture first and ends such connections itself, and what
    it sends for that must still count as an answer. What is left of it goes when asked once more without.
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


# --- of an entry ------------------------------------------------------------------------------------------------------


def _is_lost(entry: Tracked, change: Taken) -> bool:
    """Whose address is somebody else's now."""
    if entry.addresses & change.left:
        return True
    return entry.connection.protocol != TCP and not entry.addresses.isdisjoint(change.moved)


def _is_refused(entry: Tracked, change: Taken, judge: Evaluator, upstream: int) -> bool:
    """The proxy's own connections are for the proxy to end."""
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


# --- of a picture -----------------------------------------------------------------------------------------------------

_Owner = tuple[int, Port | None]


def _owners(desired: Desired) -> dict[str, _Owner]:
    return {address: (one.id, one.port) for one in desired.endpoints for address in one.addresses}


def _governed(desired: Desired) -> frozenset[str]:
    return frozenset(address for one in desired.endpoints if one.ingress or one.egress for address in one.addresses)


def _passed(old: _Owner, new: _Owner) -> bool:
    """To another pod: by its cable where both are known, which stays as long as the pod, else by its number."""
    if old[1] is not None and new[1] is not None:
        return old[1] != new[1]
    return old[0] != new[0]


def _gone(absent: Collection[str], identities: Prefixes) -> set[str]:
    """A pod without policy whose cable nobody knows is not in the picture, but its address is still somebody's."""
    if not absent:
        return set()
    known = {prefix for prefix, _ in identities}
    return {address for address in absent if _host(address) not in known}


def _renamed(before: Prefixes, after: Prefixes) -> tuple[set[str], set[str], bool]:
    """Host addresses of which the identity is another, those of them that had one, and whether ranges changed."""
    if before is after:
        return set(), set(), False
    old, new = set(before), set(after)
    gone, come = old - new, new - old
    hosts = {prefix.partition("/")[0] for prefix, _ in gone | come if _is_host(prefix)}
    had = {prefix.partition("/")[0] for prefix, _ in gone if _is_host(prefix)}
    return hosts, had, any(not _is_host(prefix) for prefix, _ in gone | come)


def _is_host(prefix: str) -> bool:
    return prefix.endswith("/128" if ":" in prefix else "/32")


def _host(address: str) -> str:
    return f"{address}/128" if ":" in address else f"{address}/32"


def _narrowed(before: Endpoint | None, after: Endpoint) -> Collection[str]:
    """Its addresses that may be refused what they were not."""
    if after.ingress is None and after.egress is None:
        return ()
    if before is None or _is_narrower(before.ingress, after.ingress) or _is_narrower(before.egress, after.egress):
        return after.addresses
    return set(after.addresses) - set(before.addresses)


def _is_narrower(before: Table | None, after: Table | None) -> bool:
    return after is not None and before is not after and (before is None or not is_wider(before, after))
