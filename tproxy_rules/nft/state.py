"""Records in nftables which desired state is applied, and detects later changes.

Two chains without jumps hold this in their comments. `state`: the digests of the state and of this version's way of
writing rules, so that a new version with other rules replaces the old ones. `seal`: the digest of the kernel's listing
after the commit; any change of a rule or set breaks it. Only the kernel knows the listing, so the seal needs a second
transaction.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Final

from tproxy_rules.marks import TABLE
from tproxy_rules.tool import run

_STATE: Final = re.compile(
    r'^\tchain state \{\n\t\tcomment "l7proxy ([0-9a-f]{64}) ([0-9a-f]{32})"\n\t\}\n', re.MULTILINE
)
_SEAL: Final = re.compile(r'^\tchain seal \{\n\t\tcomment "([0-9a-f]{64})"\n\t\}\n', re.MULTILINE)
_BLOCK: Final = re.compile(r"^\t\S.*?\{$.*?^\t\}$\n", re.MULTILINE | re.DOTALL)
_MEMBERS: Final = re.compile(r"elements = \{([^}]*)\}")
_MEMBER: Final = re.compile(r"[^\s,](?:[^,]*[^\s,])?")
"""Without the white space around it."""
_FILLED: Final = "\n\t\tflags dynamic"
"""Marks sets that packets fill."""
_FORGET: Final = f"delete chain inet {TABLE} %s\n"


@dataclass(frozen=True, slots=True)
class Found:
    """Our state as found in the kernel."""

    snapshot: str
    writing: str
    sealed: bool


def families() -> tuple[str, ...]:
    """The nftables families that have a table of ours."""
    names = {tuple(line.split()[1:3]) for line in run(("nft", "list", "tables")).splitlines()}
    return tuple(family for family in ("inet", "bridge") if (family, TABLE) in names)


def look(tables: tuple[str, ...]) -> Found:
    """List our tables and check the seal."""
    listing = _listing(tables)
    state, seal = _STATE.search(listing), _SEAL.search(listing)
    snapshot, writing = state.groups() if state else ("", "")
    return Found(snapshot, writing, sealed=seal is not None and seal[1] == _hash(listing))


def signed(snapshot: str, writing: str) -> str:
    """The part of a transaction that records the applied state."""
    return _comment("state", f"l7proxy {snapshot} {writing}")


def unsigned(*, sealed: bool) -> str:
    """The part of a transaction that deletes the previous record."""
    return _FORGET % "state" + (_FORGET % "seal" if sealed else "")


def seal() -> str:
    """A transaction that seals the present listing. Commit it only if nothing changed since before the listing."""
    return _comment("seal", _hash(_listing(families())))


def _comment(chain: str, text: str) -> str:
    return f'table inet {TABLE} {{\n\tchain {chain} {{\n\t\tcomment "{text}";\n\t}}\n}}\n'


def _listing(tables: tuple[str, ...]) -> str:
    return "".join(run(("nft", "list", "table", family, TABLE)) for family in tables)


def _hash(listing: str) -> str:
    """The digest of everything except the seal, sorted: the kernel's order depends on history and may change by itself.

    Members that packets added to sets are excluded.
    """
    open_ = _SEAL.sub("", listing)
    blocks = sorted(_MEMBERS.sub(_ordered, block) for block in _BLOCK.findall(open_) if _FILLED not in block)
    around = [line for line in _BLOCK.sub("", open_).splitlines() if line]
    return hashlib.sha256("\n".join((*around, *blocks)).encode()).hexdigest()


def _ordered(members: re.Match[str]) -> str:
    return ",".join(sorted(_MEMBER.findall(members[1])))
