"""Renders the table `inet l7proxy`: anti-spoofing, policy, and redirection to the proxy.

  prerouting -300  guard     anti-spoofing, before conntrack
  prerouting  -90  judge     policy, after Service DNAT (-100), so on the backend pod's address; then TPROXY
  output     -300  apart     puts the proxy's own connections into their own conntrack zone
  output      -90  output    ingress policy for packets of the node itself; a route chain, so that a packet marked
                             here is routed again, over lo, into the proxy
  input       -90  input     resets that could not be sent earlier; only redirected packets reach the proxy's port
  postrouting -300 leak      packets marked for the proxy never leave the node
  postrouting 100  nat       empty: makes the kernel change a port if two connections would have equal reply tuples
  prerouting  min  second    with bridges only: br_netfilter receives a frame twice and loses the socket in between

During evaluation the peer's identity is in `meta priority`, which veth zeroes on input and the IP layer overwrites when
forwarding. The proxy's mark bit means "redirect". Fragments are reassembled before: conntrack and the socket match do
so at -400. Both directions are evaluated before the redirection, so that a refusal by either beats a redirect by the
other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from tproxy_rules.desired import Desired, Endpoint, Prefixes, Settings, Stage
from tproxy_rules.marks import CONNTRACK_ZONE, TABLE, LogDirection, LogEvent
from tproxy_rules.networks import Identities, family, split
from tproxy_rules.nft import limits as nft_limits
from tproxy_rules.nft import policy as nft_policy
from tproxy_rules.nft.bridge import RESERVED, link_local_unicast
from tproxy_rules.nft.policy import Asked, asked
from tproxy_rules.nft.table import Chain, Hosts, NftTable, Ranges, Set, chain, made, named_set, prefix_sets
from tproxy_rules.nft.text import as_bits, identity, log, mark
from tproxy_rules.validate import PROTOCOL_NAMES

# Neighbour discovery and group membership serve the link, not pods: they pass under any policy, but only on the link
# and to the node. To remote addresses they would bypass egress policy. RFC 4861: hop limit 255.
LINK: Final = (
    "ip6 hoplimit 255 icmpv6 type 133-137 ip6 daddr { fe80::/10, ff02::/16 } accept",
    "ip6 daddr ff02::/16 icmpv6 type { 130, 131, 132, 143 } accept",
    "ip daddr 224.0.0.0/24 ip protocol igmp accept",
)
# If a connection to the proxy would have the reply tuple of one of the proxy's own (same client, server and ports), the
# kernel changes its source port in the input hook. The socket has the new port, so only the normal socket lookup after
# that hook finds it, without TPROXY.
OTHER_PORT: Final = "tcp flags & (fin | syn | rst | ack) != syn ct status snat"
NEIGHBOUR_OF_POD: Final = "ip6 hoplimit 255 icmpv6 type 133-137 ip6 daddr @homes6 accept"
NEIGHBOUR_OF_NODE: Final = "ip6 hoplimit 255 icmpv6 type 133-137 fib daddr type local accept"
QUOTED: Final = {4: "ip saddr . @th,192,32", 6: "ip6 saddr . @th,256,128"}
"""Source of an ICMP error, and destination of the packet quoted after its 8-byte header."""
WAYS: Final = ((LogDirection.EGRESS, "saddr"), (LogDirection.INGRESS, "daddr"))
"""Each direction of a pod, and the field that has the pod's address."""
# Errors about accepted flows: unreachable (with "too big"), time exceeded, parameter problem.
ERRORS: Final = (
    "ct state related icmp type { destination-unreachable, time-exceeded, parameter-problem } accept",
    "ct state related icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem } accept",
)


def table(
    desired: Desired,
    ask: Callable[[Stage], Asked] = asked,
    split_up: Callable[[Prefixes], Mapping[int, Identities]] = split,
) -> NftTable:
    """For a canonical state. `ask` and `split_up` are `asked` and `split`, or caches of them."""
    nets = split_up(desired.identities)
    return made(
        "inet",
        TABLE,
        nft_limits.node_limits(desired.settings),
        (
            *_address_sets(desired),
            *nft_limits.by_port(desired.settings),
            *nft_limits.by_address(desired.settings),
            *_identity_sets(nets),
            *_common_chains(desired, nets),
            *nft_policy.parts(desired, ask),
            *_verdict_maps(desired),
            *_base_chains(desired),
        ),
    )


