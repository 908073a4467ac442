"""Renders the iptables chains and sets of one IP family. Pure.

  raw PREROUTING      L7P-GUARD   anti-spoofing
  raw OUTPUT          L7P-APART   puts the proxy's own connections into their own conntrack zone
  mangle PREROUTING   L7P-PRE     redirection to the proxy (TPROXY exists only here, before Service DNAT)
  mangle OUTPUT       L7P-OUT     the same for packets of the node itself, routed again over lo
  mangle POSTROUTING  L7P-LEAK    packets marked for the proxy never leave the node
  nat                 L7P-NAT     redirected packets keep their destination
  filter FORWARD, INPUT, OUTPUT   all other verdicts, after DNAT

The mangle chains only decide on redirection: a packet is redirected if one direction says so and neither refuses it.
All others are left to `filter`, which sees the backend pod of a Service and can send resets. A Service address with any
backend that needs the proxy is redirected as a whole, and the proxy evaluates the policy. A packet that `filter` finds
to need redirection was translated by DNAT that is not in the desired state, and is refused.

In the chains that only mark (`_quiet`), the proxy's mark bit means "redirect", both bits mean "refused by a direction".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Final

from tproxy_rules.desired import Desired, Endpoint, Entry, Settings, Stage, Table, Verdict
from tproxy_rules.iptables.sets import IpSet, PeerSets, addresses, ip_set
from tproxy_rules.marks import (
    CHAIN_PREFIX,
    CONNTRACK_ZONE,
    LOG_QUEUE,
    LOG_SNAPLEN,
    PASSED,
    UNVERIFIED,
    LogDirection,
    LogEvent,
    log_prefix,
)
from tproxy_rules.networks import family
from tproxy_rules.shapes import BY_PRECEDENCE
from tproxy_rules.validate import ANY_PROTOCOL, ICMP, MAX_PORT, PROTOCOL_NAMES, TCP, WITH_PORTS

FIRST: Final = "-m conntrack --ctstate NEW -m conntrack ! --ctstatus CONFIRMED"
REPLY: Final = "-m conntrack --ctdir REPLY"
_MAX_LIMIT: Final = 10_000
"""Maximum rate that xt_limit supports, per second."""
_MATCHES: Final = {"icmp": "icmp", "icmpv6": "icmp6"}
_LETTER: Final = {Verdict.DENY: "d", Verdict.STEER: "s", Verdict.ALLOW: "a"}
_ND: Final = (133, 134, 135, 136)
_OF_ROUTERS: Final = {4: ("icmp", ("3/4", "4", "5", "11/0")), 6: ("icmpv6", ("2", "3/0"))}
"""See nft/inet, chain "router"."""
_OF_HOSTS: Final = {4: ("icmp", ("3", "11", "12")), 6: ("icmpv6", ("1", "3", "4"))}
"""See nft/inet, chain "icmp_error"."""
_ERRORS: Final = {4: ("icmp", ("3", "4", "5", "11", "12")), 6: ("icmpv6", ("1", "2", "3", "4"))}
_UNASSIGNED_ERROR: Final = '-m u32 --u32 "3&0xFF=58&&37&0xFF=5:127"'
"""ICMPv6 directly after the IPv6 header, with an unassigned type of the error range (RFC 4443, 2.1)."""
_LISTENER: Final = (130, 131, 132, 143)
_FROM_LINK_LOCAL: Final = (130, 131, 132, 133, 135, 136, 143)


@dataclass(slots=True)
class IptTable:
    """Our chains in one table, and the jumps that must be first in its base chains."""

    name: str
    chains: dict[str, list[str]] = field(default_factory=dict)
    jumps: list[tuple[str, str]] = field(default_factory=list)

    def chain(self, name: str, rules: Iterable[str]) -> None:
        """A rule may hold several, one per line."""
        self.chains[CHAIN_PREFIX + name] = [line for rule in rules for line in rule.split("\n")]

    def base(self, hook: str, name: str, rules: Iterable[str]) -> None:
        self.chain(name, rules)
        self.jumps.append((hook, CHAIN_PREFIX + name))


@dataclass(frozen=True, slots=True)
class Asks:
    """One tier: matches with their verdicts, in order; the first match wins."""

    rules: tuple[tuple[str, Verdict], ...]
    closed: bool


@dataclass(frozen=True, slots=True)
class Family:
    """The rules of one IP family. Tables are in the order in which they are applied."""

    version: int
    tables: tuple[IptTable, ...]
    sets: tuple[IpSet, ...]


def render(desired: Desired, version: int) -> Family:
    """For a canonical state."""
    return _Renderer(desired, version).render()


class _Renderer:
    """Collects sets while it renders chains."""

    def __init__(self, desired: Desired, version: int) -> None:
        self.desired = desired
        self.settings: Settings = desired.settings
        self.version = version
        self.peers = PeerSets(desired.identities, version)
        self.named: dict[str, IpSet] = {}
        self.proxy = _bits(self.settings.mark_proxy)
        self.upstream = _bits(self.settings.mark_upstream)
        self.both = _bits(self.settings.mark_proxy | self.settings.mark_upstream)

    def render(self) -> Family:
        tables = (self._raw(), self._nat(), self._filter(), self._mangle())
        return Family(self.version, tables, (*self.named.values(), *self.peers.made()))

    # --- endpoints ----------------------------------------------------------------------------------------------------

    def _own(self, endpoint: Endpoint) -> list[str]:
        return [address for address in endpoint.addresses if family(address) == self.version]

    def _with(self, way: LogDirection) -> Iterator[tuple[Endpoint, Table]]:
        """Endpoints with a policy in this direction."""
        for endpoint in self.desired.endpoints:
            one = endpoint.egress if way is LogDirection.EGRESS else endpoint.ingress
            if one is not None and one.governed and self._own(endpoint):
                yield endpoint, one

    def _without_policy(self) -> Mapping[Table, list[Endpoint]]:
        """Endpoints with denials only, by table: mostly one for all."""
        found: dict[Table, list[Endpoint]] = {}
        for endpoint in self.desired.endpoints:
            if endpoint.egress is not None and not endpoint.egress.governed and self._own(endpoint):
                found.setdefault(endpoint.egress, []).append(endpoint)
        return found

    def _in(self, one: IpSet, flags: str) -> str:
        self.named[one.name] = one
        return f"-m set --match-set {one.name} {flags}"

    def _not_in(self, one: IpSet, flags: str) -> str:
        self.named[one.name] = one
        return f"-m set ! --match-set {one.name} {flags}"

    # --- raw ----------------------------------------------------------------------------------------------------------

    def _raw(self) -> IptTable:
        table = IptTable("raw")
        table.chain("SPOOF", [self._log(LogEvent.SPOOF, LogDirection.EGRESS, 0), "-j DROP"])
        if self.version == 6:
            table.chain("LINK", self._link_local_unicast(LogDirection.EGRESS))
        table.chain("ERROR", self._icmp_error())
        table.base("PREROUTING", "GUARD", self._guard())
        # Only the original direction: replies arrive without a zone, see nft/inet.
        table.base("OUTPUT", "APART", [f"-m mark --mark {self.upstream} -j CT --zone-orig {CONNTRACK_ZONE}"])
        return table

    def _guard(self) -> Iterator[str]:
        """Same semantics as `guard` of nft/inet; a routed port is matched by name, with one rule each."""
        cabled = [(one, one.port) for one in self.desired.endpoints if one.port]
        pairs = [f"{a},{port.bridge or port.interface}" for one, port in cabled for a in self._own(one)]
        homes = [address for one, _ in cabled for address in self._own(one)]
        everything = "0.0.0.0/0" if self.version == 4 else "::/0"
        yield "-i lo -j RETURN"
        if self.version == 4:
            yield f"-d 127.0.0.0/8 -g {CHAIN_PREFIX}SPOOF"
        # See nft/inet. iptables cannot match a frame's destination, only that it is a group.
        addressed = "! -d 224.0.0.0/4" if self.version == 4 else "! -d ff00::/8"
        if self.desired.bridges:
            yield f"-m pkttype --pkt-type multicast {addressed} -g {CHAIN_PREFIX}SPOOF"
        if bridged := [f"{everything},{name}" for name in self._bridged()]:
            yield f"{self._in(ip_set('bp', 'hash:net,iface', self.version, bridged), 'src,src')} -g {CHAIN_PREFIX}SPOOF"
        if self.version == 6:
            for nowhere in ("::1/128", "::ffff:0:0/96"):
                yield f"-s {nowhere} -g {CHAIN_PREFIX}SPOOF"
                yield f"-d {nowhere} -g {CHAIN_PREFIX}SPOOF"
            if links := self._links():
                yield f"{self._in(links, 'dst,src')} -j {CHAIN_PREFIX}LINK"
                yield f"{self._in(links, 'src,src')} ! -d ff00::/8 -j {CHAIN_PREFIX}LINK"
        if self.desired.bridges:
            marked = f"-m mark --mark {self.upstream}"  # set by ebtables: a frame from the port of an unknown pod
            yield f"{marked} {self._in(self._single(), 'src')} -g {CHAIN_PREFIX}SPOOF"
            protocol, kinds = _ERRORS[self.version]
            yield from (f"{marked} -p {protocol} --{protocol}-type {kind} -g {CHAIN_PREFIX}SPOOF" for kind in kinds)
            if self.version == 6:
                yield f"{marked} {_UNASSIGNED_ERROR} -g {CHAIN_PREFIX}SPOOF"
        if pairs:
            home, (protocol, kinds) = addresses("home", self.version, homes), _OF_ROUTERS[self.version]
            for type_ in kinds:
                yield f"-p {protocol} --{protocol}-type {type_} {self._in(home, 'src')} -g {CHAIN_PREFIX}SPOOF"
            for type_ in _OF_HOSTS[self.version][1]:
                yield f"-p {protocol} --{protocol}-type {type_} {self._in(home, 'src')} -j {CHAIN_PREFIX}ERROR"
            if self.version == 6:
                yield f"{_UNASSIGNED_ERROR} {self._in(home, 'src')} -g {CHAIN_PREFIX}SPOOF"
            yield f"{self._in(ip_set('own', 'hash:net,iface', self.version, pairs), 'src,src')} -j RETURN"
            yield f"{self._in(home, 'src')} -g {CHAIN_PREFIX}SPOOF"
        for _, port in cabled:
            if not port.bridge:
                if self.version == 6:
                    for source in ("fe80::/10", "::/128"):
                        for kind in _FROM_LINK_LOCAL:
                            yield f"-i {port.interface} -s {source} -p icmpv6 --icmpv6-type {kind} -j RETURN"
                yield f"-i {port.interface} -g {CHAIN_PREFIX}SPOOF"

    def _single(self) -> IpSet:
        """The addresses with an identity of their own."""
        listed = (prefix.partition("/") for prefix, _ in self.desired.identities)
        single = [address for address, _, length in listed if length == ("32" if self.version == 4 else "128")]
        return addresses("id", self.version, single)

    def _held(self, way: LogDirection) -> Iterator[str]:
        """Matches an address of this node's pods without an identity of its own, if there are such prefixes."""
        held = [prefix for prefix in self.desired.held if family(prefix) == self.version]
        if not held:
            return
        end = "src" if way is LogDirection.EGRESS else "dst"
        unicast = " -m addrtype --dst-type UNICAST" if way is LogDirection.INGRESS else ""
        known = self._not_in(self._single(), end)
        yield f"{self._in(ip_set('held', 'hash:net', self.version, held), end)} {known}{unicast}"

    def _icmp_error(self) -> Iterator[str]:
        """One rule per address, because xt_u32 compares with numbers only."""
        for endpoint in self.desired.endpoints:
            if endpoint.port:
                yield from (f'-s {a} -m u32 --u32 "{_quotes(a)}" -j RETURN' for a in self._own(endpoint))
        yield f"-g {CHAIN_PREFIX}SPOOF"

    def _bridged(self) -> list[str]:
        """All ports of bridges with pods."""
        known = {one.port.interface for one in self.desired.endpoints if one.port and one.port.bridge}
        return sorted(known.union(*(bridge.ports for bridge in self.desired.bridges)))

    def _links(self) -> IpSet | None:
        """Link-local addresses on interfaces that lead to pods only."""
        routed = [one.port.interface for one in self.desired.endpoints if one.port and not one.port.bridge]
        closed = [bridge.name for bridge in self.desired.bridges if not bridge.uplinks]
        members = [f"fe80::/10,{name}" for name in (*routed, *closed)]
        return ip_set("ll", "hash:net,iface", 6, members) if members else None

    def _link_local_unicast(self, way: LogDirection) -> Iterator[str]:
        """Returns for link protocols only: RFC 4861 (hop limit 255), RFC 3810, section 5 (hop limit 1)."""
        for limit, kinds in ((255, (*_ND, 137)), (1, _LISTENER)):
            yield from (f"-p icmpv6 --icmpv6-type {kind} -m hl --hl-eq {limit} -j RETURN" for kind in kinds)
        yield self._log(LogEvent.LINK_LOCAL, way, 0)
        yield "-j DROP"

    # --- nat ----------------------------------------------------------------------------------------------------------

    def _nat(self) -> IptTable:
        table = IptTable("nat")
        table.base("PREROUTING", "NAT", [f"-m mark --mark {self.proxy} -j ACCEPT"])
        table.jumps.append(("OUTPUT", CHAIN_PREFIX + "NAT"))
        return table

    # --- filter -------------------------------------------------------------------------------------------------------

    def _filter(self) -> IptTable:
        table = IptTable("filter")
        reset = "-p tcp -m conntrack ! --ctstate INVALID -j REJECT --reject-with tcp-reset"
        table.chain("REFUSE", [*([reset] if self.settings.refuse_with_reset else []), "-j DROP"])
        for way, letter in ((LogDirection.EGRESS, "E"), (LogDirection.INGRESS, "I")):
            for endpoint, one in self._with(way):
                self._judging(table, f"{letter}{endpoint.id}", endpoint, way, self._asks(one, way))
        for endpoint, one in self._with(LogDirection.INGRESS):
            self._judging(table, f"O{endpoint.id}", endpoint, LogDirection.INGRESS, self._asks_host(one))
        egress = [
            f"-s {a} -j {CHAIN_PREFIX}E{one.id}" for one, _ in self._with(LogDirection.EGRESS) for a in self._own(one)
        ]
        ingress = [
            f"-d {a} -j {CHAIN_PREFIX}I{one.id}" for one, _ in self._with(LogDirection.INGRESS) for a in self._own(one)
        ]
        host = [
            f"-d {a} -j {CHAIN_PREFIX}O{one.id}" for one, _ in self._with(LogDirection.INGRESS) for a in self._own(one)
        ]
        held: dict[LogDirection, list[str]] = {}
        for way in LogDirection:
            name = f"HELD{way.value[0].upper()}"
            if self.desired.held:
                table.chain(name, [self._log(LogEvent.NONE, way, 0), f"-g {CHAIN_PREFIX}REFUSE"])
            held[way] = [f"{match} -g {CHAIN_PREFIX}{name}" for match in self._held(way)]
        closed = [rule for rules in held.values() for rule in rules]
        marked = f"-m mark --mark {self.proxy}"
        always = [*self._passing(), *self._refusals(table)]
        table.base("FORWARD", "FWD", [f"{marked} -j DROP", *always, *closed, *self._governed(), *egress, *ingress])
        local = [*always, *held[LogDirection.EGRESS], *egress]
        table.base("INPUT", "IN", ["-i lo -j RETURN", f"{marked} -j RETURN", *self._dialled(), *local])
        dialled = f"-m mark --mark {self.upstream}"
        # The proxy resolves Services itself, and may know an address of one before its pod is known.
        unknown = [f"{dialled} {rule}" for rule in held[LogDirection.INGRESS]]
        quiet = [f"{marked} -j RETURN", *unknown, f"{dialled} -j RETURN", "-o lo -j RETURN"]
        table.base("OUTPUT", "OUT", [*quiet, *self._to_link_local(table), *self._redirects(), *self._passing(), *host])
        return table

    def _passing(self) -> Iterator[str]:
        """Accepts replies, errors about accepted flows, and link protocols."""
        yield f"{REPLY} -j RETURN"
        if self.version == 4:
            for kind in ("destination-unreachable", "time-exceeded", "parameter-problem"):
                yield f"-p icmp --icmp-type {kind} -m conntrack --ctstate RELATED -j RETURN"
            yield "-p igmp -d 224.0.0.0/24 -j RETURN"
            return
        for kind6 in (1, 2, 3, 4):
            yield f"-p icmpv6 --icmpv6-type {kind6} -m conntrack --ctstate RELATED -j RETURN"
        # RFC 4861: hop limit 255. Forwarding has already decremented it, so this never matches a routed packet.
        for kind6 in _ND:
            yield f"-p icmpv6 --icmpv6-type {kind6} -m hl --hl-eq 255 -j RETURN"
        for kind6 in _LISTENER:
            yield f"-d ff02::/16 -p icmpv6 --icmpv6-type {kind6} -j RETURN"

    def _governed(self) -> Iterator[str]:
        """Returns for packets without a governed pod on either side, after two lookups."""
        here = {a for way in LogDirection for one, _ in self._with(way) for a in self._own(one)}
        one = addresses("gov", self.version, here)
        yield f"{self._not_in(one, 'src')} {self._not_in(one, 'dst')} -j RETURN"

    def _refusals(self, table: IptTable) -> list[str]:
        """Jumps to the denials of pods without policy: one lookup for all of them."""
        jumps = []
        for number, (one, endpoints) in enumerate(self._without_policy().items()):
            chain = f"R{number}"
            refused = [
                f"{match}-g {CHAIN_PREFIX}{chain}d"
                for tier in self._asks(one, LogDirection.EGRESS)
                for match, _ in tier.rules
            ]
            table.chain(chain, ["-p tcp -j RETURN", *refused])
            table.chain(f"{chain}d", [rule for endpoint in endpoints for rule in self._refused(table, endpoint)])
            members = addresses("open", self.version, [a for endpoint in endpoints for a in self._own(endpoint)])
            jumps.append(f"{self._in(members, 'src')} -j {CHAIN_PREFIX}{chain}")
        return jumps

    def _refused(self, table: IptTable, endpoint: Endpoint) -> Iterator[str]:
        """Denials for all pods, logged per pod; packets from a pod to itself pass."""
        name = self._denying(table, f"E{endpoint.id}", LogDirection.EGRESS, endpoint)
        for source in self._own(endpoint):
            yield from (f"-s {source} {itself}" for itself in self._selves(endpoint, LogDirection.EGRESS))
            yield f"-s {source} -g {name}"

    def _dialled(self) -> Iterator[str]:
        for protocol, port in self.settings.listeners:
            yield f"-p {PROTOCOL_NAMES[protocol]} --dport {port} -j DROP"

    def _to_link_local(self, table: IptTable) -> Iterator[str]:
        if self.version == 6 and (links := self._links()):
            table.chain("LINK", self._link_local_unicast(LogDirection.INGRESS))
            yield f"{self._in(links, 'dst,dst')} -j {CHAIN_PREFIX}LINK"

    def _redirects(self) -> Iterator[str]:
        if self.version == 6:
            for bridge in self.desired.bridges:
                yield f"-o {bridge.name} -p icmpv6 --icmpv6-type 137 -j DROP"

    def _judging(self, table: IptTable, name: str, endpoint: Endpoint, way: LogDirection, asks: list[Asks]) -> None:
        chain = CHAIN_PREFIX + name
        says = {verdict: f"-g {chain}{letter}" for verdict, letter in _LETTER.items()}
        self._tiers(table, name, self._selves(endpoint, way), asks, says, f"-g {chain}n")
        refuse = f"-g {CHAIN_PREFIX}REFUSE"
        table.chain(f"{name}n", [self._log(LogEvent.NONE, way, endpoint.id), refuse])
        self._denying(table, name, way, endpoint)
        table.chain(f"{name}s", [self._log(LogEvent.UNSERVED, way, endpoint.id), refuse])
        table.chain(f"{name}a", [f"{FIRST} {self._log(LogEvent.ALLOW, way, endpoint.id)}"])

    def _denying(self, table: IptTable, name: str, way: LogDirection, endpoint: Endpoint) -> str:
        table.chain(f"{name}d", [self._log(LogEvent.DENY, way, endpoint.id), f"-g {CHAIN_PREFIX}REFUSE"])
        return f"{CHAIN_PREFIX}{name}d"

    def _tiers(
        self, table: IptTable, name: str, first: list[str], asks: list[Asks], says: dict[Verdict, str], closed: str
    ) -> None:
        """A chain per tier. `says` maps verdicts to actions; `closed` is the action at the end of a closed tier."""
        for number, tier in enumerate(asks or [Asks((), closed=False)]):
            following = f"-g {CHAIN_PREFIX}{name}t{number + 1}" if number + 1 < len(asks) else says[Verdict.ALLOW]
            rules = [
                f"{match}{following if verdict is Verdict.PASS else says[verdict]}" for match, verdict in tier.rules
            ]
            end = closed if tier.closed else following
            table.chain(f"{name}t{number}" if number else name, [*([] if number else first), *rules, end])

    def _selves(self, endpoint: Endpoint, way: LogDirection) -> list[str]:
        return [
            f"{'-d' if way is LogDirection.EGRESS else '-s'} {address} -j RETURN" for address in self._own(endpoint)
        ]

    # --- mangle -------------------------------------------------------------------------------------------------------

    def _mangle(self) -> IptTable:
        table = IptTable("mangle")
        table.chain("DIVERT", [f"-j MARK --set-xmark {self.proxy}", "-j ACCEPT"])
        table.chain("LATER", [f"-j MARK --set-xmark 0x0/{_mask(self.both)}"])
        table.chain("NO", [f"-j MARK --set-xmark {self.both}"])
        table.chain("YES", [f"-j MARK --set-xmark {self.proxy}"])
        # The kernel changed its port, because its reply tuple would equal that of a proxy connection: see nft/inet.
        other_port = f"-p tcp ! --syn -m conntrack --ctstate SNAT -j {CHAIN_PREFIX}DIVERT"
        table.chain("TPROXY", [other_port, *self._tproxy(), "-j DROP"])
        steering = {a for way in LogDirection for one, t in self._with(way) if t.steers for a in self._own(one)}
        tell: list[str] = []
        quiet: dict[LogDirection, list[str]] = {way: [] for way in LogDirection}
        if steering:
            for way, letter, flag in ((LogDirection.EGRESS, "E", "-s"), (LogDirection.INGRESS, "I", "-d")):
                for endpoint, one in self._with(way):
                    self._quiet(table, f"Q{letter}{endpoint.id}", endpoint, way, self._asks(one, way))
                    self._telling(table, f"V{letter}{endpoint.id}", endpoint, way, self._asks(one, way))
                    for address in self._own(endpoint):
                        quiet[way].append(f"{flag} {address} -j {CHAIN_PREFIX}Q{letter}{endpoint.id}")
                        tell.append(f"{flag} {address} -j {CHAIN_PREFIX}V{letter}{endpoint.id}")
        host = []
        for endpoint, one in self._with(LogDirection.INGRESS):
            if one.steers:
                self._quiet(table, f"QO{endpoint.id}", endpoint, LogDirection.INGRESS, self._asks_host(one))
                host += [f"-d {address} -j {CHAIN_PREFIX}QO{endpoint.id}" for address in self._own(endpoint)]
        table.chain("TELL", tell)
        table.chain("STEER", [f"{FIRST} -j {CHAIN_PREFIX}TELL", f"-j {CHAIN_PREFIX}TPROXY"])
        table.base("PREROUTING", "PRE", self._prerouting(steering, quiet))
        table.base("OUTPUT", "OUT", self._output(host))
        table.base("POSTROUTING", "LEAK", [f"! -o lo -m mark --mark {self.proxy} -j DROP"])
        return table

    def _tproxy(self) -> Iterator[str]:
        at = "127.0.0.1" if self.version == 4 else "::1"
        for protocol, port in self.settings.listeners:
            yield f"-p {PROTOCOL_NAMES[protocol]} -j TPROXY --on-ip {at} --on-port {port} --tproxy-mark {self.proxy}"

    def _not_redirected(self) -> str:
        """Returns for protocols without a listener. `filter` evaluates them, and refuses their redirects."""
        others = (f"-m conntrack ! --ctproto {protocol} " for protocol in self.settings.redirected - {TCP})
        tcp = "! -p tcp " if TCP in self.settings.redirected else ""
        return f"{tcp}{''.join(others)}-j RETURN"

    def _prerouting(self, steering: set[str], quiet: dict[LogDirection, list[str]]) -> Iterator[str]:
        icmp = "icmp" if self.version == 4 else "icmpv6"
        later = f"-m mark --mark {self.both} -g {CHAIN_PREFIX}LATER"
        yield f"-i lo -m mark --mark {self.proxy} -j {CHAIN_PREFIX}TPROXY"
        yield "-i lo -j RETURN"
        yield f"-j MARK --set-xmark 0x0/{_mask(self.both)}"
        yield f"{REPLY} -m connmark --mark {self.upstream} -j {CHAIN_PREFIX}DIVERT"
        # xt_socket also finds sockets in TIME_WAIT. A SYN that meets one is evaluated, and TPROXY delivers it to our
        # listener; without TPROXY it could open a connection to a socket of the node with its port.
        yield f"-p tcp ! --syn -m socket --transparent -j {CHAIN_PREFIX}DIVERT"
        yield f"-p {icmp} -m socket --transparent -j {CHAIN_PREFIX}DIVERT"
        yield self._not_redirected()
        yield f"{REPLY} -j RETURN"
        for way in LogDirection:  # `filter` refuses them
            yield from (f"{match} -j RETURN" for match in self._held(way))
        yield from self._frontends(f"-j {CHAIN_PREFIX}TPROXY")
        if steering:
            one = addresses("st", self.version, steering)
            yield f"{self._not_in(one, 'src')} {self._not_in(one, 'dst')} -j RETURN"
            for way in (LogDirection.EGRESS, LogDirection.INGRESS):
                yield from quiet[way]
                yield later
            yield f"-m mark --mark {self.proxy} -j {CHAIN_PREFIX}STEER"

    def _output(self, host: list[str]) -> Iterator[str]:
        yield f"-j MARK --set-xmark 0x0/{_mask(self.proxy)}"
        # xt_CONNMARK does not end the traversal.
        yield f"-m mark --mark {self.upstream} -j CONNMARK --set-xmark {self.upstream}"
        yield f"-m mark --mark {self.upstream} -j RETURN"
        # The proxy's connection to the node itself: replies are made here and return to the proxy over lo.
        yield f"{REPLY} -m connmark --mark {self.upstream} -g {CHAIN_PREFIX}NO"
        yield "-o lo -j RETURN"
        yield self._not_redirected()
        yield f"{REPLY} -j RETURN"
        yield from self._frontends(f"-g {CHAIN_PREFIX}NO")
        yield from host
        yield f"-m mark --mark {self.both} -g {CHAIN_PREFIX}LATER"
        # Both bits select the routing rule for local packets, see routes.
        yield f"-m mark --mark {self.proxy} -j MARK --set-xmark {self.both}"

    def _frontends(self, action: str) -> Iterator[str]:
        for protocol, _ in self.settings.listeners:
            name = PROTOCOL_NAMES[protocol]
            for role, steer, then in (("fs", True, action), ("f", False, "-j RETURN")):
                members = [
                    f"{one.address},{name}:{one.port}"
                    for one in self.desired.frontends
                    if (one.protocol, one.steer) == (protocol, steer) and family(one.address) == self.version
                ]
                if members:
                    named = ip_set(role, "hash:ip,port", self.version, members)
                    yield f"-p {name} {self._in(named, 'dst,dst')} {then}"

    def _quiet(self, table: IptTable, name: str, endpoint: Endpoint, way: LogDirection, asks: list[Asks]) -> None:
        """Sets marks instead of verdicts. An allowed packet keeps the mark that the other direction set."""
        no = f"-g {CHAIN_PREFIX}NO"
        says = {Verdict.DENY: no, Verdict.STEER: f"-g {CHAIN_PREFIX}YES", Verdict.ALLOW: "-j RETURN"}
        self._tiers(table, name, self._selves(endpoint, way), asks, says, no)

    def _telling(self, table: IptTable, name: str, endpoint: Endpoint, way: LogDirection, asks: list[Asks]) -> None:
        """Logs, for packets to be redirected, which verdict this direction gave."""
        chain = CHAIN_PREFIX + name
        says = {Verdict.DENY: "-j RETURN", Verdict.STEER: f"-g {chain}s", Verdict.ALLOW: f"-g {chain}a"}
        self._tiers(table, name, [], asks, says, "-j RETURN")
        table.chain(f"{name}s", [self._log(LogEvent.STEER, way, endpoint.id)])
        table.chain(f"{name}a", [self._log(LogEvent.ALLOW, way, endpoint.id)])

    # --- entries ------------------------------------------------------------------------------------------------------

    def _asks(self, one: Table, way: LogDirection) -> list[Asks]:
        """The peer is the destination for egress and the source for ingress."""
        side = "dst" if way is LogDirection.EGRESS else "src"
        return [
            Asks(tuple(ask for stage in tier.stages for ask in self._asks_peers(stage, side)), tier.closed)
            for tier in one.tiers
        ]

    def _asks_peers(self, stage: Stage, side: str) -> Iterator[tuple[str, Verdict]]:
        for entry in _by_precedence(stage):
            peers = None if entry.any_peer else self.peers.of(entry.peers)
            if peers is not None or entry.any_peer:
                who = "" if peers is None else f"-m set --match-set {peers.name} {side} "
                yield from ((f"{ports}{who}", entry.verdict) for ports in self._ports(entry))

    def _asks_host(self, one: Table) -> list[Asks]:
        """The tiers with this node as the peer, whatever address it uses."""
        here = self.desired.host_identity
        return [
            Asks(
                tuple(
                    (ports, entry.verdict)
                    for stage in tier.stages
                    for entry in _by_precedence(stage)
                    if entry.any_peer or here in entry.peers
                    for ports in self._ports(entry)
                ),
                tier.closed,
            )
            for tier in one.tiers
        ]

    def _ports(self, entry: Entry) -> Iterator[str]:
        """Matches for protocol and ports, each with a trailing space unless empty."""
        if entry.protocol == ANY_PROTOCOL:
            yield ""
        elif entry.protocol not in WITH_PORTS or (entry.first, entry.last) == (0, MAX_PORT):
            yield f"-p {PROTOCOL_NAMES.get(entry.protocol, entry.protocol)} "
        elif entry.protocol in ICMP:
            yield from self._types(entry)
        else:
            name = PROTOCOL_NAMES[entry.protocol]
            yield f"-p {name} -m {name} --dport {entry.first}:{entry.last} "

    def _types(self, entry: Entry) -> Iterator[str]:
        """ICMP type and code matches. Of the other IP family's ICMP, only DENY gets a match, for all of it."""
        name = "icmp" if entry.protocol == 1 else "icmpv6"
        if entry.protocol != (1 if self.version == 4 else 58):
            yield from [f"-p {entry.protocol} "] * (entry.verdict is Verdict.DENY)
            return
        for number in range(entry.first >> 8, (entry.last >> 8) + 1):
            first, last = max(entry.first, number << 8), min(entry.last, number << 8 | 0xFF)
            codes = [""] if last - first == 0xFF else [f"/{code & 0xFF}" for code in range(first, last + 1)]
            yield from (f"-p {name} -m {_MATCHES[name]} --{name}-type {number}{code} " for code in codes)

    def _log(self, kind: LogEvent, way: LogDirection, endpoint: int) -> str:
        """Refusals have a limit per sender and one per rule. A rule before counts all of them, so the difference is the
        number without an event. Unverified senders and accepted packets have the limit per rule only: xt_hashlimit
        drops packets that its table has no room for."""
        rate, prefix = self.settings.log_rate, log_prefix(kind, way, endpoint)
        share = min(max(rate // 10, 1), _MAX_LIMIT)
        action = (
            f'-j NFLOG --nflog-group {self.settings.nflog_group} --nflog-prefix "{prefix}" --nflog-size {LOG_SNAPLEN} '
            f"--nflog-threshold {LOG_QUEUE}"
        )
        if kind in PASSED:
            return f"-m limit --limit {share}/second --limit-burst {share} {action}"
        counted = f'-m comment --comment "{prefix}"'
        if kind in UNVERIFIED:
            return f"{counted}\n-m limit --limit {share}/second --limit-burst {share} {action}"
        each = (
            f"-m hashlimit --hashlimit-upto {share}/second --hashlimit-burst {share} --hashlimit-mode srcip "
            f"--hashlimit-name {CHAIN_PREFIX}{share} --hashlimit-htable-max 65536 --hashlimit-htable-expire 60000"
        )
        rule = min(rate, _MAX_LIMIT)
        return f"{counted}\n{each} -m limit --limit {rule}/second --limit-burst {rule} {action}"


def _by_precedence(stage: Stage) -> Iterator[Entry]:
    for verdict in BY_PRECEDENCE:
        yield from (entry for entry in stage if entry.verdict is verdict)


def _quotes(address: str) -> str:
    """xt_u32 test: an ICMP error whose quoted packet went to this address; IPv6 without extension headers."""
    packed = ip_address(address).packed
    words = [int.from_bytes(packed[at : at + 4], "big") for at in range(0, len(packed), 4)]
    if len(words) == 1:
        return f"0>>22&0x3C@24={words[0]:#x}"
    return "&&".join(("3&0xFF=58", *(f"{72 + 4 * at}={word:#x}" for at, word in enumerate(words))))


def _bits(mark: int) -> str:
    return f"{mark:#x}/{mark:#x}"


def _mask(bits: str) -> str:
    return bits.partition("/")[2]
