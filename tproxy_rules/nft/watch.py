"""Detects which nftables commits in a network namespace changed our tables; other programs commit to theirs often.

The kernel counts all commits in one generation number, see `generation`: while it is unchanged, our tables are, too. If
it changed, `Watch` reads the kernel's notifications, which end with the generation for each commit, and finds the
tables that were changed. A commit whose notifications were not read completely counts as unknown.
"""

from __future__ import annotations

import errno
import os
import time
import weakref
from contextlib import suppress
from typing import Final

from tproxy_rules.backend import KernelError
from tproxy_rules.marks import TABLE
from tproxy_rules.netlink import DATAGRAM, attribute, attributes, messages, netfilter_socket, request

# <linux/netlink.h>, <linux/netfilter/nf_tables.h>, <linux/netfilter.h>
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_GROUP_NFTABLES: Final = 7
_SUBSYSTEM: Final = 10 << 8
_NEWGEN, _GETGEN = _SUBSYSTEM | 15, _SUBSYSTEM | 16
_REMOVALS: Final = frozenset((_SUBSYSTEM | 2, _SUBSYSTEM | 8))
"""NFT_MSG_DELTABLE, NFT_MSG_DELRULE"""
_GEN_ID: Final = 1
_OURS: Final = frozenset({1, 7})
"""NFPROTO_INET, NFPROTO_BRIDGE"""
_NAMED: Final = attribute(1, TABLE.encode() + b"\0")
"""The table name as an attribute: number 1 in every message about a table or its contents."""
_TIMEOUT: Final = 5.0
_ROOM: Final = 8 << 20
_PATIENCE: Final = 0.01
"""Seconds. The generation changes shortly before its notification is sent."""


def generation() -> int:
    """The present nftables generation of this thread's network namespace."""
    try:
        with netfilter_socket(DATAGRAM) as asking:
            asking.settimeout(_TIMEOUT)
            asking.send(request(_GETGEN))
            answer = asking.recv(DATAGRAM)
    except OSError as error:
        raise KernelError(f"cannot read the nftables generation: {error.strerror or error}") from error
    for kind, body in messages(answer):
        if kind == _NEWGEN and (found := _generation(body)) is not None:
            return found
    raise KernelError("cannot read the nftables generation: no permission, or a kernel without nf_tables")


class Watch:
    """Follows all commits from its creation on, in the network namespace in which it was created."""

    def __init__(self) -> None:
        self._fd = _listening()
        weakref.finalize(self, os.close, self._fd)
        self._touched = False
        self._commits: dict[int, bool] = {}
        """Completely read commits, and whether they changed a table of ours."""

    def followed(self, since: int, *, ours: int = 0) -> int | None:
        """The present generation if exactly `ours` commits after `since`, made by us, changed our tables; else None."""
        for patience in (0, _PATIENCE):
            time.sleep(patience)
            now = generation()
            self._drain()
            if now == since + ours:
                return self._triggered(now)
            touching = [self._commits.get(number) for number in range(since + 1, now + 1)]
            if touching and None not in touching:
                return self._triggered(now) if touching.count(True) == ours else None
        return None

    def _triggered(self, now: int) -> int:
        self._commits = {number: touched for number, touched in self._commits.items() if number > now}
        return now

    def _drain(self) -> None:
        lost = False
        while True:
            try:
                self._read(os.read(self._fd, DATAGRAM))
            except BlockingIOError:
                break
            except OSError:  # ENOBUFS: the receive buffer overflowed
                lost = True
        if lost:  # unknown which; one commit's notifications may be incomplete
            self._commits.clear()
            self._touched = True

    def _read(self, data: bytes) -> None:
        for kind, body in messages(data):
            if kind == _NEWGEN:
                number = _generation(body)
                if number is not None:
                    self._commits[number] = self._touched
                self._touched = False
            elif _is_ours(body):
                self._touched = True


class NftMonitor:
    """Becomes readable at any later nftables change, in the network namespace in which it was created."""

    def __init__(self) -> None:
        self._fd = _listening()

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        os.close(self._fd)

    def rang(self) -> bool:
        """True if a table or rule of ours was removed since the last call, by any process including this one."""
        rang = False
        with suppress(BlockingIOError):
            while True:
                try:
                    data = os.read(self._fd, DATAGRAM)
                except OSError as error:
                    if error.errno != errno.ENOBUFS:
                        raise
                    rang = True  # the receive buffer overflowed
                else:
                    rang = rang or any(kind in _REMOVALS and _is_ours(body) for kind, body in messages(data))
        return rang


def _listening() -> int:
    """A socket subscribed to nftables notifications."""
    try:
        with netfilter_socket(_ROOM) as made:
            made.setblocking(False)
            made.bind((0, 0))
            made.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _GROUP_NFTABLES)
            return made.detach()
    except OSError as error:
        raise KernelError(f"cannot subscribe to nftables changes: {error.strerror or error}") from error


def _is_ours(body: bytes) -> bool:
    return body.startswith(_NAMED, 4) and body[0] in _OURS


def _generation(body: bytes) -> int | None:
    """The number of a commit."""
    found = dict(attributes(body[4:])).get(_GEN_ID, b"")
    return int.from_bytes(found, "big") if len(found) == 4 else None
