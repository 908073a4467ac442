"""Reads verdict events from the kernel over raw netlink (NFLOG).

`NflogReader` has a file descriptor to poll and a non-blocking `read`. An event is the prefix of the rule (see marks)
and the first bytes of the packet; if these cannot be parsed, the other fields stay empty. When the reader is slow, the
kernel drops events; they are counted by gaps in the sequence numbers.

The kernel delivers each event while it handles the packet, and does not collect several. So whoever has seen an effect
of the packet, such as a request on the connection that it opened, finds the event in the reader.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from tproxy_rules.backend import KernelError
from tproxy_rules.marks import LOG_SNAPLEN, LogDirection, LogEvent, read_prefix
from tproxy_rules.netlink import (
    ACK,
    DATAGRAM,
    ERROR,
    attribute,
    attributes,
    error_code,
    messages,
    netfilter_socket,
    request,
)

# <linux/netlink.h>, <linux/netfilter/nfnetlink_log.h>
_SOL_NETLINK: Final = 270
_NETLINK_NO_ENOBUFS: Final = 5
_PACKET: Final = (4 << 8) | 0
_CONFIG: Final = (4 << 8) | 1
_CFG_CMD, _CFG_MODE, _CFG_NLBUFSIZ, _CFG_QTHRESH, _CFG_FLAGS = 1, 2, 3, 5, 6
_CMD_BIND: Final = 1
_COPY_PACKET: Final = 2
_FLAG_SEQ: Final = 1
_A_HEADER, _A_MARK, _A_TIME, _A_INDEV, _A_OUTDEV, _A_PAYLOAD, _A_PREFIX, _A_SEQ = 1, 2, 3, 4, 5, 9, 10, 12
_AF_BRIDGE: Final = 7
_ETH_IPV4, _ETH_IPV6 = 0x0800, 0x86DD

_RECEIVE_BUFFER: Final = 8 << 20
_COLLECTED: Final = 1
"""Events that the kernel sends at once; less than what the rules say (LOG_QUEUE) applies."""
_MAX_READS: Final = 2048
"""Maximum events per `read`, so that a flood does not starve the caller's other work."""

# RFC 8200, section 4: hop-by-hop, routing and destination options; their length field counts units of eight bytes.
_EXTENSIONS: Final = frozenset({0, 43, 60})
_FRAGMENT, _AUTHENTICATION = 44, 51
_MAX_EXTENSIONS: Final = 8
TCP, UDP, SCTP, ICMP, ICMPV6 = 6, 17, 132, 1, 58


@dataclass(slots=True)
class NflogEvent:
    """One logged packet. Addresses are canonical text, "" if the packet is not IP or too short."""

    kind: LogEvent
    way: LogDirection
    endpoint: int
    """Endpoint number; 0 if the rule is not about a particular endpoint."""
    source: str = ""
    destination: str = ""
    protocol: int = -1
    source_port: int = 0
    destination_port: int = 0
    tcp_flags: int = 0
    icmp_type: int = -1
    icmp_code: int = -1
    length: int = 0
    """Length of the IP packet in bytes."""
    interface: int = 0
    """Index of the input interface, 0 for a packet made on this node."""
    mark: int = 0
    time_ns: int = 0
    """When the packet came, in nanoseconds since 1970; 0 if not known. Not verified: a pod may have set it."""


