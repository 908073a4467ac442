"""Links, addresses and routes: the underlay between nodes, and each pod interface as the CNI would make it.

`bridge`: cni0 with the node's pod network on it, pods are its ports (bridge plugin, as with Flannel).
`ptp`: no bridge; a /32 (/128) per pod, routed to a veth that answers ARP for 169.254.1.1 (as with Calico).
Every link is made inside the lab's namespaces, never in the machine's own. Addresses skip duplicate address
detection (RFC 4862 §5.4), which would only cost two seconds: the lab assigns all addresses itself.
"""

from __future__ import annotations

import errno
import hashlib
import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_interface, ip_network
from typing import Any, Final

from pyroute2 import IPRoute, NetlinkError

from l7proxy.errors import ConfigError
from l7proxy.lab import netns
from l7proxy.lab.cluster import Pod
from l7proxy.lab.plan import UNDERLAY
from l7proxy.lab.settings import Cni, Settings
from l7proxy.model.net import family_of
from l7proxy.model.resources import Node

WIRE_BRIDGE: Final = "wire0"
POD_BRIDGE: Final = "cni0"
GATEWAY_4: Final = "169.254.1.1"
ROUTED_MAC: Final = "ee:ee:ee:ee:ee:ee"
GATEWAY_6: Final = "fe80::ecee:eeff:feee:eeee"
"""The link-local address of ROUTED_MAC (RFC 4291, appendix A)."""
_NODAD: Final = 0x02
_LINK_SCOPE: Final = 253


@dataclass(frozen=True, slots=True)
class Veth:
    """Both ends of a pod's veth pair, as in the CNI result."""

    host_interface: str
    host_mac: str
    pod_mac: str


def make_wire(namespace: str, settings: Settings) -> None:
    """The switch between the nodes; it is also their router and acts as the outside world."""
    netns.create(namespace)

    def body() -> None:
        _quiet_ipv6()
        with IPRoute() as ipr:
            _up(ipr, "lo")
            ipr.link("add", ifname=WIRE_BRIDGE, kind="bridge")
            _up(ipr, WIRE_BRIDGE)
            for family in settings.families:
                _address(ipr, WIRE_BRIDGE, f"{_router(family)}/{UNDERLAY[family].prefixlen}")

    netns.inside(namespace, body)


def make_node(namespace: str, wire: str, node: Node, index: int, settings: Settings) -> None:
    """A node on the underlay, ready for pods."""
    netns.create(namespace)
    port = f"node{index}"

    def plug() -> None:
        _veth(port, "eth0", namespace)
        with IPRoute() as ipr:
            ipr.link("set", index=_index(ipr, port), master=_index(ipr, WIRE_BRIDGE), state="up")

    netns.inside(wire, plug)

    def body() -> None:
        _quiet_ipv6()
        _forward(settings)
        with IPRoute() as ipr:
            _up(ipr, "lo")
            _up(ipr, "eth0")
            for address in node.addresses:
                prefix = UNDERLAY[family_of(address)].prefixlen
                _address(ipr, "eth0", f"{address}/{prefix}")
                _default(ipr, _af(address), _router(family_of(address)))  # proxy_arp answers only if there is a route
            if settings.cni is Cni.BRIDGE:
                _pod_bridge(ipr, node, settings)

    netns.inside(namespace, body)


def _forward(settings: Settings) -> None:
    netns.set_sysctl("net/ipv4/ip_forward", 1)
    if 6 in settings.families:
        netns.set_sysctl("net/ipv6/conf/all/forwarding", 1)


def _pod_bridge(ipr: Any, node: Node, settings: Settings) -> None:
    ipr.link("add", ifname=POD_BRIDGE, kind="bridge", address=bridge_mac(node))
    _up(ipr, POD_BRIDGE)
    for cidr in node.pod_cidrs:
        network = ip_network(cidr)
        _address(ipr, POD_BRIDGE, f"{network.network_address + 1}/{network.prefixlen}")
    try:
        for name in ("bridge-nf-call-iptables", "bridge-nf-call-ip6tables"):
            netns.set_sysctl(f"net/bridge/{name}", settings.bridge_nf_call)
    except FileNotFoundError as error:
        if settings.bridge_nf_call:
            raise ConfigError(
                "bridge-nf-call requires the kernel module br_netfilter: run `modprobe br_netfilter`"
            ) from error


def route_nodes(namespace: str, others: list[Node]) -> None:
    """Routes from a node to the pods of the others: host-gw routes. An overlay would be added here."""

    def body() -> None:
        with IPRoute() as ipr:
            for other in others:
                for cidr in other.pod_cidrs:
                    gateway = next(a for a in other.addresses if family_of(a) == family_of(cidr))
                    ipr.route("replace", family=_af(cidr), dst=cidr, gateway=gateway, oif=_index(ipr, "eth0"))

    netns.inside(namespace, body)


def plug_pod(node_namespace: str, namespace: str, node: Node, pod: Pod, settings: Settings) -> Veth:
    """Create the pod's namespace and its interface."""
    netns.create(namespace)
    name = host_interface(pod, settings)
    lay = _lay_bridged if settings.cni is Cni.BRIDGE else _lay_routed

    def host_side() -> None:
        _veth(name, "eth0", namespace)
        with IPRoute() as ipr:
            lay(ipr, name, pod)

    netns.inside(node_namespace, host_side)
    configure = _pod_on_bridge if settings.cni is Cni.BRIDGE else _pod_routed

    def pod_side() -> str:
        _quiet_ipv6()
        with IPRoute() as ipr:
            _up(ipr, "lo")
            mac = _mac(str(pod))
            ipr.link("set", index=_index(ipr, "eth0"), address=mac)
            _up(ipr, "eth0")
            configure(ipr, node, pod)
        return mac

    pod_mac = netns.inside(namespace, pod_side)
    return Veth(name, netns.inside(node_namespace, lambda: _read_mac(name)), pod_mac)


