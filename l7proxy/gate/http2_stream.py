"""One HTTP/2 stream in the gate: a request, its response, and which sides have finished."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from l7proxy.flows.records import HttpRequest
from l7proxy.gate.http2_relay import StreamHalf
from l7proxy.wire.head import Header
from l7proxy.wire.http2_fields import FieldBlock
from l7proxy.wire.http2_head import RequestHead, ResponseHead


@dataclass(slots=True)
class Stream:
    """It has the same ID on both connections. `head` and `record` are None when the request was invalid.

    `waiting`: the head to forward once the server accepts it; `opened`: forwarded. `answered`: by the proxy; the rest
    of the request is discarded. `told`: its HttpResponse has been emitted. `reset`: the code of a reset by the server
    after its response. `judged`: the request's fields that were evaluated, and those that its policy added.
    """

    id: int
    up: StreamHalf
    down: StreamHalf
    head: RequestHead | None = None
    judged: Sequence[Header] = ()
    record: HttpRequest | None = None
    grpc: bool = False
    waiting: FieldBlock | None = None
    opened: bool = False
    answered: bool = False
    told: bool = False
    response: ResponseHead | None = None
    interim: int = 0
    reset: int | None = None

    @property
    def at_server(self) -> bool:
        """The server counts it as an open stream."""
        return self.opened and not (self.down.ended and self.up.sent)

    @property
    def head_only(self) -> bool:
        """Its response has no body."""
        return self.head is not None and self.head.method == b"HEAD"