# --- sets ------------------------------------------------------------------------------------------------------------


def _address_sets(desired: Desired) -> Iterator[Set]:
    cabled = [(one, one.port) for one in desired.endpoints if one.port]
    for version in (4, 6):
        kind = f"ipv{version}_addr"
        interfaces = [
            f'"{port.bridge or port.interface}" . {address}'
            for one, port in cabled
            for address in _addresses(one, version)
        ]
        selves = [
            f"{source} . {target}"
            for one in desired.endpoints
            if one.ingress is not None or one.egress is not None
            for source in _addresses(one, version)
            for target in _addresses(one, version)
        ]
        yield named_set(f"own{version}", f"ifname . {kind}", interfaces)
        yield named_set(f"homes{version}", kind, [a for one, _ in cabled for a in _addresses(one, version)])
        yield named_set(f"selves{version}", f"{kind} . {kind}", selves)
        quoted = [f"{address} . {as_bits(address)}" for one, _ in cabled for address in _addresses(one, version)]
        yield named_set(f"quoted{version}", QUOTED[version], quoted, of="typeof")
    routed = [f'"{port.interface}"' for _, port in cabled if not port.bridge]
    yield named_set("ports", "ifname", routed)
    closed = [f'"{bridge.name}"' for bridge in desired.bridges if not bridge.uplinks]
    yield named_set("links", "ifname", [*routed, *closed])
    bridged = {port.interface for _, port in cabled if port.bridge}.union(*(one.ports for one in desired.bridges))
    yield named_set("bridged", "ifname", [f'"{name}"' for name in sorted(bridged)])
    if desired.bridges:
        yield named_set("bridges", "ifname", [f'"{bridge.name}"' for bridge in desired.bridges])
    yield from prefix_sets("held", desired.held)


def _identity_sets(nets: Mapping[int, Identities]) -> Iterator[Set]:
    for version, found in nets.items():
        kind = f"ipv{version}_addr : classid"
        yield Set(f"net{version}", kind, Ranges(found.ranges), interval=True)
        yield Set(f"host{version}", kind, Hosts(found.hosts))


def _verdict_maps(desired: Desired) -> Iterator[Set]:
    for way in LogDirection:
        for version in (4, 6):
            jumps = [
                f"{address} : jump {way}_{one.id}"
                for one in desired.endpoints
                if way in dict(nft_policy.ways(one))
                for address in _addresses(one, version)
            ]
            yield named_set(f"{way}{version}", f"ipv{version}_addr : verdict", jumps)


def _addresses(endpoint: Endpoint, version: int) -> list[str]:
    return [address for address in endpoint.addresses if family(address) == version]


# --- common chains ----------------------------------------------------------------------------------------------------


def _common_chains(desired: Desired, nets: Mapping[int, Identities]) -> Iterator[Chain]:
    settings = desired.settings
    yield chain("identify_destination", _identify(nets, "daddr"))
    # No input interface means the output hook: the source is this node, whatever address it uses.
    here = f"iif 0 meta priority set {identity(desired.host_identity)} return"
    yield chain("identify_source", [here, *_identify(nets, "saddr")])
    yield chain("refuse_tcp", _refuse_tcp(desired))
    yield chain("refuse", _refuse(settings))
    for way in LogDirection:
        yield chain(f"link_{way}", link_local_unicast(settings, way))
    yield chain("link_local", _link_local())
    yield chain("spoofed", [log(settings, LogEvent.SPOOF, LogDirection.EGRESS, 0), "drop"])
    yield chain("deliver", _deliver(settings))
    yield chain("options", ("ip option lsrr exists goto spoofed", "ip option ssrr exists goto spoofed"))
    yield chain("router", _router())
    yield chain("icmp_error", _icmp_error())
    for way, field in WAYS if desired.held else ():
        yield chain(f"held_{way}", _held(desired, way, field))
    yield chain("segments", ("iifname . ip6 saddr @own6 goto spoofed",))


