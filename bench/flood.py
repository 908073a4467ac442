"""Sends one of bench.hostile's inputs on many connections, as fast as they accept it, from a pod of the bench's lab.

    python -m bench.flood HOST PORT "h1 escapes" --connections 20

`connections` instead of an input opens and resets connections, that number at a time. Prints `ready` on standard
output when all are open, and ends when standard input does.
"""

from __future__ import annotations

import argparse
import os
import select
import socket
import struct
import sys
from collections.abc import Iterator

from bench.hostile import ATTACKS

CONNECTIONS = "connections"
RESET = struct.pack("ii", 1, 0)


class Connection:
    """A connection that is reopened whenever it ends. Responses are read and discarded."""

    def __init__(self, address: tuple[str, int], name: str) -> None:
        self._address = address
        self._name = name
        self._open()

    def _open(self) -> None:
        self.sock = socket.socket()
        self.sock.setblocking(False)
        self.sock.connect_ex(self._address)
        self._reads: Iterator[bytes] = iter(()) if self._name == CONNECTIONS else ATTACKS[self._name].reads()
        self._left = b""

    def again(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.sock.close()
        self._open()

    def send(self) -> bool:
        """False at the end of the input."""
        self._left = self._left or next(self._reads, b"")
        if not self._left:
            return False
        self._left = self._left[self.sock.send(self._left) :]
        return True


def flood(address: tuple[str, int], name: str, count: int) -> None:
    epoll = select.epoll()
    epoll.register(sys.stdin.fileno(), select.EPOLLIN)
    open_ones: dict[int, Connection] = {}

    def add(connection: Connection) -> None:
        open_ones[connection.sock.fileno()] = connection
        epoll.register(connection.sock.fileno(), select.EPOLLIN | select.EPOLLOUT)

    for _ in range(count):
        add(Connection(address, name))
    print("ready", flush=True)
    while True:
        for descriptor, events in epoll.poll():
            if descriptor == sys.stdin.fileno():
                return
            connection = open_ones[descriptor]
            try:
                alive = not events & (select.EPOLLERR | select.EPOLLHUP)
                if alive and events & select.EPOLLIN:
                    alive = bool(connection.sock.recv(1 << 16))
                if alive and events & select.EPOLLOUT:
                    alive = connection.send()
            except BlockingIOError:
                alive = True
            except OSError:
                alive = False
            if not alive:
                epoll.unregister(descriptor)
                del open_ones[descriptor]
                connection.again()
                add(connection)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("name", choices=[*ATTACKS, CONNECTIONS])
    parser.add_argument("--connections", type=int, default=20)
    args = parser.parse_args()
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))  # takes no CPU from the measured processes
    flood((args.host, args.port), args.name, args.connections)


if __name__ == "__main__":
    main()
