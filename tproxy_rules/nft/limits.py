"""How often the kernel tells of packets: a limit for each sender, and exact counts of what is not told.

A pod that floods must not hide what others do. So each address of this node that anti-spoofing vouches for has a limit
of its own, for refusals and for what passes, and nobody else's traffic counts there. Where the address may be a lie
(spoofing itself, and all of the bridge table) the sender is the interface it came in by. Senders elsewhere, who may be
very many, have limits of their own under one for all of them.

There is no limit for all pods of the node together: it would be one that a few could use up. What they can make in sum
is their number times a tenth of `log_rate`; what the reader cannot take of it, the kernel's queue drops, and the
reader counts.

Packets that are not told are counted by sender and code (see marks.log_code), as exactly as the kernel counts. The
counts live as long as their table.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

from tproxy_rules.backend import Suppressed
from tproxy_rules.desired import Settings
from tproxy_rules.marks import TABLE, read_code
from tproxy_rules.nft.table import Chain, Set, chain, dynamic_set
from tproxy_rules.tool import run

_ADDRESSES: Final = {4: "ip saddr", 6: "ip6 saddr"}
_READ: Final = {
    "inet": ("suppressed4", "suppressed6", "suppressed_port", "suppressed"),
    "bridge": ("suppressed_port",),
}


def node_limits(settings: Settings) -> str:
    """What all senders elsewhere share, and all that passes."""
    rate = settings.log_rate
    return "".join(
        f"\tlimit {name} {{\n\t\trate {rate}/second burst {rate} packets\n\t}}\n" for name in ("passed", "elsewhere")
    )


def by_address(settings: Settings) -> Iterator[Set | Chain]:
    """For the inet table: `limit_refused` and `limit_passed`. Needs its sets of homes."""
    share = _share(settings)
    for version in _ADDRESSES:
        kind = f"ipv{version}_addr"
        for name in ("refused", "elsewhere", "passed"):
            yield dynamic_set(f"{name}{version}", kind, seconds=60)
        yield dynamic_set(f"suppressed{version}", f"{kind} . classid")
    yield dynamic_set("suppressed", "classid")
    here = {version: f"{address} @homes{version}" for version, address in _ADDRESSES.items()}
    yield chain("suppress", _suppress(here))
    yield chain("limit_refused", _limit_refused(here, share))
    passed = (
        f"update @passed{v} {{ {address} {share} }} limit name passed return" for v, address in _ADDRESSES.items()
    )
    yield chain("limit_passed", (*passed, "goto suppress"))


def _limit_refused(here: dict[int, str], share: str) -> Iterator[str]:
    for version, address in _ADDRESSES.items():
        yield f"{here[version]} update @refused{version} {{ {address} {share} }} return"
        yield f"{here[version]} goto suppress"
    for version, address in _ADDRESSES.items():
        yield f"update @elsewhere{version} {{ {address} {share} }} limit name elsewhere return"
    yield "goto suppress"


def _suppress(here: dict[int, str]) -> Iterator[str]:
    """Of senders elsewhere there may be more than any set holds: only the code is counted, as when a set is full."""
    forget = "meta priority set 0:0"
    yield from (
        f"{here[version]} update @suppressed{version} {{ {address} . meta priority counter }} {forget} return"
        for version, address in _ADDRESSES.items()
    )
    yield "update @suppressed { meta priority counter }"
    yield forget


def by_port(settings: Settings) -> Iterator[Set | Chain]:
    """For both tables: `limit_port`."""
    yield dynamic_set("ports_heard", "ifname", seconds=60)
    yield dynamic_set("suppressed_port", "ifname . classid")
    rules = (
        f"update @ports_heard {{ iifname {_share(settings)} }} return",
        "update @suppressed_port { iifname . meta priority counter }",
        "meta priority set 0:0",
    )
    yield chain("limit_port", rules)


def _share(settings: Settings) -> str:
    share = max(settings.log_rate // 10, 1)
    return f"limit rate {share}/second burst {share} packets"


def read(family: str) -> dict[Suppressed, int]:
    """Packets that were not told of, as the table counts them since it was made. KernelError when there is none."""
    found: dict[Suppressed, int] = {}
    for name in _READ[family]:
        listed = json.loads(run(("nft", "-j", "list", "set", family, TABLE, name)))["nftables"]
        for item in (item for one in listed for item in one.get("set", {}).get("elem", ())):
            key = _key(item["elem"]["val"])
            if key is not None:
                found[key] = found.get(key, 0) + int(item["elem"]["counter"]["packets"])
    return found


def _key(value: Any) -> Suppressed | None:
    source, code = value["concat"] if isinstance(value, dict) else ("", value)
    major, _, minor = str(code).partition(":")
    parts = read_code(int(major or "0", 16) << 16 | int(minor or "0", 16))
    return Suppressed(str(source), *parts) if parts is not None else None
