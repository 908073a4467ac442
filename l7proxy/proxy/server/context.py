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
    """Seconds. There is none on a request as a whole: how long a poll, a stream or a tunnel lasts is none of our
    business."""

    connect: float = 5.0
    head: float = 30.0
    """From the first byte of a request to the last of its head."""
    idle: float = 3600.0
    """Between requests, without a byte either way."""
    stream: float = 86400.0
    """Within a request, its answer or a tunnel, without a byte either way. Conntrack under kube-proxy forgets a silent
    connection after as long, so that this ends only what is dead."""
    linger: float = 2.0
    """For the client to read our last answer before the connection is cut under it."""
    stalled: float = 30.0
    """Without progress in what is still to be sent on a connection that has ended."""


@dataclass(slots=True)
class Counts:
    """Since the worker began. `errors`: sessions that ended by a fault of ours."""

    requests: int = 0
    denied: int = 0
    errors: int = 0


@dataclass(slots=True)
class WorkerContext:
    """`own` are our listeners' names; `limit` is the number of sessions at a time, of which one endpoint may have half:
    a pod that opens all it can must not shut the others out."""

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
    pipes: Pipes = field(init=False)
    draining: bool = False

    def __post_init__(self) -> None:
        self.poller.fence = self.policy_store.fence
        self.pipes = Pipes(self.poller)