def _identify(nets: Mapping[int, Identities], field: str) -> Iterator[str]:
    """The longest prefix wins because it is looked up last; a miss keeps the value of the rule before."""
    for version, name in ((4, "ip"), (6, "ip6")):
        yield f"meta nfproto ipv{version} meta priority set {identity(nets[version].default)}"
        yield f"meta priority set {name} {field} map @net{version}"
        yield f"meta priority set {name} {field} map @host{version}"


def _held(desired: Desired, way: LogDirection, field: str) -> Iterator[str]:
    """Refuses an address without an identity of its own: a map that lacks it breaks off the rule. Neighbour discovery
    between the pods of a bridge passes, or the first connections of a pod would wait for it."""
    if desired.bridges:
        here = "iifname @bridges ip6 saddr @held6 ip6 daddr @held6"
        yield f"{here} ip6 hoplimit 255 icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} return"
    for version, name in ((4, "ip"), (6, "ip6")):
        yield f"meta priority set {name} {field} map @host{version} return"
    yield log(desired.settings, LogEvent.NONE, way, 0)
    yield "goto refuse"


def _refuse_tcp(desired: Desired) -> Iterator[str]:
    proxy, upstream = desired.settings.mark_proxy, desired.settings.mark_upstream
    # A reset may inherit the mark (net.ipv4.fwmark_reflect) and would then be routed to this node.
    yield _unmark(proxy)
    # Not for packets that conntrack calls invalid, e.g. late ones outside the window: a reset would end their
    # connection.
    reset = "meta l4proto tcp ct state != invalid"
    if desired.bridges:
        # If br_netfilter runs this chain, a reset leaves by the bridge port untranslated, with the backend pod's
        # address instead of the Service's, and the client ignores it. An ICMP error is translated, and RFC 5461 (2.2)
        # lets the sender of a SYN give up on it. Later packets go up to the proxy's listener, which does not know the
        # connection: TCP resets it, translated. Without br_netfilter, `input` does so.
        translated = "iifname @bridges ct status dnat"
        yield f"{translated} tcp flags & (fin | syn | rst | ack) == syn reject with icmpx type port-unreachable"
        yield f"{translated} {reset} {mark(proxy | upstream)} accept"
    yield f"{reset} reject with tcp reset"
    yield "drop"


def _refuse(settings: Settings) -> Iterator[str]:
    yield "goto refuse_tcp" if settings.refuse_with_reset else "drop"


def _deliver(settings: Settings) -> Iterator[str]:
    """The mark is already set. If nothing listens, tproxy ends its rule, and a TCP client gets a reset at once."""
    yield f"{OTHER_PORT} accept"
    for name, ip, statement in _tproxy(settings):
        yield f"meta nfproto {ip} meta l4proto {name} {statement} accept"
    yield log(settings, LogEvent.UNSERVED, LogDirection.INGRESS, 0)
    yield "goto refuse_tcp"


def _tproxy(settings: Settings) -> Iterator[tuple[str, str, str]]:
    """Protocol, IP family and statement of each listener."""
    for protocol, port in settings.listeners:
        yield PROTOCOL_NAMES[protocol], "ipv4", f"tproxy ip to 127.0.0.1:{port}"
        yield PROTOCOL_NAMES[protocol], "ipv6", f"tproxy ip6 to [::1]:{port}"


# --- base chains ------------------------------------------------------------------------------------------------------


def _base_chains(desired: Desired) -> Iterator[Chain]:
    settings = desired.settings
    if desired.bridges:
        yield chain("second", _second(settings), hook="prerouting", priority=-(2**31))
    yield chain("guard", _guard(), hook="prerouting", priority=-300)
    yield chain("judge", _judge(desired), hook="prerouting", priority=-90)
    yield chain("apart", _apart(settings), hook="output", priority=-300)
    yield chain("nat", (), hook="postrouting", priority=100, kind="nat")
    yield chain("output", _output(desired), hook="output", priority=-90, kind="route")
    yield chain("input", _input(settings), hook="input", priority=-90)
    yield chain("leak", _leak(settings), hook="postrouting", priority=-300)


