"""Default ports and protocols of tunnels that nodes decapsulate."""

from __future__ import annotations

from typing import Final

TUNNEL_PORTS: Final = (8472, 4789, 6081, 5555, 6080)
"""UDP: VXLAN (the Linux default, then IANA's), Geneve, FOU (as in ip-fou(8)), GUE."""
TUNNEL_PROTOCOLS: Final = (4, 41, 47, 50, 51, 97, 115)
"""IPv4 and IPv6 in IP, GRE, ESP, AH, EtherIP, L2TPv3 (IANA's numbers)."""
