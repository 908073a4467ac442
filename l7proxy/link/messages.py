"""All messages of the link. A frame is a 4-byte big-endian length and one msgpack value.

A worker sends Hello, gets a FullSnapshot and later SnapshotDeltas, and answers each with Applied. It sends Flows when
it has records. The agent may restart: the worker keeps serving with the last snapshot and sends Hello again.
"""

from __future__ import annotations

from typing import Final

import msgspec

from l7proxy.flows.batch import Flows
from l7proxy.gate.options import HttpOptions
from l7proxy.model.endpoint import Frontend
from l7proxy.policy.tables import DirectionPolicy, LocalEndpoint

PROTOCOL_VERSION: Final = 5
MAX_FRAME: Final = 256 << 20
"""Bytes. A snapshot of 1 000 endpoints and 10 000 rules has some tens of MB."""
MAX_WORKER_FRAME: Final = 32 << 20
"""Bytes, for frames of workers. A batch is far smaller, unless clients send URLs or headers of the maximum length: then
it takes several frames."""


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
    identities: dict[str, int]
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


class FullSnapshot(msgspec.Struct, frozen=True, tag="whole"):
    """A whole policy snapshot. `head` is the snapshot without endpoints and identities."""

    head: PolicySnapshot
    policies: tuple[DirectionPolicy, ...]
    endpoints: tuple[PackedEndpoint, ...]
    identities: dict[str, int]


class SnapshotDelta(msgspec.Struct, frozen=True, tag="delta"):
    """The changes since snapshot `base`: endpoints and prefixes that are new or changed, and those that are gone."""

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


class Load(msgspec.Struct, frozen=True, tag="load"):
    """A worker's load, about once a second: for `status`.

    `held`: bytes buffered for clients; `refused` and `ended` count connections of clients above the memory limit.
    """

    connections: int
    requests: int
    denied: int
    held: int = 0
    refused: int = 0
    ended: int = 0


FromWorker = Hello | Applied | Flows | Load
FromAgent = FullSnapshot | SnapshotDelta
