"""One HTTP/2 stream as the gate sees it: a request, its answer, and who has finished."""

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
    """It has the same number towards the server. `head` and `record` are None when it is no request we could judge.

    `waiting` is the head that is to be forwarded once the server is there. `opened`: it has been. `answered`: by us,
    so that what else the client says is thrown away. `told`: its HttpResponse has been emitted. `reset` is the code
    with which the server gave up after its answer. `judged` are the request's fields, and those its policy wrote.
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
        """It counts there among the streams that are open."""
        return self.opened and not (self.down.ended and self.up.sent)

    @property
    def head_only(self) -> bool:
        """Its answer has no body."""
        return self.head is not None and self.head.method == b"HEAD"
