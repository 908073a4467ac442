"""When conntrack entries are checked, which ones, and what happens when the kernel refuses."""

from __future__ import annotations

from l7proxy.agent.dataplane.revocation import Revocation
from tproxy_rules.backend import KernelError
from tproxy_rules.desired import Desired, Endpoint, Entry, Port, Verdict, union
from tproxy_rules.revoke import EVERYTHING, Outcome, Taken, taken

OPEN = Desired(endpoints=(Endpoint(1, ("10.1.0.11",), Port("veth1")),))
NARROW = Desired(endpoints=(Endpoint(1, ("10.1.0.11",), Port("veth1"), ingress=union(())),))
WIDER = Desired(
    endpoints=(
        Endpoint(
            1,
            ("10.1.0.11",),
            Port("veth1"),
            ingress=union((Entry(Verdict.ALLOW, 17, 53, 53, any_peer=True, peers=()),)),
        ),
    )
)


class Kernel:
    """A stand-in for conntrack: it records the requests, and refuses on demand."""

    def __init__(self) -> None:
        self.asked: list[tuple[Taken, bool]] = []
        self.fails = False
        self.served = 0

    def __call__(self, change: Taken, after: Desired, *, spare: bool) -> Outcome:
        if self.fails:
            raise KernelError("conntrack: no")
        self.asked.append((change, spare))
        return Outcome(1, self.served if spare else 0)


async def test_everything_at_first_then_only_what_takes_something_away() -> None:
    kernel = Kernel()
    revocation = Revocation(end=kernel)
    for snapshot in (OPEN, NARROW, WIDER, WIDER):
        revocation.in_force(snapshot)
        await revocation.step()
    assert kernel.asked == [(EVERYTHING, True), (taken(OPEN, NARROW), True)]
    assert revocation.state.removed == 2
    revocation.in_force(WIDER, doubtful=True)
    await revocation.step()
    assert kernel.asked[2:] == [(EVERYTHING, True)], "it was not in force for a while: nobody knows what has begun"


async def test_what_came_and_went_between_two_rounds_is_looked_at() -> None:
    kernel = Kernel()
    revocation = Revocation(end=kernel)
    revocation.in_force(OPEN)
    await revocation.step()
    for snapshot in (NARROW, OPEN):
        revocation.in_force(snapshot)
    await revocation.step()
    assert kernel.asked[1:] == [(taken(OPEN, NARROW), True)]


async def test_what_the_kernel_refuses_is_told_and_owed() -> None:
    kernel = Kernel()
    revocation = Revocation(end=kernel)
    revocation.in_force(OPEN)
    await revocation.step()
    kernel.fails = True
    revocation.in_force(NARROW)
    await revocation.step()
    assert revocation.state.error == "conntrack: no"
    kernel.fails = False
    revocation.in_force(WIDER)
    await revocation.step()
    assert kernel.asked[1:] == [(taken(OPEN, NARROW), True)]
    assert revocation.state.error == ""


async def test_what_the_proxy_was_left_to_end_is_looked_at_again() -> None:
    kernel, now = Kernel(), 100.0
    revocation = Revocation(end=kernel, respite=5, clock=lambda: now)
    revocation.in_force(OPEN)
    await revocation.step()
    kernel.served = 3
    revocation.in_force(NARROW)
    await revocation.step()
    await revocation.step()
    assert len(kernel.asked) == 2, "not before its time"
    now = 105.0
    await revocation.step()
    assert kernel.asked[2] == (taken(OPEN, NARROW), False)
