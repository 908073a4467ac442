"""The active policy snapshot: endpoint of an address, policy of a connection, and what is denied as undecidable."""

from __future__ import annotations

import asyncio

import pytest

from l7proxy.errors import LinkError
from l7proxy.link.messages import PolicySnapshot
from l7proxy.model.endpoint import Backend, Frontend
from l7proxy.model.net import HostPort
from l7proxy.model.verdict import Action
from l7proxy.policy.http_table import HttpTable
from l7proxy.policy.rules import HttpRule
from l7proxy.policy.tables import DirectionPolicy, EndpointPolicy, Entry, LocalEndpoint, union
from l7proxy.proxy import policy_store
from l7proxy.proxy.policy_store import PolicyIndex, PolicyStore, choose
from tests.unit.proxy.stage import REF, by_http, gets


def endpoint(
    number: int, *addresses: str, ingress: DirectionPolicy | None = None, egress: DirectionPolicy | None = None
) -> LocalEndpoint:
    return LocalEndpoint(number, f"default/pod{number}", addresses, EndpointPolicy(number, ingress, egress))


def index(*endpoints: LocalEndpoint, frontends: tuple[Frontend, ...] = ()) -> PolicyIndex:
    identities = {"10.0.0.1/32": 300, "10.0.0.2/32": 301, "10.0.0.0/8": 1 << 24, "fd00::/8": 9, "0.0.0.0/0": 2}
    return PolicyIndex(PolicySnapshot(revision=1, endpoints=endpoints, identities=identities, frontends=frontends))


def test_of_a_connection_the_policy_of_tcp_is_found() -> None:
    only = {protocol: union((Entry(Action.ALLOW, REF, None, protocol, 80, 80),), (REF,)) for protocol in (6, 17)}
    asked = index(endpoint(1, "10.0.0.1", ingress=only[6]), endpoint(2, "10.0.0.2", ingress=only[17]))
    assert not asked.lookup("192.0.2.1", "10.0.0.1", 80).refused
    assert asked.lookup("192.0.2.1", "10.0.0.2", 80).refused


def test_problems_of_the_snapshot_are_told() -> None:
    asked = index(endpoint(1, "10.0.0.1"), endpoint(2, "10.0.0.1"))
    assert asked.problems == ("10.0.0.1 is claimed by default/pod2 and default/pod1: its traffic is refused",)


def test_frontends_by_address_and_port_of_tcp() -> None:
    backends = tuple(Backend(f"10.0.0.{n}", 8080) for n in range(4))
    service = Frontend("default", "web", "10.96.0.1", 80, 6, backends)
    asked = index(frontends=(service, Frontend("default", "dns", "10.96.0.1", 53, 17)))
    assert asked.frontend(HostPort("10.96.0.1", 80)) == service
    assert asked.frontend(HostPort("10.96.0.1", 53)) is None
    assert {choose(service) for _ in range(200)} == set(backends)


class Session:
    def __init__(self, on: PolicyStore) -> None:
        self.saw: list[int] = []
        self._on = on

    def policy_changed(self) -> None:
        assert self._on.index is not None
        self.saw.append(self._on.index.revision)
        if len(self.saw) == 2:
            self._on.leave(self)

    def drain(self) -> None: ...
    def end_idle(self) -> None: ...

    def cut(self, reason: str) -> None: ...


async def test_every_live_session_hears_of_each_snapshot_before_it_counts_as_applied() -> None:
    on = PolicyStore()
    sessions = [Session(on) for _ in range(1000)]
    for session in sessions:
        on.join(session)
    for revision in (1, 2, 3):
        await on.publish(PolicySnapshot(revision=revision, endpoints=(), identities={}))
        assert all(session.saw[-1] == min(revision, 2) for session in sessions)
    assert len(on) == 0
    async with asyncio.timeout(1):
        await on.empty()


async def test_rules_by_the_hundred_are_compiled_before_anybody_asks() -> None:
    on = PolicyStore()
    many = by_http(*(HttpRule(REF, path=f"/{number}/.*") for number in range(policy_store.MANY)))
    policies = {"10.0.0.1": (None, many), "10.0.0.2": (many, None), "10.0.0.3": (gets("/nobody/asks"), None)}
    endpoints = tuple(
        endpoint(number, address, ingress=ingress, egress=egress)
        for number, (address, (ingress, egress)) in enumerate(policies.items())
    )
    await on.publish(PolicySnapshot(revision=1, endpoints=endpoints, identities={"10.0.0.0/8": 300}))
    assert on.index is not None
    for source, destination, ready in (
        ("10.9.9.9", "10.0.0.2", True),
        ("10.0.0.1", "10.9.9.9", True),
        ("10.9.9.9", "10.0.0.3", False),
    ):
        sides = on.index.lookup(source, destination, 80)
        side = sides.ingress if sides.egress is None else sides.egress
        assert side is not None
        assert [table.ready for table in side.tables if isinstance(table, HttpTable)] == [ready]


@pytest.mark.parametrize("prefix", ["10.0.0.300/32", "10.0.0.1/8", "pod"])
async def test_a_snapshot_that_is_none_leaves_the_one_before_in_force(prefix: str) -> None:
    on = PolicyStore()
    await on.publish(PolicySnapshot(revision=1, endpoints=(), identities={}))
    with pytest.raises(LinkError, match="policy revision 2 cannot be applied"):
        await on.publish(PolicySnapshot(revision=2, endpoints=(), identities={prefix: 1}))
    assert on.index is not None
    assert on.index.revision == 1
