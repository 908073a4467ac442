"""What a fresh process finds of ours in nftables: which picture it is, and whether it still is as it was put there.

Two chains that nothing jumps to carry it in their comments. `state`: the digest of the picture and that of our way of
writing, so that a new version of this package that writes other rules for the same picture replaces the old ones.
`seal`: the digest of what the kernel lists once the rules are in; whoever changes a rule or a set breaks it. Only the
kernel knows how it lists, so the seal is a transaction of its own.
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
_FILLED: Final = "\n\t\tflags dynamic"
"""In sets that packets fill."""
_FORGET: Final = f"delete chain inet {TABLE} %s\n"


@dataclass(frozen=True, slots=True)
class Found:
    """What the kernel lists of ours."""

    picture: str
    writing: str
    sealed: bool


def families() -> tuple[str, ...]:
    """Those in which a table of our name exists."""
    names = {tuple(line.split()[1:3]) for line in run(("nft", "list", "tables")).splitlines()}
    return tuple(family for family in ("inet", "bridge") if (family, TABLE) in names)


def look(tables: tuple[str, ...]) -> Found:
    """Reads the whole listing."""
    listing = _listing(tables)
    state, seal = _STATE.search(listing), _SEAL.search(listing)
    picture, writing = state.groups() if state else ("", "")
    return Found(picture, writing, sealed=seal is not None and seal[1] == _hash(listing))


def signed(picture: str, writing: str) -> str:
    """The text of a transaction's part that says which picture it makes."""
    return _comment("state", f"l7proxy {picture} {writing}")


def unsigned(*, sealed: bool) -> str:
    """The same for what was said before."""
    return _FORGET % "state" + (_FORGET % "seal" if sealed else "")


def seal() -> str:
    """The text that seals what is listed now. Only to be committed if nobody changed anything before the listing."""
    return _comment("seal", _hash(_listing(families())))


def _comment(chain: str, text: str) -> str:
    return f'table inet {TABLE} {{\n\tchain {chain} {{\n\t\tcomment "{text}";\n\t}}\n}}\n'


def _listing(tables: tuple[str, ...]) -> str:
    return "".join(run(("nft", "list", "table", family, TABLE)) for family in tables)


def _hash(listing: str) -> str:
    """Of everything but the seal itself, in an order of ours: theirs tells how it came to be and changes by itself.

    What packets have put into sets is no picture's.
    """
    open_ = _SEAL.sub("", listing)
    blocks = sorted(_MEMBERS.sub(_ordered, block) for block in _BLOCK.findall(open_) if _FILLED not in block)
    around = [line for line in _BLOCK.sub("", open_).splitlines() if line]
    return hashlib.sha256("\n".join((*around, *blocks)).encode()).hexdigest()


def _ordered(members: re.Match[str]) -> str:
    return ",".join(sorted(member.strip() for member in members[1].split(",")))
