"""Explains verdicts in more detail: the rule that came nearest to allowing, and rules without effect.

Decides nothing: it reads the same tables as `decide`, for people.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from l7proxy.model.verdict import Action, Direction, Verdict
from l7proxy.policy.decide import PortPolicy
from l7proxy.policy.decision import policy_name, port_name, rule_name
from l7proxy.policy.l7 import kind_of
from l7proxy.policy.tables import DirectionPolicy, Entry

ADMITTING = (Action.ALLOW, Action.REDIRECT)


@dataclass(frozen=True, slots=True)
class Nearest:
    """A rule that would allow except for what `failed` says."""

    entry: Entry
    failed: str

    def __str__(self) -> str:
        return f"nearest: {rule_name(self.entry.ref)}: {self.failed}"


def nearest(
    policy: DirectionPolicy | None, direction: Direction, identity: int, protocol: int, number: int
) -> Nearest | None:
    """The allow rule that is nearest to a match: first those where only the port differs, then only the peer."""
    found: tuple[int, Nearest] | None = None
    for entry in policy.entries if policy is not None else ():
        if entry.action not in ADMITTING or entry.ref.kind == "built-in":
            continue
        distance, failed = _distance(entry, direction, identity, protocol, number)
        if failed and (found is None or distance < found[0]):
            found = distance, Nearest(entry, failed)
    return found[1] if found is not None else None


def _distance(entry: Entry, direction: Direction, identity: int, protocol: int, number: int) -> tuple[int, str]:
    who = entry.meets(identity)
    where = entry.protocol is None or (entry.protocol == protocol and entry.first <= number <= entry.last)
    if who and where:
        return 0, ""
    if who:
        near = max(entry.first - number, number - entry.last) if entry.protocol == protocol else 1 << 16
        return near, f"it allows this peer on {ports(entry)}, not on {port_name(protocol, number)}"
    if where:
        way = "from" if direction is Direction.INGRESS else "to"
        return 1 << 17, f"it allows {port_name(protocol, number)}, not {way} identity {identity}"
    return 1 << 18, f"it allows {ports(entry)} for other peers"


def ports(entry: Entry) -> str:
    """`80/TCP`, `8000-8080/TCP`, `every port of TCP`, `every port`."""
    if entry.protocol is None:
        return "every port"
    if (entry.first, entry.last) == (0, 65535):
        return f"every port of {port_name(entry.protocol, 0).rpartition('/')[2]}"
    first = port_name(entry.protocol, entry.first)
    return first if entry.first == entry.last else f"{entry.first}-{port_name(entry.protocol, entry.last)}"


def moot(policy: PortPolicy, asked: object = None) -> Iterator[str]:
    """L7 rules without effect, because another rule allows the requests that they do not match."""
    rest = policy.rest
    if policy.kind is None or rest.verdict is not Verdict.FORWARDED or rest.ref is None:
        return
    for table in policy.tables:
        if asked is not None and table.judge(asked).allowed:
            continue
        names = ", ".join(sorted(set(map(policy_name, table.refs))))
        yield f"the {policy.kind.name} rules of {names} have no effect for this peer: {rest.ref} allows every request"


def unread(
    policy: DirectionPolicy | None, found: PortPolicy, identity: int, protocol: int, number: int
) -> Iterator[str]:
    """L7 rules that are never evaluated, because an earlier rule allows the connection at L4."""
    if policy is None or found.redirects or found.l4.verdict is not Verdict.FORWARDED or found.l4.ref is None:
        return
    judging = (
        entry
        for entry in policy.entries
        if entry.action is Action.REDIRECT and entry.covers(identity, protocol, number)
    )
    for name, kind in sorted({(policy_name(entry.ref), kind_of(entry.l7).name) for entry in judging}):
        yield f"the {kind} rules of {name} have no effect for this peer: {found.l4.ref} comes first and allows it"
