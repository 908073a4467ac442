"""Denies encapsulated packets from pods, to any destination, unless a policy allows exactly this port or protocol.

Policy evaluates only the outer packet. A node that is part of an overlay decapsulates packets to its tunnel port and
delivers the inner packet, with any source address, without policy; a tunnel between pods carries any traffic on one
port. An entry that allows every port, or a range, does not allow tunnels; an entry for exactly this UDP port or IP
protocol does.

WireGuard's ports (51820, and Cilium's 51871) are not in the defaults: the node decapsulates nothing without a key that
it knows, and VPN clients in pods are common. In IPv6, AH is an extension header: policy evaluates the header after it,
with or without AH.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from l7proxy.model.labels import EVERYTHING
from l7proxy.model.ref import BUILT_IN, RuleRef
from l7proxy.model.tunnels import TUNNEL_PORTS, TUNNEL_PROTOCOLS
from l7proxy.model.verdict import Action, Direction, Protocol
from l7proxy.policy.rules import PortMatch, Rule
from l7proxy.policy.tiers import GUARD

NO_ENCAPSULATION: Final = RuleRef(BUILT_IN, "", "no-encapsulation")
_WHY: Final = "is a tunnel: pods may use it only if a policy allows exactly this UDP port or IP protocol"


def no_encapsulation(
    ports: Iterable[int] = TUNNEL_PORTS, protocols: Iterable[int] = TUNNEL_PROTOCOLS
) -> tuple[Rule, ...]:
    """The rule that denies these UDP ports and IP protocols to every pod; () when there are none.

    Audit mode does not apply to it: like a forged source address, an inner packet escapes policy.
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
