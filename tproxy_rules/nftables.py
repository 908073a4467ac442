"""The nftables backend: a picture as text, one transaction to put it in force, and a seal to see whether it still is.

`render` is pure. The table's comment carries the picture's digest and that of the text, so that a new version of this
package that writes other rules for the same picture replaces the old ones. The chain `seal`, which nothing jumps to,
carries the digest of what the kernel lists once the rules are in: whoever changes a rule or a set breaks it.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Final

from tproxy_rules import nft_bridge, nft_inet, routes
from tproxy_rules.backend import Installed, KernelError
from tproxy_rules.desired import Bridge, Desired, Endpoint, Entry, Port, Verdict, union
from tproxy_rules.digest import digest
from tproxy_rules.marks import TABLE
from tproxy_rules.nft_text import absent
from tproxy_rules.tool import run
from tproxy_rules.validate import checked

_COMMENT: Final = re.compile(r'^\tcomment "l7proxy ([0-9a-f]{64}) ([0-9a-f]{32})"$', re.MULTILINE)
_SEAL: Final = re.compile(r'^\tchain seal \{\n\t\tcomment "([0-9a-f]{64})"\n\t\}\n', re.MULTILINE)


def render(desired: Desired, *, comment: str = "") -> str:
    """The picture in the nft language: both tables whole, in the place of those of the same names."""
    desired = checked(desired)
    text = nft_inet.render(desired, comment=comment)
    return text + nft_bridge.render(desired) if desired.bridges else text


@dataclass(frozen=True, slots=True)
class _Found:
    """What the kernel lists of ours."""

    picture: str
    text: str
    sealed: bool


class NftablesBackend:
    """`Backend` by way of the nft tool."""

    name = "nftables"
    steers_before_dnat = False

    def check(self) -> None:
        """Nothing is changed: nft has the kernel try each transaction and drop it."""
        run(("nft", "--version"))
        run(("nft", "list", "tables"))
        for needs, text in _PROBES:
            try:
                run(("nft", "-c", "-f", "-"), text)
            except KernelError as error:
                raise KernelError(f"nftables cannot do {needs} here ({error})") from error

    def read(self) -> Installed | None:
        tables = _tables()
        if "inet" not in tables:
            return Installed("", intact=False) if tables else None
        found = _read(_listing(tables))
        return Installed(found.picture, found.sealed and routes.intact())

    def apply(self, desired: Desired) -> None:
        desired = checked(desired)
        text = render(desired)
        wanted = _Found(digest(desired), hashlib.sha256(text.encode()).hexdigest()[:32], sealed=True)
        tables = _tables()
        if "inet" in tables and _read(_listing(tables)) == wanted:
            routes.ensure(desired.settings)
            return
        routes.ensure(desired.settings)
        routes.tune(desired)
        text = render(desired, comment=f"l7proxy {wanted.picture} {wanted.text}")
        if "bridge" in tables and not desired.bridges:
            text += absent("bridge", TABLE)
        run(("nft", "-f", "-"), text)
        _seal()

    def remove(self) -> None:
        gone = "".join(absent(family, TABLE) for family in _tables())
        if gone:
            run(("nft", "-f", "-"), gone)
        routes.remove()


def _tables() -> tuple[str, ...]:
    """The families in which a table of our name exists."""
    names = {tuple(line.split()[1:3]) for line in run(("nft", "list", "tables")).splitlines()}
    return tuple(family for family in ("inet", "bridge") if (family, TABLE) in names)


def _listing(tables: tuple[str, ...]) -> str:
    return "".join(run(("nft", "list", "table", family, TABLE)) for family in tables)


def _read(listing: str) -> _Found:
    comment, seal = _COMMENT.search(listing), _SEAL.search(listing)
    picture, text = comment.groups() if comment else ("", "")
    return _Found(picture, text, sealed=seal is not None and seal[1] == _hash(listing))


def _hash(listing: str) -> str:
    """Of everything but the seal itself; blank lines come and go with their neighbours."""
    lines = [line for line in _SEAL.sub("", listing).splitlines() if line]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _seal() -> None:
    """A second transaction, because only the kernel knows how it lists. Without it the next `apply` starts over."""
    mark = _hash(_listing(_tables()))
    run(("nft", "-f", "-"), f'table inet {TABLE} {{\n\tchain seal {{\n\t\tcomment "{mark}";\n\t}}\n}}\n')


def _probe(hook: str, rule: str, family: str = "inet") -> str:
    base = f"type filter hook {hook} priority -90; policy accept;"
    return f"table {family} {TABLE}-probe {{\n\tchain c {{\n\t\t{base}\n\t\t{rule}\n\t}}\n}}\n"


def _sample() -> Desired:
    """A picture with one of everything."""
    peers = Entry(Verdict.ALLOW, 17, 53, 99, any_peer=False, peers=(5,))
    steer = Entry(Verdict.STEER, 6, 80, 80, any_peer=True, peers=())
    return Desired(
        identities=(("0.0.0.0/0", 2), ("10.0.0.0/8", 3), ("10.0.0.1/32", 4), ("fd00::/8", 3)),
        endpoints=(
            Endpoint(
                1, ("10.0.0.1", "fd00::1"), Port("p", "02:00:00:00:00:01", "b"), union((peers, steer)), union((steer,))
            ),
        ),
        bridges=(Bridge("b", "02:00:00:00:00:02"),),
    )


_PROBES: Final = (
    ("tables of the inet family (CONFIG_NF_TABLES_INET)", f"table inet {TABLE}-probe\n"),
    ("connection tracking (CONFIG_NFT_CT, nf_conntrack)", _probe("prerouting", "ct direction reply accept")),
    ("TPROXY (CONFIG_NFT_TPROXY, nft_tproxy)", _probe("prerouting", "meta l4proto tcp tproxy to :1")),
    ("socket matching (CONFIG_NFT_SOCKET, nft_socket; Linux 5.14)", _probe("prerouting", "socket wildcard 0")),
    ("logging to a group (CONFIG_NFT_LOG, nfnetlink_log)", _probe("prerouting", "log group 1")),
    (
        "resets in prerouting (CONFIG_NFT_REJECT_INET; Linux 5.9)",
        _probe("prerouting", "tcp dport 1 reject with tcp reset"),
    ),
    ("route lookups (CONFIG_NFT_FIB_INET, nft_fib_inet)", _probe("prerouting", "fib daddr type local accept")),
    ("tables of the bridge family (CONFIG_NF_TABLES_BRIDGE)", _probe("prerouting", "accept", "bridge")),
    (
        "our rules",
        render(_sample())
        .replace(f"inet {TABLE}", f"inet {TABLE}-probe")
        .replace(f"bridge {TABLE}", f"bridge {TABLE}-probe"),
    ),
)
