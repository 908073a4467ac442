"""Finds the host interface of each pod on this node, the bridges of these interfaces, and the node's own addresses.

Source: libcni's result cache (CNI specification 0.3.1 to 1.1, "Success"; written by the container runtime as root, for
every plugin), checked against the kernel's links. For a pod without a result, the main routing table is searched, where
routed plugins add one route per pod. A pod in neither has no port, and `status` reports that it is not checked for
spoofing.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import socket
import stat
import time
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from l7proxy.model.endpoint import Assignment
from l7proxy.model.net import canonical
from l7proxy.setting_definitions import DEFAULT_RESULTS
from tproxy_rules.desired import Bridge, Port

MAX_RESULT: Final = 1 << 20
MAIN_TABLE: Final = 254
NETLINK_ROUTE: Final = 0
NLM_F_DUMP_INTR: Final = 0x10
"""Flag of a dump that a change interrupted, so entries may be missing (linux/netlink.h). pyroute2 ignores it."""
Message = Any
"""A netlink message of pyroute2, which has no types."""
NEWS: Final = 0x1 | 0x10 | 0x40 | 0x100 | 0x400
"""RTMGRP_LINK, and RTMGRP_…_IFADDR and RTMGRP_…_ROUTE of both IP versions."""
PRIMARY: Final = "eth0"
"""The interface in a pod that the runtime makes for the pod network: fixed in containerd and CRI-O."""
SETTLED: Final = 1.0
"""Seconds after the kernel's last notification until the change that it announced is complete."""
IPVS_DUMMY: Final = "kube-ipvs0"
"""Link on which kube-proxy's IPVS mode puts every ClusterIP: Service addresses, not this node's."""
UPLINKS: Final = frozenset(
    ("", "bond", "team", "vlan", "macsec", "vxlan", "geneve", "gretap", "ip6gretap", "erspan", "ip6erspan", "batadv")
)
"""Link kinds (IFLA_INFO_KIND; "" for a network card) of bridge ports that lead to other hosts. A port of any other
kind, e.g. veth or tun, counts as a pod interface."""
_NAME = re.compile(r"[A-Za-z0-9_.@-]{1,15}")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")


@dataclass(frozen=True, slots=True)
class Link:
    """An interface of this node."""

    name: str
    mac: str = ""
    kind: str = ""
    master: str = ""


@dataclass(frozen=True, slots=True)
class HostNetwork:
    """The kernel's state: links by name, the node's own addresses, and single-address routes (address → link)."""

    links: Mapping[str, Link] = field(default_factory=dict)
    addresses: frozenset[str] = frozenset()
    routes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CniAttachment:
    """One CNI result: the host interfaces that it names, the pod's MAC, the pod's addresses.

    `container`: the runtime's sandbox id, equal in the results of all its networks. `pod`, `uid`: NAMESPACE/NAME and
    UID from the arguments of the plugins. `network`: name of the CNI network. `inside`: name of the interface in the
    pod. Each is "" if the result does not contain it.
    """

    hosts: tuple[str, ...]
    mac: str
    addresses: tuple[str, ...]
    container: str = ""
    pod: str = ""
    network: str = ""
    inside: str = ""
    uid: str = ""


@dataclass(frozen=True, slots=True, order=True)
class LiveAttachment:
    """A CNI result of a running container, with or without a Pod object. `interface`: its interface on this node."""

    interface: str
    addresses: tuple[str, ...]
    container: str = ""
    pod: str = ""
    network: str = ""
    inside: str = ""
    uid: str = ""


@dataclass(frozen=True, slots=True)
class PodInterfaces:
    """`ports`: pod address → port. `live`: CNI results whose interface exists, sorted. `direct`: further results of the
    containers in `live`, without an interface on this node (macvlan, ipvlan, SR-IOV). `disputed`: address that several
    interfaces have → NAMESPACE/NAME in the CNI result → port. `assignments`: which pod has which address, where the
    results name exactly one. Comparable: if equal, nothing has to be rendered again."""

    ports: Mapping[str, Port] = field(default_factory=dict)
    bridges: tuple[Bridge, ...] = ()
    local_addresses: frozenset[str] = frozenset()
    problems: tuple[str, ...] = ()
    live: tuple[LiveAttachment, ...] = ()
    other_ports: tuple[str, ...] = ()
    direct: tuple[LiveAttachment, ...] = ()
    disputed: Mapping[str, Mapping[str, Port]] = field(default_factory=dict)
    assignments: tuple[Assignment, ...] = ()


