"""Whose frames they are: each peer says the same kinds of things (http2_peer.Owner), and they mean other things."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from l7proxy.gate.http2_exchanges import Exchanges


class FromClient:
    __slots__ = ("_of", "got_data", "got_fields", "got_initial_window", "got_pong", "got_reset", "got_window")

    def __init__(self, of: Exchanges) -> None:
        self._of = of
        self.got_fields = of.client_fields
        self.got_data = of.client_data
        self.got_reset = of.client_reset
        self.got_window = of.client_window
        self.got_initial_window = of.client_initial_window
        self.got_pong = of.client_pong

    def got_settings(self) -> None:
        """It may begin."""

    def got_goaway(self, last: int, code: int) -> None:
        self._of.client_goaway(code)


class FromServer:
    __slots__ = (
        "got_data",
        "got_fields",
        "got_goaway",
        "got_initial_window",
        "got_reset",
        "got_settings",
        "got_window",
    )

    def __init__(self, of: Exchanges) -> None:
        self.got_settings = of.server_settings
        self.got_fields = of.server_fields
        self.got_data = of.server_data
        self.got_reset = of.server_reset
        self.got_window = of.server_window
        self.got_initial_window = of.server_initial_window
        self.got_goaway = of.server_goaway

    def got_pong(self, payload: bytes) -> None:
        """We never ask the server."""
