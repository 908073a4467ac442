"""Tells systemd when the agent enforces policy, and that it stops: sd_notify(3), for units with Type=notify.

Without a service manager (no NOTIFY_SOCKET) it does nothing.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping
from typing import Final

log = logging.getLogger(__name__)

VARIABLE: Final = "NOTIFY_SOCKET"


class ServiceManager:
    """A message that cannot be delivered is logged, and stops nothing."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._address = environment.get(VARIABLE, "")
        self._said_ready = False

    def ready(self) -> None:
        """Policies are in force. Only the first call is told."""
        if not self._said_ready:
            self._said_ready = True
            self._send("READY=1\nSTATUS=policies are in force")

    def stopping(self) -> None:
        self._send("STOPPING=1\nSTATUS=stopping; the kernel's rules stay in force")

    def _send(self, state: str) -> None:
        if not self._address:
            return
        # A leading @ stands for the zero byte of the abstract namespace (unix(7)).
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
                sock.sendto(state.encode(), address)
        except OSError as error:
            log.warning("%s: the service manager cannot be told: %s", VARIABLE, error.strerror or error)
