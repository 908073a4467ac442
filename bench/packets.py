"""Sends small UDP packets as fast as one core can, with sendmmsg(2): 64 packets per call, without pause.

The path through a veth pair, a forwarding namespace and another pair runs in the sender's own context, softirq
included, so the time of the call is the time of the packets.
"""

from __future__ import annotations

import ctypes
import os
import socket
import time

BATCH = 64
_libc = ctypes.CDLL(None, use_errno=True)


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Header(ctypes.Structure):
    """`struct msghdr` of LP64."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("vectors", ctypes.POINTER(_Vector)),
        ("vector_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Message(ctypes.Structure):
    """`struct mmsghdr`: with the number of bytes sent."""

    _fields_ = (("header", _Header), ("sent", ctypes.c_uint))


class Sender:
    """A connected UDP socket with 64 packets of 32 bytes. Create it inside the namespace that sends."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.connect(address)
        self._payload = ctypes.create_string_buffer(32)
        self._vector = _Vector(ctypes.cast(self._payload, ctypes.c_void_p), 32)
        self._messages = (_Message * BATCH)()
        for message in self._messages:
            message.header.vectors = ctypes.pointer(self._vector)
            message.header.vector_count = 1

    def ns_per_packet(self, seconds: float) -> float:
        """Wall time per packet of the fastest tenth of the calls, because interrupts are not part of the path."""
        send, descriptor, messages = _libc.sendmmsg, self._socket.fileno(), self._messages
        clock = time.perf_counter_ns
        taken: list[int] = []
        end = clock() + int(seconds * 1e9)
        while (start := clock()) < end:
            count = send(descriptor, messages, BATCH, 0)
            if count != BATCH:
                raise OSError(ctypes.get_errno(), f"sendmmsg sent {count}: {os.strerror(ctypes.get_errno())}")
            taken.append(clock() - start)
        quick = sorted(taken)[: max(1, len(taken) // 10)]
        return sum(quick) / len(quick) / BATCH

    def close(self) -> None:
        self._socket.close()
