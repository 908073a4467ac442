"""Frame handlers for each side: both implement http2_peer.Owner, but the same frame has another meaning on each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from l7proxy.wire.http2_fields import FieldBlock


@dataclass(slots=True, eq=False)
class FromClient:
    got_fields: Callable[[int, FieldBlock, bool], None]
    got_data: Callable[[int, bytes, int, int, int, int], None]
    got_reset: Callable[[int, int], None]
    got_window: Callable[[int, int], None]
    got_initial_window: Callable[[int], None]
    got_pong: Callable[[bytes], None]
    leaves: Callable[[int], None]

    def got_settings(self) -> None:
        """No effect: the client needs no permission to begin."""

    def got_goaway(self, last: int, code: int) -> None:
        self.leaves(code)


@dataclass(slots=True, eq=False)
class FromServer:
    got_settings: Callable[[], None]
    got_fields: Callable[[int, FieldBlock, bool], None]
    got_data: Callable[[int, bytes, int, int, int, int], None]
    got_reset: Callable[[int, int], None]
    got_window: Callable[[int, int], None]
    got_initial_window: Callable[[int], None]
    got_goaway: Callable[[int, int], None]

    def got_pong(self, payload: bytes) -> None:
        """No effect: we never send PING to the server."""