def _second(settings: Settings) -> Iterator[str]:
    """On the second reception of a bridged frame only this priority runs; of the first, only the mark is left."""
    marked, found = _is_marked(settings.mark_proxy), f"{_unmark(settings.mark_upstream)} accept"
    yield f"{marked} meta l4proto tcp {OTHER_PORT} {found}"
    for name, ip, statement in _tproxy(settings):
        yield f"{marked} meta l4proto {name} meta nfproto {ip} {statement} {found}"


def _guard() -> Iterator[str]:
    """An address may enter only by its port, and a port may send only from its own addresses."""
    yield 'iifname "lo" accept'
    # RFC 1122, 3.2.1.3. With route_localnet (set by kube-proxy) a pod could otherwise reach the node's loopback
    # listeners.
    yield "ip daddr 127.0.0.0/8 goto spoofed"
    # Frames for the bridge itself (IEEE 802.1Q, 8.6.3) enter by the port without any bridge hook. They never carry IP,
    # and IP never enters by a bridge port itself.
    yield f"{RESERVED} goto spoofed"
    yield "iifname @bridged goto spoofed"
    # RFC 4291, 2.5.3 and 2.5.5.2: neither may appear on a link.
    for field in ("saddr", "daddr"):
        nowhere = "::1/128 : goto spoofed, ::ffff:0.0.0.0/96 : goto spoofed"
        yield f"ip6 {field} vmap {{ {nowhere}, fe80::/10 : jump link_local }}"
    # Source routes: the real destination appears only after evaluation. Senders that are not pods may use IPv6's, which
    # the node follows only if configured to.
    yield "ip hdrlength > 5 jump options"
    yield "rt seg-left != 0 jump segments"
    yield "meta l4proto { icmp, ipv6-icmp } jump router"
    yield "iifname . ip saddr @own4 accept"
    yield "ip saddr @homes4 goto spoofed"
    yield "iifname . ip6 saddr @own6 accept"
    yield "ip6 saddr @homes6 goto spoofed"
    # Link-local addresses have no identity in `identities`, so they may carry the link's own protocols only.
    yield "iifname @ports ip6 saddr { ::, fe80::/10 } icmpv6 type { 130, 131, 132, 133, 135, 136, 143 } accept"
    yield "iifname @ports goto spoofed"


def _router() -> Iterator[str]:
    """Conntrack calls an ICMP error related for any sender, so a pod could lower the path MTU of other connections,
    or end them. Errors that only routers send are refused (RFC 792; RFC 4443); errors that hosts send, too, are checked
    in `icmp_error`."""
    yield "ip saddr @homes4 icmp type { source-quench, redirect } goto spoofed"
    yield "ip saddr @homes4 icmp type destination-unreachable icmp code 4 goto spoofed"
    yield "ip saddr @homes4 icmp type time-exceeded icmp code 0 goto spoofed"
    yield "ip6 saddr @homes6 icmpv6 type packet-too-big goto spoofed"
    yield "ip6 saddr @homes6 icmpv6 type time-exceeded icmpv6 code 0 goto spoofed"
    yield "ip saddr @homes4 icmp type { destination-unreachable, time-exceeded, parameter-problem } jump icmp_error"
    yield "ip6 saddr @homes6 icmpv6 type < 128 jump icmp_error"


def _icmp_error() -> Iterator[str]:
    """A host reports packets sent to it, so it must be the destination of the quoted packet. Before conntrack and NAT,
    both are as the pod saw them. A packet too short to quote one matches nothing."""
    for version in (4, 6):
        yield f"{QUOTED[version]} @quoted{version} return"
    yield "goto spoofed"


def _link_local() -> Iterator[str]:
    """From a routed pod or a bridge with pods only: the node's link-local address must not bypass policy."""
    yield "iifname != @links return"
    yield "ip6 daddr ff00::/8 return"
    yield "goto link_egress"


