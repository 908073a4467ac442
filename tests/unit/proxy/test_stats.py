"""What a worker reports of itself: every number that is defined is filled, from where it is counted."""

from __future__ import annotations

from typing import Any

import msgspec

from l7proxy.flows.records import Connection
from l7proxy.gate.clock import Clock
from l7proxy.link.messages import WorkerStats
from l7proxy.link.outbox import Outbox
from l7proxy.model.net import HostPort
from l7proxy.model.policy_verdict import Conn, PolicyVerdict
from l7proxy.model.verdict import Direction, Verdict
from l7proxy.proxy import stats
from l7proxy.proxy.policy_store import PolicyStore
from l7proxy.proxy.server.context import Counts, WorkerContext
from l7proxy.proxy.server.steering import Plain
from l7proxy.proxy.server.timer_wheel import TimerWheel

RECORD = Connection(1, Conn("10.0.0.1", 1, "10.0.0.2", 80, 300, 301), PolicyVerdict(Verdict.DROPPED, Direction.INGRESS))


class Open:
    """An open session."""

    def policy_changed(self) -> None: ...
    def drain(self) -> None: ...
    def end_idle(self) -> None: ...
    def cut(self, reason: str) -> None: ...


async def test_every_number_is_filled() -> None:
    outbox = Outbox(capacity=1)
    here = HostPort("127.0.0.1", 1)
    ctx = WorkerContext(
        policy_store=PolicyStore(),
        steering=Plain(here, here),
        timers=TimerWheel(0.0),
        records=outbox.put,
        clock=Clock(lambda: 0, lambda: 0),
    )
    try:
        assert stats.collect(ctx, outbox) == WorkerStats()
        for number in range(8):
            ctx.policy_store.join(Open())
            outbox.put(RECORD)
            if number < 4:
                ctx.pipes.take()
        ctx.counts = Counts(requests=11, denied=12, errors=13, refused_share=14)
        ctx.memory.held, ctx.memory.refused, ctx.memory.ended = 15, 16, 17
        expected: dict[str, Any] = {
            "connections": 8,
            "requests": 11,
            "denied": 12,
            "errors": 13,
            "refused_share": 14,
            "refused_memory": 16,
            "ended_memory": 17,
            "memory": 15,
            "splices": 4,
            "queued": 1,
            "lost": 7,
        }
        assert msgspec.structs.asdict(stats.collect(ctx, outbox)) == expected
    finally:
        ctx.pipes.close()


def test_each_number_has_a_unit_and_a_meaning() -> None:
    found = WorkerStats.definitions()
    assert list(found) == list(WorkerStats.__struct_fields__)
    assert all(stat.unit and stat.meaning for stat in found.values())
    assert [name for name, stat in found.items() if not stat.total] == ["connections", "memory", "splices", "queued"]
