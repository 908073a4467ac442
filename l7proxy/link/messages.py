"""Every frame that crosses the link. One frame is a 4-byte big-endian length and one msgpack value.

A worker says Hello, gets the picture Whole and later Deltas, and answers each with Applied. It sends Flows whenever it
has some. The agent may vanish and come back: the worker keeps serving on the last picture and says Hello again.
"""

from __future__ import annotations

from typing import Final

import msgspec

from l7proxy.flows.batch import Flows
from l7proxy.model.endpoint import Frontend
from l7proxy.policy.tables import DirectionPolicy, EndpointPolicy
from l7proxy.wire.path import PathRules

PROTOCOL_VERSION: Final = 4
MAX_FRAME: Final = 256 << 20
"""Bytes. A picture of 1 000 endpoints and 10 000 rules is some tens of MB."""
MAX_WORKER_FRAME: Final = 32 << 20
"""The same for what a worker sends. A batch is far below, unless clients have URLs or headers as long as heads may be:
then it goes in several frames."""


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """First frame of a worker."""

    version: int
    pid: int
    worker: int


class LocalEndpoint(msgspec.Struct, frozen=True):
    """What a worker must know of a local pod."""

    id: int
    name: str
    addresses: tuple[str, ...]
    policy: EndpointPolicy


class PolicySnapshot(msgspec.Struct, frozen=True):
    """All that a worker decides by. `identities` maps prefixes (`10.0.0.1/32`) to identity numbers.

    `secret_headers` may hold a secret's value: flows never show it.
    `node_addresses` are this node's own: never a destination to dial on a pod's behalf as oneself.
    `frontends` is filled only when the kernel backend steers before Service DNAT, so that the worker must resolve.
    """

    revision: int
    endpoints: tuple[LocalEndpoint, ...]
    identities: dict[str, int]
    frontends: tuple[Frontend, ...] = ()
    node_addresses: tuple[str, ...] = ()
    flow_headers: tuple[str, ...] = ()
    secret_headers: tuple[str, ...] = ()
    flow_query: bool = False
    deny_header: bool = False
    paths: PathRules = PathRules()
    epoch: int = 0
    """Of the agent that publishes it: see `fence`."""


class PackedEndpoint(msgspec.Struct, frozen=True, array_like=True):
    """A LocalEndpoint whose policies are places in a list that comes with it; -1: no policy."""

    id: int
    name: str
    addresses: tuple[str, ...]
    ingress: int
    egress: int


class FullSnapshot(msgspec.Struct, frozen=True, tag="whole"):
    """A picture. `head` is all of it but endpoints and identities."""

    head: PolicySnapshot
    policies: tuple[DirectionPolicy, ...]
    endpoints: tuple[PackedEndpoint, ...]
    identities: dict[str, int]


class SnapshotDelta(msgspec.Struct, frozen=True, tag="delta"):
    """What has changed since picture `base`: endpoints and prefixes that are new or other, and those that are gone."""

    base: int
    head: PolicySnapshot
    policies: tuple[DirectionPolicy, ...]
    endpoints: tuple[PackedEndpoint, ...]
    gone: tuple[int, ...]
    identities: dict[str, int]
    identities_gone: tuple[str, ...]


class Applied(msgspec.Struct, frozen=True, tag="applied"):
    """The worker judges by `revision` from now on. `problems` are rules it could not use (refused closed)."""

    revision: int
    problems: tuple[str, ...] = ()


class Load(msgspec.Struct, frozen=True, tag="load"):
    """What the worker carries, once a second or so: for `status`.

    `held` are the bytes that it holds for its clients; `refused` and `ended` count connections of those that held too
    much.
    """

    connections: int
    requests: int
    denied: int
    held: int = 0
    refused: int = 0
    ended: int = 0


FromWorker = Hello | Applied | Flows | Load
FromAgent = FullSnapshot | SnapshotDelta