class InterfaceWatcher:
    """Scans the pod interfaces of this node. One thread at a time; in the network namespace where it was created.

    Links, addresses and routes are listed again only after a kernel notification, and until SETTLED seconds after it:
    what depends on a link is removed after the link, partly without a notification. Listing takes longer the more pods
    there are, and every policy change waits for it.
    """

    def __init__(self, results: Path = DEFAULT_RESULTS, ignored: Iterable[str] = ()) -> None:
        """`ignored`: names of CNI networks whose containers are not pods."""
        self._results = results
        self._ignored = frozenset(ignored)
        self._news = _listening()
        self._host: HostNetwork | None = None
        self._attachments: Mapping[Path, tuple[CniAttachment, ...]] = {}
        self._notified = self._listed = -math.inf
        if self._news is not None:
            weakref.finalize(self, self._news.close)

    def look(self) -> PodInterfaces:
        """The current pod interfaces. Blocks; never fails: what cannot be listed or read keeps its last known state and
        is reported, since a pod without its port would not be checked for spoofing."""
        problems: list[str] = []
        # First, since a result is written when its interface is complete: links that were listed before could lack the
        # bridge of an interface that a result names, and the pod would be bound to a port without one.
        self._attachments = read_attachments(self._results, problems, self._attachments)
        now = time.monotonic()
        self.rang()
        if self._host is None or self._listed < self._notified + SETTLED:
            try:
                self._host, self._listed = survey(), now
            except (OSError, NetlinkError) as error:
                problems.append(f"cannot list the node's network interfaces, retrying: {error}")
        if self._host is None:
            return PodInterfaces(problems=tuple(problems))
        attachments = (one for found in self._attachments.values() for one in found if one.network not in self._ignored)
        return connect(attachments, self._host, problems)

    def fileno(self) -> int:
        """Readable when the kernel has sent a notification; -1 if notifications are not available."""
        return self._news.fileno() if self._news is not None else -1

    def rang(self) -> bool:
        """Whether the kernel sent a notification: then the next `look` lists again. Never blocks; any thread."""
        changed = self._changed()
        if changed:
            self._notified = time.monotonic()
        return changed

    def _changed(self) -> bool:
        """Whether a notification came since the last call; also True without a socket, or if its queue was full."""
        if self._news is None:
            return True
        changed = False
        while True:
            try:
                self._news.recv(1)  # the content does not matter: the rest of the message is dropped
            except BlockingIOError:
                return changed
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    return True
            changed = True


def _listening() -> socket.socket | None:
    """A socket for notifications about links, addresses and routes (rtnetlink(7)); None if it is not available."""
    news = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, NETLINK_ROUTE)
    try:
        news.bind((0, NEWS))
    except OSError:
        news.close()
        return None
    return news


def connect(attachments: Iterable[CniAttachment], host: HostNetwork, problems: Iterable[str] = ()) -> PodInterfaces:
    """Assign a port to each address. Pure. An address on two existing interfaces is `disputed`."""
    reported = list(problems)
    found: dict[str, dict[Port, str]] = {}
    live: set[LiveAttachment] = set()
    endless: set[LiveAttachment] = set()
    for attachment in attachments:
        ends = _ends(attachment, host)
        live.update(_live(attachment, end.name) for end in ends)
        if not ends:
            endless.add(_live(attachment, ""))
        port = _port(attachment, ends, host)
        if port is not None:
            for address in attachment.addresses:
                found.setdefault(address, {})[port] = attachment.pod
    ports = {address: next(iter(one)) for address, one in found.items() if len(one) == 1}
    disputed = {address: _by_pod(many) for address, many in sorted(found.items()) if len(many) > 1}
    reported += (f"{address} is assigned to several pod interfaces" for address in disputed)
    for address, name in host.routes.items():
        if address not in found and name in host.links and host.links[name].kind == "veth":
            ports[address] = Port(name)
    named = (port for many in disputed.values() for port in many.values())
    names = {port.bridge for port in (*ports.values(), *named) if port.bridge}
    bridges = tuple(_bridge(host.links[name], host) for name in sorted(names) if name in host.links)
    others = tuple(sorted(link.name for link in host.links.values() if _is_port_of_another(link, names, host)))
    running = {one.container for one in live if one.container}
    return PodInterfaces(
        dict(sorted(ports.items())),
        bridges,
        host.addresses,
        tuple(reported),
        tuple(sorted(live)),
        others,
        tuple(sorted(one for one in endless if one.container in running)),
        disputed,
        tuple(_assignments(live)),
    )


