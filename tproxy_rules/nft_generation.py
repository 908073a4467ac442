"""The number of transactions that a namespace's nftables have seen: cheap proof that nobody changed anything since.

Every commit of anybody adds one (the kernel skips 0 when it wraps), so what was known of our tables at some generation
holds for as long as it is the present one.
"""

from __future__ import annotations

import socket
import struct
from typing import Final

from tproxy_rules.backend import KernelError

# <linux/netlink.h>, <linux/netfilter/nfnetlink.h>, <linux/netfilter/nf_tables.h>
_NETLINK_NETFILTER: Final = 12
_NLM_F_REQUEST: Final = 1
_SUBSYSTEM: Final = 10 << 8
_NEWGEN, _GETGEN = _SUBSYSTEM | 15, _SUBSYSTEM | 16
_GEN_ID: Final = 1
_HEADER: Final = struct.Struct("=IHHII")
_ATTRIBUTE: Final = struct.Struct("=HH")
_FAMILY: Final = bytes(4)
_TIMEOUT: Final = 5.0


def generation() -> int:
    """The present one, in this thread's network namespace."""
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as asking:
            asking.settimeout(_TIMEOUT)
            asking.send(_HEADER.pack(_HEADER.size + len(_FAMILY), _GETGEN, _NLM_F_REQUEST, 1, 0) + _FAMILY)
            answer = asking.recv(4096)
    except OSError as error:
        raise KernelError(f"nftables does not tell its generation: {error.strerror or error}") from error
    return _read(answer)


def _read(answer: bytes) -> int:
    length, kind = _HEADER.unpack_from(answer)[:2]
    at = _HEADER.size + len(_FAMILY)
    while kind == _NEWGEN and at + _ATTRIBUTE.size <= min(length, len(answer)):
        size, name = _ATTRIBUTE.unpack_from(answer, at)
        if name == _GEN_ID and size == 8:
            return int.from_bytes(answer[at + 4 : at + 8], "big")
        at += max(size + 3 & ~3, _ATTRIBUTE.size)
    raise KernelError("nftables does not tell its generation: no privilege, or a kernel without nf_tables")