class NflogReader:
    """The events of one NFLOG group in the network namespace of the calling thread. One reader per group: the kernel
    assigns a group to the socket that bound it."""

    def __init__(self, group: int) -> None:
        self.lost = 0
        """Events that the kernel dropped because the reader was slow, counted by sequence gaps."""
        self.foreign = 0
        """Packets that other programs' rules logged to our group."""
        self._group = group
        self._next: int | None = None
        self._socket = netfilter_socket(_RECEIVE_BUFFER)
        try:
            self._open()
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> NflogReader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def read(self) -> list[NflogEvent]:
        """All pending events; empty if there are none. Call it when the descriptor is readable."""
        events: list[NflogEvent] = []
        for _ in range(_MAX_READS):
            try:
                data = self._socket.recv(DATAGRAM)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    continue  # the sequence gap gives the number
                raise
            events.extend(self._events(data))
        return events

    def _open(self) -> None:
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_NO_ENOBUFS, 1)
        self._socket.bind((0, 0))
        self._socket.settimeout(2.0)
        self._configure(attribute(_CFG_CMD, bytes((_CMD_BIND,))))
        self._configure(
            attribute(_CFG_MODE, struct.pack(">IBB", LOG_SNAPLEN, _COPY_PACKET, 0)),
            attribute(_CFG_QTHRESH, struct.pack(">I", _COLLECTED)),
            attribute(_CFG_NLBUFSIZ, struct.pack(">I", 1 << 16)),
            attribute(_CFG_FLAGS, struct.pack(">H", _FLAG_SEQ)),
        )
        self._socket.setblocking(False)

    def _configure(self, *attributes: bytes) -> None:
        self._socket.send(request(_CONFIG, ACK, b"".join(attributes), resource=self._group))
        try:
            code = self._acknowledged()
        except TimeoutError as error:
            raise KernelError(f"NFLOG group {self._group}: no response from the kernel") from error
        if code:
            raise KernelError(f"NFLOG group {self._group}: {_WHY.get(code, os.strerror(code))}")

    def _acknowledged(self) -> int:
        """errno of the acknowledgement, 0 for success. Events that arrive before the second request are discarded."""
        while True:
            for kind, body in messages(self._socket.recv(DATAGRAM)):
                if kind == ERROR:
                    return error_code(body)

    def _events(self, data: bytes) -> Iterator[NflogEvent]:
        for kind, body in messages(data):
            if kind == _PACKET and len(body) >= 4:
                event = self._event(body[0], dict(attributes(body[4:])))
                if event is not None:
                    yield event

    def _event(self, family: int, found: dict[int, bytes]) -> NflogEvent | None:
        self._count(found.get(_A_SEQ, b""))
        prefix = read_prefix(found.get(_A_PREFIX, b"").rstrip(b"\0").decode("ascii", "replace"))
        if prefix is None:
            self.foreign += 1
            return None
        event = NflogEvent(*prefix, interface=_number(found.get(_A_INDEV, b"")), mark=_number(found.get(_A_MARK, b"")))
        event.time_ns = _nanoseconds(found.get(_A_TIME, b""))
        header = found.get(_A_HEADER, b"")
        protocol = struct.unpack_from(">H", header)[0] if len(header) >= 2 else 0
        if family != _AF_BRIDGE or protocol in (_ETH_IPV4, _ETH_IPV6):
            parse_packet(found.get(_A_PAYLOAD, b""), event)
        return event

    def _count(self, raw: bytes) -> None:
        if len(raw) == 4:
            number = struct.unpack(">I", raw)[0]
            if self._next is not None:
                self.lost += (number - self._next) & 0xFFFF_FFFF
            self._next = (number + 1) & 0xFFFF_FFFF


def parse_packet(data: bytes, event: NflogEvent) -> None:
    """Fill in the fields from the first bytes of an IP packet. Accepts any bytes; missing fields stay empty."""
    version = data[0] >> 4 if data else 0
    if version == 4 and len(data) >= 20:
        _ipv4(data, event)
    elif version == 6 and len(data) >= 40:
        _ipv6(data, event)


def _ipv4(data: bytes, event: NflogEvent) -> None:
    event.length = int.from_bytes(data[2:4], "big")
    event.protocol = data[9]
    event.source, event.destination = str(IPv4Address(data[12:16])), str(IPv4Address(data[16:20]))
    offset = (data[0] & 0x0F) * 4
    if offset >= 20 and not int.from_bytes(data[6:8], "big") & 0x1FFF:
        _transport(data[offset:], event)


def _ipv6(data: bytes, event: NflogEvent) -> None:
    event.length = 40 + int.from_bytes(data[4:6], "big")
    event.source, event.destination = str(IPv6Address(data[8:24])), str(IPv6Address(data[24:40]))
    header, offset = data[6], 40
    for _ in range(_MAX_EXTENSIONS):
        event.protocol = header
        rest = data[offset : offset + 8]
        if header in _EXTENSIONS and len(rest) >= 2:
            header, offset = rest[0], offset + (rest[1] + 1) * 8
        elif header == _AUTHENTICATION and len(rest) >= 2:
            header, offset = rest[0], offset + (rest[1] + 2) * 4
        elif header == _FRAGMENT and len(rest) == 8:
            if int.from_bytes(rest[2:4], "big") & 0xFFF8:
                event.protocol = rest[0]
                return
            header, offset = rest[0], offset + 8
        else:
            break
    _transport(data[offset:], event)


def _transport(data: bytes, event: NflogEvent) -> None:
    if event.protocol in (TCP, UDP, SCTP) and len(data) >= 4:
        event.source_port, event.destination_port = struct.unpack_from(">HH", data)
        if event.protocol == TCP and len(data) >= 14:
            event.tcp_flags = data[13]
    elif event.protocol in (ICMP, ICMPV6) and len(data) >= 2:
        event.icmp_type, event.icmp_code = data[0], data[1]


def _number(raw: bytes) -> int:
    return int.from_bytes(raw, "big") if len(raw) == 4 else 0


def _nanoseconds(raw: bytes) -> int:
    """Of seconds and microseconds (struct nfulnl_msg_packet_timestamp)."""
    seconds, micros = struct.unpack(">QQ", raw) if len(raw) == 16 else (0, 0)
    return int(seconds * 1_000_000_000 + micros * 1000)


_WHY: Final = {
    # EPERM has either cause; the kernel does not let us see which.
    errno.EPERM: "permission denied: run as root, or with CAP_NET_ADMIN in this network namespace; "
    "if another process reads this group, set another nflog_group",
    errno.EBUSY: "another process reads this group: set another nflog_group",
    errno.EOPNOTSUPP: "the kernel does not support NFLOG (CONFIG_NETFILTER_NETLINK_LOG)",
    errno.EINVAL: "the kernel does not support NFLOG (CONFIG_NETFILTER_NETLINK_LOG)",
}
