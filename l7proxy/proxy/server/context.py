"""What all sessions of one worker share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from l7proxy.flows.records import Record
from l7proxy.gate.clock import Clock
from l7proxy.model.net import HostPort
from l7proxy.proxy.policy_store import PolicyStore
from l7proxy.proxy.server.memory import Memory
from l7proxy.proxy.server.pipes import Pipes
from l7proxy.proxy.server.poller import Poller
from l7proxy.proxy.server.shares import Shares
from l7proxy.proxy.server.steering import Steering
from l7proxy.proxy.server.timer_wheel import TimerWheel


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds. A request as a whole has no timeout: a long poll, a stream or a tunnel may last as long as it likes."""

    connect: float = 5.0
    head: float = 30.0
    """From the first byte of a request to the end of its head."""
    idle: float = 3600.0
    """Between requests, without a byte in either direction."""
    stream: float = 86400.0
    """Within a request, its response or a tunnel, without a byte in either direction. Conntrack under kube-proxy drops
    an idle connection after the same time, so this ends only connections that are dead anyway."""
    linger: float = 2.0
    """Time for the client to read our last response before the connection is closed."""
    stalled: float = 30.0
    """Without progress in sending the remaining bytes of a connection that has ended."""


@dataclass(slots=True)
class Counts:
    """Since the worker started. `errors`: sessions ended by an internal error.

    `refused_share`: connections refused because their client has its share.
    """

    requests: int = 0
    denied: int = 0
    errors: int = 0
    refused_share: int = 0


@dataclass(slots=True)
class WorkerContext:
    """`own` are the addresses of our listeners; `limit` is the most sessions at a time. One endpoint may have half of
    them, so that a pod that opens as many as it can does not exclude the others."""

    policy_store: PolicyStore
    steering: Steering
    timers: TimerWheel
    records: Callable[[Record], None]
    clock: Clock
    timeouts: Timeouts = field(default_factory=Timeouts)
    counts: Counts = field(default_factory=Counts)
    own: set[HostPort] = field(default_factory=set)
    limit: int = 1 << 30
    shares: Shares = field(default_factory=Shares)
    memory: Memory = field(default_factory=Memory)
    poller: Poller = field(default_factory=Poller)
    pipes: Pipes = field(default_factory=Pipes)
    draining: bool = False
    idle_ends: bool = False
    """While draining: a connection without an exchange ends at once."""

    def __post_init__(self) -> None:
        self.poller.fence = self.policy_store.fence
        self.timers.held = self.poller.must_hold
