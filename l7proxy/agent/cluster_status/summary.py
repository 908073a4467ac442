"""What one node enforces, in less than 2 KiB: the annotation of the node's Lease. Pure.

A list of all policies would grow with nodes times policies. So the set of (uid, generation, phase) is divided into
BUCKETS by uid, and a node reports one digest per bucket. Who knows the policies can compare: equal digests, equal
versions enforced; another digest leaves only the policies of that bucket open. Policies that only this node cannot
enforce are named, up to MAX_EXCEPTIONS.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Final

import msgspec

from l7proxy.cluster.policy_status import PolicyStatus

FORMAT: Final = 1
BUCKETS: Final = 64
DIGEST: Final = 6
"""Bytes per bucket."""
MAX_EXCEPTIONS: Final = 10
MAX_TEXT: Final = 160
"""Characters of a reason in a Lease."""

Entry = tuple[int, str]
"""Generation and phase of a policy."""
Entries = Mapping[str, Entry]
"""By uid."""


@dataclass(frozen=True, slots=True)
class Summary:
    """`digests`: one per bucket. `exceptions`: uid → why the policy is not fully enforced on this node alone.
    `kernel`: why newer policies are not enforced; `l7`: why no HTTP rule can be served; both empty when well. `audit`:
    the node refuses nothing, and reports what it would refuse."""

    digests: tuple[bytes, ...]
    exceptions: Mapping[str, str] = field(default_factory=dict)
    kernel: str = ""
    l7: str = ""
    audit: bool = False


class _Annotation(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    v: int
    enforced: str
    exceptions: dict[str, str] = {}
    kernel: str = ""
    l7: str = ""
    audit: bool = False


def one_line(text: str, longest: int = MAX_TEXT) -> str:
    """Printable text of bounded length: it may be that of a stranger."""
    if len(text) <= longest and text.isprintable():
        return text
    clean = "".join(letter if letter.isprintable() else " " for letter in text[: 4 * longest])
    line = " ".join(clean.split())
    return line if len(line) <= longest else line[: longest - 1] + "…"


def bucket_of(uid: str) -> int:
    return blake2b(uid.encode(), digest_size=1).digest()[0] % BUCKETS


def entries(policies: Iterable[PolicyStatus]) -> tuple[dict[str, Entry], ...]:
    """The entries of all policies that the API server knows, by bucket."""
    found: tuple[dict[str, Entry], ...] = tuple({} for _ in range(BUCKETS))
    for policy in policies:
        if policy.uid:
            found[bucket_of(policy.uid)][policy.uid] = policy.generation, policy.state.value
    return found


def digest(bucket: Entries) -> bytes:
    """Independent of the order of the entries."""
    hashed = blake2b(digest_size=DIGEST)
    for uid, (generation, phase) in sorted(bucket.items()):
        hashed.update(f"{uid} {generation} {phase}\n".encode())
    return hashed.digest()


def digests(policies: Iterable[PolicyStatus]) -> tuple[bytes, ...]:
    return tuple(map(digest, entries(policies)))


def exceptions(judged: Iterable[PolicyStatus], enforced: Iterable[PolicyStatus]) -> dict[str, str]:
    """The policies that the limits of this node change. `judged`: the same policies, in order, before the limits."""
    found: dict[str, str] = {}
    for before, after in zip(judged, enforced, strict=True):
        if before is not after and after.uid and len(found) < MAX_EXCEPTIONS:
            found[after.uid] = one_line(after.reason)
    return found


def to_text(summary: Summary) -> str:
    coded = b64encode(b"".join(summary.digests)).decode()
    reasons = {uid: one_line(why) for uid, why in summary.exceptions.items()}
    parts = _Annotation(FORMAT, coded, reasons, one_line(summary.kernel), one_line(summary.l7), summary.audit)
    return msgspec.json.encode(parts).decode()


def from_text(text: str) -> Summary | None:
    """None when it cannot be read: damaged, or of another version."""
    try:
        found = msgspec.json.decode(text, type=_Annotation)
        raw = b64decode(found.enforced, validate=True)
    except (msgspec.DecodeError, ValueError):
        return None
    if found.v != FORMAT or len(raw) != BUCKETS * DIGEST or len(found.exceptions) > MAX_EXCEPTIONS:
        return None
    parts = tuple(raw[start : start + DIGEST] for start in range(0, len(raw), DIGEST))
    reasons = {uid: one_line(why) for uid, why in found.exceptions.items()}
    return Summary(parts, reasons, one_line(found.kernel), one_line(found.l7), found.audit)
