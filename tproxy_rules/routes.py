"""The policy routing that delivers marked packets to local sockets.

  priority P-2  fwmark BOTH/BOTH  -> table T    made on this node (output), for the proxy
  priority P-1  iif lo fwmark M/M -> main       IPv4 only; with net.ipv4.conf.*.src_valid_mark=1 the reverse path of a
                                                marked packet is looked up with its mark, found in T, and refused as
                                                martian. Only that lookup has iif lo and the proxy's bit alone.
  priority P    fwmark M/M        -> table T    received, for the proxy
  table T: local default dev lo

Ours are the rules and routes of protocol 77, whatever their numbers, so those of an older configuration are found, too.
They are added before the packet rules and removed after them.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from tproxy_rules import sysctl
from tproxy_rules.backend import KernelError
from tproxy_rules.desired import Desired, Settings
from tproxy_rules.marks import ROUTE_PROTOCOL
from tproxy_rules.sysctl import Sysctls

_LOG = logging.getLogger(__name__)
_MAIN: Final = 254
_RT_LOCAL: Final = 2
_FR_ACT_TO_TBL: Final = 1


@dataclass(frozen=True, slots=True, order=True)
class Rule:
    priority: int
    mark: int
    table: int
    incoming: str = ""


def wanted(settings: Settings, family: int) -> tuple[Rule, ...]:
    """The rules of one IP family, in ascending priority."""
    mark, both = settings.mark_proxy, settings.mark_proxy | settings.mark_upstream
    last = settings.rule_priority
    made_here = Rule(last - 2, both, settings.route_table)
    reverse_path = [Rule(last - 1, mark, _MAIN, "lo")] if family == 4 else []
    return (made_here, *reverse_path, Rule(last, mark, settings.route_table))


def ensure(settings: Settings) -> None:
    """Make our rules and routes exactly those of `settings`."""
    with _netlink() as netlink:
        for family in (4, 6):
            rules = wanted(settings, family) if family in families(settings) else ()
            found = _rules(netlink, family)
            # New ones first, so that a marked packet has a route at every moment.
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
    """Delete all our rules and routes, in both IP families."""
    with _netlink() as netlink:
        for family in (4, 6):
            for rule in _rules(netlink, family):
                _rule(netlink, "del", family, rule)
            for table in _tables(netlink, family):
                _change(netlink, "del", family, table)


def intact() -> bool:
    """True if our rules and routes are consistent, as far as this can be seen without the settings.

    IPv4 is always present. Its last rule gives the mark and the table, from which the others follow.
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
    """The configured IP families that this kernel supports. Where IPv6 is off, nothing of it needs redirecting."""
    return tuple(family for family in settings.families if family == 4 or _has_ipv6())


def tune(desired: Desired, sysctls: Sysctls) -> None:
    """Set the sysctls that the rules need. `remove` leaves them as they are: see `Sysctls.restore`.

    accept_source_route: a route chosen by the sender could bypass policy. It is off by default; nftables refuses such
    packets itself, but iptables has no match for them.
    tcp_migrate_req: when a worker of a SO_REUSEPORT group dies, connections in its accept queue go to the others.
    send_redirects: redirected frames leave by their input interface; the node would send ICMP redirects to pods for it.
    """
    names = ["net/ipv4/tcp_migrate_req=1", "net/ipv4/conf/all/accept_source_route=0"]
    if desired.bridges:
        names += [f"net/ipv4/conf/{name}/send_redirects=0" for name in ("all", *(one.name for one in desired.bridges))]
    for name in names:
        path, _, value = name.partition("=")
        try:
            sysctls.set(path, value)
        except OSError as error:
            _LOG.warning("cannot set sysctl %s: %s", name, error)


def _has_ipv6() -> bool:
    try:
        return sysctl.read("net/ipv6/conf/lo/disable_ipv6") == "0"
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
    """Routing tables with a route of ours."""
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