def _judge(desired: Desired) -> Iterator[str]:
    proxy, settings = desired.settings.mark_proxy, desired.settings
    # From the node to itself; with the mark, a packet of `output` on its way to the proxy.
    yield f'iifname "lo" {_is_marked(proxy)} goto deliver'
    yield 'iifname "lo" accept'
    yield _unmark(proxy)
    # Replies to the proxy's own connections, which use the client's address. Both matches are needed: the socket where
    # conntrack has no entry (ICMP errors), the mark where the connection was translated. "wildcard" does not match
    # sockets in TIME_WAIT: a SYN that meets one is evaluated and goes to the listener.
    yield f"ct direction reply {_is_connection_marked(settings.mark_upstream)} {mark(proxy)} accept"
    yield f"meta l4proto {{ tcp, icmp, ipv6-icmp }} socket transparent 1 socket wildcard 0 {mark(proxy)} accept"
    yield "ct direction reply accept"
    yield from ERRORS
    yield from LINK
    if desired.bridges:  # routed pods have no neighbour but the node
        yield f"iifname @bridges {NEIGHBOUR_OF_POD}"
    yield NEIGHBOUR_OF_NODE
    yield "ip saddr . ip daddr @selves4 accept"
    yield "ip6 saddr . ip6 daddr @selves6 accept"
    if desired.held:
        yield "ip saddr @held4 jump held_egress"
        yield "ip6 saddr @held6 jump held_egress"
        yield "ip daddr @held4 fib daddr type unicast jump held_ingress"
        yield "ip6 daddr @held6 fib daddr type unicast jump held_ingress"
        yield "meta priority set 0:0"
    for way, field in WAYS:
        yield f"ip {field} vmap @{way}4"
        yield f"ip6 {field} vmap @{way}6"
    yield f"{_is_marked(proxy)} goto deliver"


def _apart(settings: Settings) -> Iterator[str]:
    """In its own zone, a connection of the proxy with the same ports as a client's is a separate entry. Replies arrive
    without a zone, so only the original direction has one, and the kernel keeps the reply tuples distinct."""
    yield f"{_is_marked(settings.mark_upstream)} ct original zone set {CONNTRACK_ZONE}"


def _output(desired: Desired) -> Iterator[str]:
    proxy, upstream = desired.settings.mark_proxy, desired.settings.mark_upstream
    # Other uses of the bit, or a socket that inherited it from its first packet (net.ipv4.tcp_fwmark_accept), must not
    # send packets back into the proxy.
    yield _unmark(proxy)
    yield f"{_is_marked(upstream)} ct mark set ct mark | {upstream:#010x} accept"
    # The proxy's connection to the node itself: replies are made here and return to the proxy over lo.
    yield f"ct direction reply {_is_connection_marked(upstream)} {mark(proxy | upstream)} accept"
    yield 'oifname "lo" accept'
    if desired.bridges:
        # Redirected frames leave by their input interface; IPv6 has no sysctl against the ICMP redirects this causes.
        yield "oifname @bridges icmpv6 type nd-redirect drop"
    yield "oifname @links ip6 daddr fe80::/10 jump link_ingress"
    yield "ct direction reply accept"
    yield from ERRORS
    yield from LINK
    yield NEIGHBOUR_OF_POD
    yield "ip daddr vmap @ingress4"
    yield "ip6 daddr vmap @ingress6"
    # Both bits select the routing rule for local packets, see routes.
    yield f"{_is_marked(proxy)} {mark(upstream)}"


def _input(settings: Settings) -> Iterator[str]:
    both = settings.mark_proxy | settings.mark_upstream
    refused = f'iifname != "lo" meta mark & {both:#010x} == {both:#010x}'
    yield f"{refused} {_unmark(both)} meta l4proto tcp reject with tcp reset"
    # Redirected packets keep their destination port, so an unmarked packet to the proxy's port is a direct connection.
    for protocol, port in settings.listeners:
        yield f'iifname != "lo" {PROTOCOL_NAMES[protocol]} dport {port} {_is_not_marked(settings.mark_proxy)} drop'


def _leak(settings: Settings) -> Iterator[str]:
    """Without the routing rules, redirected packets would be forwarded."""
    yield f'oifname != "lo" {_is_marked(settings.mark_proxy)} drop'


def _unmark(bits: int) -> str:
    return f"meta mark set meta mark & {~bits & 0xFFFF_FFFF:#010x}"


def _is_marked(bit: int) -> str:
    return f"meta mark & {bit:#010x} != 0"


def _is_not_marked(bit: int) -> str:
    return f"meta mark & {bit:#010x} == 0"


def _is_connection_marked(bit: int) -> str:
    return f"ct mark & {bit:#010x} != 0"
