"""Packets in packets: refused to pods, to whatever destination, unless a policy allows that very port or protocol.

Policy judges the outer packet. A node that is part of an overlay unpacks what comes to its tunnel port and delivers
the packet inside, with whatever source that names, and nobody judges it; the peers of a tunnel between pods carry
anything on one port. An entry that allows every port, or a range, does not mean tunnels; one for exactly this UDP port
or this IP protocol does.

WireGuard's ports (51820, and Cilium's 51871) are not among the defaults: without a key that the node knows it unpacks
nothing, and pods that are clients of a VPN are common. In IPv6 AH is an extension header: there what follows it is
judged, with and without it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from l7proxy.model.labels import EVERYTHING
from l7proxy.model.ref import BUILT_IN, RuleRef
from l7proxy.model.verdict import Action, Direction, Protocol
from l7proxy.policy.rules import PortMatch, Rule
from l7proxy.policy.tiers import GUARD

NO_ENCAPSULATION: Final = RuleRef(BUILT_IN, "", "no-encapsulation")
TUNNEL_PORTS: Final = (8472, 4789, 6081, 5555, 6080)
"""UDP: VXLAN (Linux' default, then IANA's), Geneve, FOU (as in ip-fou(8)), GUE."""
TUNNEL_PROTOCOLS: Final = (4, 41, 47, 50, 51, 97, 115)
"""IPv4 and IPv6 in IP, GRE, ESP, AH, EtherIP, L2TPv3 (IANA's numbers)."""
_WHY: Final = "is a tunnel: pods may use it only if a policy allows exactly this UDP port or IP protocol"


def no_encapsulation(
    ports: Iterable[int] = TUNNEL_PORTS, protocols: Iterable[int] = TUNNEL_PROTOCOLS
) -> tuple[Rule, ...]:
    """The rule that refuses these UDP ports and IP protocols to every pod; () when there are none.

    Audit does not soften it: like a forged source address, an inner packet is out of policy's sight.
    """
    matches = [PortMatch(frozenset((Protocol.UDP,)), port, port) for port in sorted(set(ports))]
    matches += [PortMatch(frozenset((protocol,))) for protocol in sorted(set(protocols))]
    if not matches:
        return ()
    refused = Rule(
        NO_ENCAPSULATION,
        EVERYTHING,
        Direction.EGRESS,
        Action.DENY,
        ports=tuple(matches),
        default_deny=False,
        refusal=_WHY,
        level=GUARD,
    )
    return (refused,)
