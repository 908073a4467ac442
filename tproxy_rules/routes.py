"""The policy routing that hands marked packets to local sockets.

  priority P-2  fwmark BOTH/BOTH  -> table T    made here (output) and to be proxied
  priority P-1  iif lo fwmark M/M -> main       IPv4 only; with net.ipv4.conf.*.src_valid_mark=1 the reverse path of a
                                                marked packet is looked up with its mark, found in T, and refused as
                                                martian. Only that lookup has iif lo and the proxy's bit alone.
  priority P    fwmark M/M        -> table T    came in and to be proxied
  table T: local default dev lo

Ours are the rules and routes of protocol 77, whatever their numbers: that is how those of an older configuration are
found. They go in before the packet rules and out after them.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from tproxy_rules.backend import KernelError
from tproxy_rules.desired import Desired, Settings
from tproxy_rules.marks import ROUTE_PROTOCOL

_LOG = logging.getLogger(__name__)
_MAIN: Final = 254
_RT_LOCAL: Final = 2
_FR_ACT_TO_TBL: Final = 1


@dataclass(frozen=True, slots=True, order=True)
class Rule:
    """An `ip rule` of ours."""

    priority: int
    mark: int
    table: int
    incoming: str = ""


def wanted(settings: Settings, family: int) -> tuple[Rule, ...]:
    """The rules of one family, in ascending priority."""
    mark, both = settings.mark_proxy, settings.mark_proxy | settings.mark_upstream
    last = settings.rule_priority
    made_here = Rule(last - 2, both, settings.route_table)
    reverse_path = [Rule(last - 1, mark, _MAIN, "lo")] if family == 4 else []
    return (made_here, *reverse_path, Rule(last, mark, settings.route_table))


def ensure(settings: Settings) -> None:
    """Exactly the wanted rules and routes, whatever ours was there before."""
    with _netlink() as netlink:
        for family in (4, 6):
            rules = wanted(settings, family) if family in families(settings) else ()
            found = _rules(netlink, family)
            # The new ones first: between the two states a marked packet always has its way.
            if rules and settings.route_table not in _tables(netlink, family):
                _change(netlink, "add", family, settings.route_table)
            for rule in sorted(set(rules) - set(found)):
                _rule(netlink, "add", family, rule)
            for rule in found:
                if rule not in rules:
                    _rule(netlink, "del", family, rule)
            for table in _tables(netlink, family):
                if not rules or table != settings.route_table:
                    _change(netlink, "del", family, table)


def remove() -> None:
    """No rule and no route of ours, in either family."""
    with _netlink() as netlink:
        for family in (4, 6):
            for rule in _rules(netlink, family):
                _rule(netlink, "del", family, rule)
            for table in _tables(netlink, family):
                _change(netlink, "del", family, table)


def intact() -> bool:
    """Whether ours are complete in themselves, as far as can be told without knowing the settings they were made by.

    IPv4 is always there. Its last rule tells the mark and the table, and the others follow from those.
    """
    with _netlink() as netlink:
        for family in (4, 6):
            rules, tables = _rules(netlink, family), _tables(netlink, family)
            if family == 6 and not rules and not tables:
                continue
            if not rules or tables != [rules[-1].table] or rules != list(_implied(rules, family)):
                return False
    return True


def _implied(rules: list[Rule], family: int) -> tuple[Rule, ...]:
    last = rules[-1]
    upstream = rules[0].mark & ~last.mark
    settings = Settings(
        mark_proxy=last.mark, mark_upstream=upstream, route_table=last.table, rule_priority=last.priority
    )
    return wanted(settings, family)


def families(settings: Settings) -> tuple[int, ...]:
    """Those of the settings that this kernel speaks. Where IPv6 is off nothing of it can be steered, nor need it be."""
    return tuple(family for family in settings.families if family == 4 or _has_ipv6())


def tune(desired: Desired) -> None:
    """The sysctls that help. They are left as they are by `remove`.

    accept_source_route: a route chosen by the sender leads around policy. It is off unless somebody asked for it, and
    nftables refuses such packets itself, but iptables has no match for them.
    tcp_migrate_req: when one worker of a SO_REUSEPORT group dies, those waiting in its queue go to the others.
    send_redirects: steered frames leave by the interface they came from, which the node would complain about to pods.
    """
    names = ["net/ipv4/tcp_migrate_req=1", "net/ipv4/conf/all/accept_source_route=0"]
    if desired.bridges:
        names += [f"net/ipv4/conf/{name}/send_redirects=0" for name in ("all", *(one.name for one in desired.bridges))]
    for name in names:
        path, _, value = name.partition("=")
        try:
            Path("/proc/sys", path).write_text(value, encoding="ascii")
        except OSError as error:
            _LOG.warning("cannot set sysctl %s: %s", name, error)


def _has_ipv6() -> bool:
    try:
        return Path("/proc/sys/net/ipv6/conf/lo/disable_ipv6").read_text(encoding="ascii").strip() == "0"
    except OSError:
        return False


def _netlink() -> IPRoute:
    try:
        return IPRoute()
    except OSError as error:
        raise KernelError(f"cannot open a route netlink socket: {error}") from error


def _af(family: int) -> int:
    return socket.AF_INET if family == 4 else socket.AF_INET6


def _rules(netlink: IPRoute, family: int) -> list[Rule]:
    return sorted(_read_rules(netlink.get_rules(family=_af(family))))


def _read_rules(messages: Iterator[Any]) -> Iterator[Rule]:
    for message in messages:
        found = dict(message["attrs"])
        if found.get("FRA_PROTOCOL") == ROUTE_PROTOCOL:
            yield Rule(
                found.get("FRA_PRIORITY", 0),
                found.get("FRA_FWMARK", 0),
                found.get("FRA_TABLE", 0),
                found.get("FRA_IIFNAME", ""),
            )


def _tables(netlink: IPRoute, family: int) -> list[int]:
    """Tables that hold a route of ours."""
    found = netlink.get_routes(family=_af(family), proto=ROUTE_PROTOCOL)
    return sorted({dict(one["attrs"]).get("RTA_TABLE", one["table"]) for one in found})


def _rule(netlink: IPRoute, verb: str, family: int, rule: Rule) -> None:
    more = {"iifname": rule.incoming} if rule.incoming else {}
    try:
        netlink.rule(
            verb,
            family=_af(family),
            priority=rule.priority,
            fwmark=rule.mark,
            fwmask=rule.mark,
            table=rule.table,
            protocol=ROUTE_PROTOCOL,
            action=_FR_ACT_TO_TBL,
            **more,
        )
    except NetlinkError as error:
        raise KernelError(f"ip rule {verb} priority {rule.priority} (IPv{family}): {_why(error)}") from error


def _change(netlink: IPRoute, verb: str, family: int, table: int) -> None:
    try:
        netlink.route(
            verb,
            family=_af(family),
            type=_RT_LOCAL,
            scope=254,
            dst="0.0.0.0/0" if family == 4 else "::/0",
            oif=socket.if_nametoindex("lo"),
            table=table,
            proto=ROUTE_PROTOCOL,
        )
    except NetlinkError as error:
        raise KernelError(f"ip route {verb} local default dev lo table {table} (IPv{family}): {_why(error)}") from error


def _why(error: NetlinkError) -> str:
    if error.code == errno.ENETDOWN:
        return "the interface lo is down: run `ip link set lo up`"
    if error.code == errno.EPERM:
        return "permission denied: run as root, or with CAP_NET_ADMIN in this network namespace"
    return str(error)