def _live(attachment: CniAttachment, interface: str) -> LiveAttachment:
    return LiveAttachment(
        interface,
        attachment.addresses,
        attachment.container,
        attachment.pod,
        attachment.network,
        attachment.inside,
        attachment.uid,
    )


def _by_pod(ports: Mapping[Port, str]) -> dict[str, Port]:
    """Pod → port, of the pods that have one of these ports."""
    once = Counter(ports.values())
    return {pod: port for port, pod in ports.items() if pod and once[pod] == 1}


def _assignments(live: Iterable[LiveAttachment]) -> Iterator[Assignment]:
    """Of the primary interface of each pod, sorted; without addresses that several containers have."""
    primary: dict[tuple[str, str, str], set[str]] = {}
    for one in live:
        if one.pod and one.inside == PRIMARY:
            primary.setdefault((one.pod, one.uid, one.container), set()).update(one.addresses)
    holders = Counter(address for addresses in primary.values() for address in addresses)
    sandboxes = Counter(pod for pod, _, _ in primary)
    for (pod, uid, _), addresses in sorted(primary.items()):
        own = tuple(sorted(address for address in addresses if holders[address] == 1))
        if own and sandboxes[pod] == 1:
            namespace, _, name = pod.partition("/")
            yield Assignment(namespace, name, uid, own)


def one_port(addresses: Iterable[str], ports: Mapping[str, Port]) -> Port | None:
    """The port of a pod, whose addresses are all on one interface, even if the CNI results have only some of them."""
    found = {ports[address] for address in addresses if address in ports}
    return found.pop() if len(found) == 1 else None


def _bridge(bridge: Link, host: HostNetwork) -> Bridge:
    ports = sorted(link.name for link in host.links.values() if link.master == bridge.name)
    uplinks = tuple(name for name in ports if host.links[name].kind in UPLINKS)
    return Bridge(bridge.name, bridge.mac, tuple(ports), uplinks)


def _is_port_of_another(link: Link, bridges: set[str], host: HostNetwork) -> bool:
    """Whether the link is a port of a bridge without pods."""
    master = host.links.get(link.master)
    return master is not None and master.kind == "bridge" and master.name not in bridges


def _ends(attachment: CniAttachment, host: HostNetwork) -> list[Link]:
    """The host interfaces of a result that exist and are not bridges. Others are left over from deleted pods."""
    here = [host.links[name] for name in attachment.hosts if name in host.links]
    return [link for link in here if link.kind != "bridge"]


def _port(attachment: CniAttachment, ends: list[Link], host: HostNetwork) -> Port | None:
    """The port of a result, if it has exactly one host interface, and a MAC if that is on a bridge."""
    if len(ends) != 1:
        return None
    (end,) = ends
    master = host.links.get(end.master)
    bridge = master.name if master is not None and master.kind == "bridge" else ""
    if bridge and not attachment.mac:
        return None
    return Port(end.name, attachment.mac, bridge)


def read_attachments(
    results: Path, problems: list[str], before: Mapping[Path, tuple[CniAttachment, ...]] | None = None
) -> dict[Path, tuple[CniAttachment, ...]]:
    """File → results, for the whole cache. An invalid file is reported and keeps its previous results, and so does a
    directory that is gone; one that has never been there is an empty cache."""
    known = before or {}
    try:
        paths = sorted(path for path in results.iterdir() if not path.name.startswith("."))
    except OSError as error:
        if known or not isinstance(error, FileNotFoundError):
            problems.append(f"{results}: {error.strerror}: the CNI results that were read last stay in use")
        return dict(known)
    attachments: dict[Path, tuple[CniAttachment, ...]] = {}
    for path in paths:
        try:
            if not path.is_dir():
                attachments[path] = tuple(parse_result(json.loads(_content(path))))
        except FileNotFoundError:
            continue
        except (OSError, ValueError, RecursionError) as error:
            problems.append(f"{path}: not a valid CNI result: {error}")
            attachments[path] = known.get(path, ())
    return attachments


