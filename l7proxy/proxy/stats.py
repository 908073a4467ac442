"""Collects what a worker reports of itself. The numbers are defined in `link.messages.WorkerStats`."""

from __future__ import annotations

from l7proxy.link.messages import WorkerStats
from l7proxy.link.outbox import Outbox
from l7proxy.proxy.server.context import WorkerContext


def collect(ctx: WorkerContext, outbox: Outbox) -> WorkerStats:
    counts, memory = ctx.counts, ctx.memory
    return WorkerStats(
        connections=len(ctx.policy_store),
        requests=counts.requests,
        denied=counts.denied,
        errors=counts.errors,
        refused_share=counts.refused_share,
        refused_memory=memory.refused,
        ended_memory=memory.ended,
        memory=memory.held,
        splices=ctx.pipes.used,
        queued=len(outbox),
        lost=outbox.lost,
    )
