"""All messages of the link. A frame is a 4-byte big-endian length and one msgpack value.

A worker sends Hello, gets SnapshotDeltas (the first one from the empty snapshot), and answers each with Applied. It
sends Flows when it has records, WorkerStats once a second, and a Request when the agent must do something before the
worker goes on. The agent answers each Request with Acknowledged or Refused. Before it closes a connection, it says why
with Refused. The agent may restart: the worker keeps serving with the last snapshot and sends Hello again.

A change of any message needs a new PROTOCOL_VERSION: tests/unit/link/test_protocol_version.py fails without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final, NamedTuple, get_type_hints

import msgspec

from l7proxy.flows.batch import Flows
from l7proxy.gate.options import HttpOptions
from l7proxy.model.endpoint import Frontend
from l7proxy.policy.tables import DirectionPolicy, LocalEndpoint

PROTOCOL_VERSION: Final = 7
MAX_FRAME: Final = 256 << 20
"""Bytes. A snapshot of 1 000 endpoints and 10 000 rules has some tens of MB."""
MAX_WORKER_FRAME: Final = 32 << 20
"""Bytes, for frames of workers. A batch is far smaller, unless clients send URLs or headers of the maximum length: then
it takes several frames."""

MAX_REQUESTS: Final = 256
"""Requests of one worker without an answer. Those above it are refused."""
CONNECTION: Final = 0
"""The `id` of a Refused that concerns no request, but the connection."""


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """The first message of a worker."""

    version: int
    pid: int
    worker: int


class PolicySnapshot(msgspec.Struct, frozen=True):
    """All inputs of a worker's decisions. `identities` maps prefixes (`10.0.0.1/32`) to identity numbers.

    `node_addresses` are this node's own: the proxy must not connect to its own port there.
    `frontends` is filled only when the kernel redirects before Service DNAT, so that the worker must choose a backend.
    """

    revision: int
    endpoints: tuple[LocalEndpoint, ...]
    identities: Mapping[str, int]
    frontends: tuple[Frontend, ...] = ()
    node_addresses: tuple[str, ...] = ()
    http: HttpOptions = HttpOptions()
    epoch: int = 0
    """Of the agent that publishes the snapshot: see `fence`."""


class PackedEndpoint(msgspec.Struct, frozen=True, array_like=True):
    """A LocalEndpoint whose policies are indexes into the message's `policies`; -1: no policy."""

    id: int
    name: str
    addresses: tuple[str, ...]
    ingress: int
    egress: int


class SnapshotDelta(msgspec.Struct, frozen=True, tag="delta"):
    """The changes since snapshot `base`: endpoints and prefixes that are new or changed, and those that are gone.

    `base` 0 is the empty snapshot. `head` is the new snapshot without endpoints and identities.
    """

    base: int
    head: PolicySnapshot
    policies: tuple[DirectionPolicy, ...]
    endpoints: tuple[PackedEndpoint, ...]
    gone: tuple[int, ...]
    identities: dict[str, int]
    identities_gone: tuple[str, ...]


class Applied(msgspec.Struct, frozen=True, tag="applied"):
    """The worker enforces `revision` from now on. `problems` are rules it cannot use (their traffic is refused)."""

    revision: int
    problems: tuple[str, ...] = ()


class Stat(NamedTuple):
    """The meaning of a number in WorkerStats. `total`: since the worker started; else its present value."""

    unit: str
    meaning: str
    total: bool = True


class WorkerStats(msgspec.Struct, frozen=True, tag="stats"):
    """What a worker counts, sent once a second. Each number is defined here; `proxy/stats` fills it."""

    connections: Annotated[int, Stat("connections", "open connections of clients", total=False)] = 0
    requests: Annotated[int, Stat("requests", "HTTP requests that were evaluated")] = 0
    denied: Annotated[int, Stat("requests", "requests and connections that were refused")] = 0
    errors: Annotated[int, Stat("connections", "connections ended by an internal error")] = 0
    refused_share: Annotated[int, Stat("connections", "refused: the client has half of worker-connections")] = 0
    refused_memory: Annotated[int, Stat("connections", "refused: the endpoint is above its limit of memory")] = 0
    ended_memory: Annotated[int, Stat("connections", "ended: the endpoint stayed above its limit of memory")] = 0
    memory: Annotated[int, Stat("bytes", "buffered for clients", total=False)] = 0
    splices: Annotated[int, Stat("pipes", "pipes in use for bodies that the kernel moves", total=False)] = 0
    queued: Annotated[int, Stat("records", "flow records that wait for the agent", total=False)] = 0
    lost: Annotated[int, Stat("records", "flow records dropped because the queue was full")] = 0

    @classmethod
    def definitions(cls) -> dict[str, Stat]:
        """The meaning of each number, by name."""
        hints = get_type_hints(cls, include_extras=True)
        return {name: hints[name].__metadata__[0] for name in cls.__struct_fields__}


class AddressesLearned(msgspec.Struct, frozen=True, tag="addresses-learned"):
    """An endpoint is about to get a DNS answer: the kernel must know these addresses before the pod does.

    `name` is the queried name, `addresses` are in canonical form, `endpoint` is the number of the pod that asked.
    """

    endpoint: int
    name: Annotated[str, msgspec.Meta(max_length=255)]
    addresses: Annotated[tuple[str, ...], msgspec.Meta(max_length=1024)]
    ttl_s: Annotated[int, msgspec.Meta(ge=0)]


RequestBody = AddressesLearned
"""What a worker may ask of the agent: a tagged union. Every length in it is bounded."""


class Request(msgspec.Struct, frozen=True, tag="request"):
    """The agent answers with Acknowledged or Refused of the same `id`, when it has done what `body` asks."""

    id: Annotated[int, msgspec.Meta(gt=CONNECTION)]
    body: RequestBody


class Acknowledged(msgspec.Struct, frozen=True, tag="acknowledged"):
    """Done. Each policy snapshot that was published before it was sent before it."""

    id: int


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """Not done."""

    id: int
    reason: str


FromWorker = Hello | Applied | Flows | WorkerStats | Request
FromAgent = SnapshotDelta | Acknowledged | Refused
