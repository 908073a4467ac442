"""Rate limits of NFLOG events per sender, and exact counters of packets without an event.

A flooding pod must not hide events of others. So each local address verified by anti-spoofing has its own limits, for
refused and for accepted packets, and only its own packets count. If the address is unverified (spoofing, and all of the
bridge table) the sender is the input interface. Remote senders, of which there may be many, have a limit each and one
in common.

Local pods have no common limit, because a few pods could use it up. Their total rate is at most their number times a
tenth of `log_rate`; the kernel's queue drops what the reader cannot take, and the reader counts the losses.

Packets without an event are counted by sender and code (see marks.log_code), exactly. The counters live as long as
their table.
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
    """Named limits: one shared by all remote senders, one by all accepted packets."""
    rate = settings.log_rate
    return "".join(
        f"\tlimit {name} {{\n\t\trate {rate}/second burst {rate} packets\n\t}}\n" for name in ("passed", "elsewhere")
    )


def by_address(settings: Settings) -> Iterator[Set | Chain]:
    """`limit_refused` and `limit_passed`, for the inet table. They use its sets `homes`."""
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
    """Remote senders may outnumber any set, so only their code is counted, as when a set is full."""
    forget = "meta priority set 0:0"
    yield from (
        f"{here[version]} update @suppressed{version} {{ {address} . meta priority counter }} {forget} return"
        for version, address in _ADDRESSES.items()
    )
    yield "update @suppressed { meta priority counter }"
    yield forget


def by_port(settings: Settings) -> Iterator[Set | Chain]:
    """`limit_port`, for both tables."""
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
    """Packets without an event, since the table was created. KernelError if there is no table."""
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