def _content(path: Path) -> bytes:
    """Of a regular file, or a link to one: never waits for the writer of a pipe. ValueError for anything else."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("not a regular file")
        content = file.read(MAX_RESULT + 1)
    if len(content) > MAX_RESULT:
        raise ValueError(f"more than {MAX_RESULT} bytes")
    return content


def parse_result(document: Any) -> Iterator[CniAttachment]:
    """The attachments in a cached result (libcni wraps it in `result`) or a bare one; one without addresses if the
    network assigns none. ValueError if it is neither."""
    result = document.get("result", document) if isinstance(document, dict) else None
    if not isinstance(result, dict):
        raise ValueError("not a JSON object")
    container, network, inner = (str(document.get(key) or "") for key in ("containerId", "networkName", "ifName"))
    interfaces = [item for item in _objects(result, "interfaces") if _NAME.fullmatch(str(item.get("name", "")))]
    everyone = _objects(result, "interfaces")
    hosts = tuple(str(item["name"]) for item in interfaces if not item.get("sandbox"))
    by_pod: dict[str, list[str]] = {}
    inside = [item for item in everyone if item.get("sandbox")]
    for ip in _objects(result, "ips"):
        index = ip.get("interface")
        owner: dict[str, Any] | None = inside[0] if len(inside) == 1 else None
        if type(index) is int and 0 <= index < len(everyone):
            owner = everyone[index]
            if inside and not owner.get("sandbox"):
                continue  # an address of the host interface
        mac = str((owner or {}).get("mac", "")).lower() if (owner or {}).get("sandbox") else ""
        address = canonical(str(ip.get("address", "")).partition("/")[0])
        by_pod.setdefault(mac if _MAC.fullmatch(mac) else "", []).append(address)
    pod, uid = _pod(document)
    for mac, addresses in (by_pod or {"": []}).items():
        yield CniAttachment(hosts, mac, tuple(addresses), container, pod, network, inner, uid)


def _pod(document: Mapping[str, Any]) -> tuple[str, str]:
    """NAMESPACE/NAME and UID from the arguments that Kubernetes runtimes pass to plugins (libcni caches pairs)."""
    given = document.get("cniArgs") or ()
    pairs = [one for one in given if isinstance(one, list) and len(one) == 2] if isinstance(given, list) else []
    named = {str(key): str(value) for key, value in pairs}
    names = [named.get(f"K8S_POD_{part}", "") for part in ("NAMESPACE", "NAME")]
    return ("/".join(names), named.get("K8S_POD_UID", "")) if all(names) else ("", "")


def _objects(result: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    value = result.get(key) or []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ValueError(f"{key} must be a list of objects")
    return value


def survey(attempts: int = 3) -> HostNetwork:
    """Links, addresses and host routes of this network namespace. Listed again if they change meanwhile;
    InterruptedError when they change during every attempt."""
    for _ in range(attempts - 1):
        with suppress(InterruptedError):
            return _survey()
    return _survey()


def whole(messages: Iterable[Message]) -> Iterator[Message]:
    """The messages of a dump; InterruptedError if the kernel flags that some may be missing."""
    for message in messages:
        if message["header"]["flags"] & NLM_F_DUMP_INTR:
            raise InterruptedError(errno.EINTR, "they change while they are listed")
        yield message


def _survey() -> HostNetwork:
    with IPRoute() as netlink:
        listed = list(whole(netlink.get_links()))
        names = {message["index"]: str(message.get_attr("IFLA_IFNAME")) for message in listed}
        found = (_link(message, names) for message in listed)
        links = {link.name: link for link in found if _NAME.fullmatch(link.name)}
        addresses = {
            canonical(text)
            for message in whole(netlink.get_addr())
            if names.get(message["index"], "") not in ("lo", IPVS_DUMMY)
            and (text := message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS"))
        }
        routes: dict[str, str] = {}
        for message in whole(netlink.get_routes(table=MAIN_TABLE)):
            text, index = message.get_attr("RTA_DST"), message.get_attr("RTA_OIF")
            full = 32 if message["family"] == 2 else 128
            if text and message["dst_len"] == full and message.get_attr("RTA_GATEWAY") is None and index in names:
                routes[canonical(text)] = names[index]
    return HostNetwork(links, frozenset(addresses), routes)


def _link(message: Message, names: Mapping[int, str]) -> Link:
    info = dict((message.get_attr("IFLA_LINKINFO") or {}).get("attrs", ()))
    return Link(
        names[message["index"]],
        (message.get_attr("IFLA_ADDRESS") or "").lower(),
        str(info.get("IFLA_INFO_KIND", "")),
        names.get(message.get_attr("IFLA_MASTER"), ""),
    )
