"""Every frame that crosses the link. One frame is a 4-byte big-endian length and one msgpack value.

A worker says Hello, gets a Picture, and answers each Picture with Applied. It sends Flows whenever it has some.
The agent may vanish and come back: the worker keeps serving on the last Picture and says Hello again.
"""

from __future__ import annotations

from typing import Final

import msgspec

from l7proxy.flows.batch import Flows
from l7proxy.model.endpoint import Frontend
from l7proxy.policy.tables import EndpointPolicy
from l7proxy.wire.path import PathRules

PROTOCOL_VERSION: Final = 2
MAX_FRAME: Final = 256 << 20
"""Bytes. A picture of 1 000 endpoints and 10 000 rules is some tens of MB."""


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


class Picture(msgspec.Struct, frozen=True, tag="picture"):
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


class Applied(msgspec.Struct, frozen=True, tag="applied"):
    """The worker judges by `revision` from now on. `problems` are rules it could not use (refused closed)."""

    revision: int
    problems: tuple[str, ...] = ()


class Load(msgspec.Struct, frozen=True, tag="load"):
    """What the worker carries, once a second or so: for `status`."""

    connections: int
    requests: int
    denied: int


FromWorker = Hello | Applied | Flows | Load
FromAgent = Picture
