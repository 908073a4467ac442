"""The rendered kernel state and `decide` give the same verdicts for the same policy: for random policies."""

from __future__ import annotations

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from l7proxy.agent.dataplane.pod_interfaces import PodInterfaces
from l7proxy.agent.dataplane.render import render
from l7proxy.cluster.state import ClusterState
from l7proxy.model.ref import RuleRef
from l7proxy.model.resources import Node, Pod, Upsert
from l7proxy.model.verdict import Action, Verdict
from l7proxy.policy import decide
from l7proxy.policy.rules import HttpRules
from l7proxy.policy.tables import DirectionPolicy, EndpointPolicy, Entry, TierPolicy
from tproxy_rules import desired as kernel
from tproxy_rules.fake import FakeBackend, Fate, Packet
from tproxy_rules.validate import checked

REF = RuleRef("P", "ns", "p")
WEB, ONE, TWO = "10.0.1.5", "10.0.2.1", "10.0.2.2"
_WORLD = ClusterState()
_WORLD.apply(
    [
        Upsert(Node("n1", ("192.168.0.1",))),
        Upsert(Pod("shop", "web", "n1", (WEB,), {"app": "web"})),
        Upsert(Pod("shop", "one", "n2", (ONE,), {"app": "one"})),
        Upsert(Pod("shop", "two", "n2", (TWO,), {"app": "two"})),
    ]
)
VIEW = _WORLD.view("n1")
IDENTITY = {address: VIEW.by_prefix[f"{address}/32"] for address in (ONE, TWO)}
PORTS = {6: (80, 81, 443), 17: (53, 80), 1: (8 << 8, 13 << 8), 132: (80,)}


def _entry(action: Action, who: tuple[str, ...] | None, what: tuple[int | None, int, int], audit: bool) -> Entry:
    peers = None if who is None else tuple(sorted(IDENTITY[one] for one in who))
    protocol, first, last = what
    l7 = HttpRules(()) if action is Action.REDIRECT else None
    return Entry(action, REF, peers, protocol, first, last, l7, audit=audit and action is Action.DENY)


ENTRIES = st.builds(
    _entry,
    st.sampled_from(Action),
    st.sampled_from((None, (ONE,), (TWO,), (ONE, TWO))),
    st.sampled_from(
        ((None, 0, 65535), (6, 0, 65535), (6, 80, 80), (6, 80, 81), (17, 53, 53), (1, 8 << 8, (8 << 8) + 255),
         (1, 0, 65535), (132, 80, 80))
    ),
    st.booleans(),
)  # fmt: skip
STAGES = st.lists(ENTRIES, min_size=1, max_size=3, unique=True).map(tuple)
NAMED = st.sampled_from(((), (REF,)))
TIERS = st.builds(TierPolicy, st.just("t"), st.lists(STAGES, max_size=3).map(tuple), NAMED, NAMED)
POLICIES = st.lists(TIERS, min_size=1, max_size=3).map(lambda tiers: DirectionPolicy(tuple(tiers)))
FATES = {
    Verdict.FORWARDED: Fate.PASS,
    Verdict.AUDIT: Fate.PASS,
    Verdict.REDIRECTED: Fate.STEER,
    Verdict.DROPPED: Fate.REFUSE,
}


@given(POLICIES)
def test_kernel_and_decide_agree(policy: DirectionPolicy) -> None:
    number = VIEW.endpoints[0].id
    policies: dict[int, EndpointPolicy] = {number: EndpointPolicy(number, policy)}
    desired = render(VIEW, policies, PodInterfaces(), settings=kernel.Settings(), resolve_services=False).kernel
    checked(desired)
    fake = FakeBackend()
    fake.apply(desired)
    for source, (protocol, ports) in product(IDENTITY, PORTS.items()):
        for port in ports:
            verdict = decide.port(policy, IDENTITY[source], protocol, port).l4.verdict
            fate = fake.verdict_of(Packet(source, WEB, protocol, port, "eth0"))
            if verdict is Verdict.REDIRECTED and protocol != 6:
                # No gate can evaluate it. It is not redirected, and passes only if its own stage allows it as well.
                allowed = any(
                    entry.action is Action.ALLOW and entry.covers(IDENTITY[source], protocol, port)
                    for entry in policy.entries
                )
                assert fate is Fate.REFUSE or (allowed and fate is Fate.PASS)
            else:
                assert fate is FATES[verdict], (source, protocol, port)