def unplug_pod(node_namespace: str, namespace: str, interface: str) -> None:
    """Delete the pod's interface; its peer is deleted with it."""

    def body() -> None:
        with IPRoute() as ipr:
            for index in ipr.link_lookup(ifname=interface):
                ipr.link("del", index=index)

    if netns.path_of(node_namespace).exists():
        netns.inside(node_namespace, body)
    netns.remove(namespace)


def bridge_mac(node: Node) -> str:
    return _mac(f"{node.name} {POD_BRIDGE}")


def host_interface(pod: Pod, settings: Settings) -> str:
    prefix = "veth" if settings.cni is Cni.BRIDGE else "cali"
    return prefix + hashlib.sha256(str(pod).encode()).hexdigest()[:11]


def _lay_bridged(ipr: Any, name: str, pod: Pod) -> None:
    index = _index(ipr, name)
    ipr.link("set", index=index, master=_index(ipr, POD_BRIDGE), state="up")
    ipr.brport("set", index=index, mode=1)  # hairpin: a pod can reach itself through its Service
    _forget_neighbours(ipr, pod)


def _forget_neighbours(ipr: Any, pod: Pod) -> None:
    """The node may still know the MAC of the last pod with this address; the new one announces itself late or never."""
    for address in pod.addresses:
        with suppress(NetlinkError):  # no entry
            ipr.neigh("del", dst=address, ifindex=_index(ipr, POD_BRIDGE))


def _lay_routed(ipr: Any, name: str, pod: Pod) -> None:
    index = _index(ipr, name)
    ipr.link("set", index=index, address=ROUTED_MAC, state="up")
    netns.set_sysctl(f"net/ipv4/conf/{name}/proxy_arp", 1)
    netns.set_sysctl(f"net/ipv4/neigh/{name}/proxy_delay", 0)
    for address in pod.addresses:
        route = {"family": _af(address), "dst": f"{address}/{_full(address)}", "oif": index, "scope": _LINK_SCOPE}
        ipr.route("replace", **route)


def _pod_on_bridge(ipr: Any, node: Node, pod: Pod) -> None:
    for address in pod.addresses:
        network = _range_of(node, address)
        _address(ipr, "eth0", f"{address}/{network.prefixlen}")
        gateway = str(network.network_address + 1)
        _default(ipr, _af(address), gateway)


def _pod_routed(ipr: Any, node: Node, pod: Pod) -> None:
    index = _index(ipr, "eth0")
    for address in pod.addresses:
        _address(ipr, "eth0", f"{address}/{_full(address)}")
        if family_of(address) == 4:
            ipr.route("add", family=_af(address), dst=f"{GATEWAY_4}/32", oif=index, scope=_LINK_SCOPE)
        _default(ipr, _af(address), GATEWAY_4 if family_of(address) == 4 else GATEWAY_6)


def _default(ipr: Any, family: int, gateway: str) -> None:
    ipr.route("add", family=family, dst="default", gateway=gateway, oif=_index(ipr, "eth0"))


# Small pieces


def _router(family: int) -> str:
    return str(UNDERLAY[family].network_address + 1)


def _veth(name: str, peer: str, peer_namespace: str) -> None:
    descriptor = os.open(netns.path_of(peer_namespace), os.O_RDONLY | os.O_CLOEXEC)
    try:
        with IPRoute() as ipr:
            ipr.link("add", ifname=name, kind="veth", peer={"ifname": peer, "net_ns_fd": descriptor})
    finally:
        os.close(descriptor)


def _index(ipr: Any, name: str) -> int:
    found: list[int] = list(ipr.link_lookup(ifname=name))
    if not found:
        raise OSError(errno.ENODEV, f"no interface {name}")
    return found[0]


def _up(ipr: Any, name: str) -> None:
    ipr.link("set", index=_index(ipr, name), state="up")


def _address(ipr: Any, name: str, text: str) -> None:
    interface = ip_interface(text)
    flags = {"flags": _NODAD} if interface.version == 6 else {}
    try:
        ipr.addr(
            "add", index=_index(ipr, name), address=str(interface.ip), prefixlen=interface.network.prefixlen, **flags
        )
    except NetlinkError as error:
        if error.code != errno.EEXIST:
            raise


def _quiet_ipv6() -> None:
    """No duplicate address detection and no router advertisements on any link created later."""
    for scope in ("all", "default"):
        try:
            netns.set_sysctl(f"net/ipv6/conf/{scope}/accept_dad", 0)
            netns.set_sysctl(f"net/ipv6/conf/{scope}/dad_transmits", 0)
            netns.set_sysctl(f"net/ipv6/conf/{scope}/accept_ra", 0)
        except FileNotFoundError:
            return  # a kernel without IPv6


def _read_mac(name: str) -> str:
    with IPRoute() as ipr:
        return str(ipr.get_links(_index(ipr, name))[0].get("address"))


def _mac(text: str) -> str:
    """A locally administered address, derived from the text."""
    digest = hashlib.sha256(text.encode()).digest()
    return ":".join(f"{byte:02x}" for byte in (0x02, *digest[:5]))


def _range_of(node: Node, address: str) -> Any:
    return next(ip_network(cidr) for cidr in node.pod_cidrs if family_of(cidr) == family_of(address))


def _full(address: str) -> int:
    return 32 if family_of(address) == 4 else 128


def _af(text: str) -> int:
    return socket.AF_INET if family_of(text) == 4 else socket.AF_INET6
