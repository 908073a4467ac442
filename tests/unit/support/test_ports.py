from __future__ import annotations

import errno
import socket

import pytest

from tests.support.ports import reserved_port


def test_nobody_else_gets_it_on_any_address() -> None:
    with reserved_port() as port, socket.socket() as other, pytest.raises(OSError) as failure:
        other.bind(("127.0.0.9", port))
    assert failure.value.errno == errno.EADDRINUSE


def test_a_server_may_listen_on_it() -> None:
    with reserved_port() as port, socket.socket() as server, socket.socket() as client:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", port))
        server.listen()
        client.connect(("127.0.0.1", port))
