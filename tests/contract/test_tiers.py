"""Tables of random tiers and stages: real packets get the verdict that the fake derives from the semantics."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from tests.contract.conftest import HOST, IDENTITY, OUTSIDE, Pod, Proxy, World, entry
from tproxy_rules.desired import Desired, Entry, Settings, Stage, Table, Tier, Verdict
from tproxy_rules.fake import FakeBackend, Fate, Packet

pytestmark = [pytest.mark.lab, pytest.mark.pairwise]

PASS, ALLOW, STEER, DENY = Verdict.PASS, Verdict.ALLOW, Verdict.STEER, Verdict.DENY
SETTINGS = Settings(nflog_group=78)
TCP = 6
ECHO = {4: (1, 8 << 8), 6: (58, 128 << 8)}
"""Protocol, and type and code, of an echo request."""


def tables(seed: int, family: int) -> Iterator[Table]:
    """Endless. Small enough that every possible position decides some flows."""
    dice = random.Random(seed)
    while True:
        yield Table(tuple(_tier(dice, family) for _ in range(dice.randint(0, 4))))


def _tier(dice: random.Random, family: int) -> Tier:
    stages = tuple(_stage(dice, family) for _ in range(dice.randint(0, 4)))
    return Tier(stages, closed=dice.random() < 0.4)


def _stage(dice: random.Random, family: int) -> Stage:
    return tuple(_entry(dice, family) for _ in range(dice.randint(1, 3)))


def _entry(dice: random.Random, family: int) -> Entry:
    verdict = dice.choice((*Verdict, PASS, ALLOW))
    everyone = (*IDENTITY.values(), OUTSIDE, HOST)
    peers = None if dice.random() < 0.3 else tuple(sorted(dice.sample(everyone, dice.randint(1, 3))))
    protocol, echo = ECHO[family]
    ports = dice.choice((range(65536), range(80, 81), range(8080, 8081), range(80, 8081), range(8000, 9001)))
    types = dice.choice((range(65536), range(echo, echo + 1), range(echo, echo + 256), range(echo - 300, echo + 100)))
    kind = "ports" if verdict is STEER else dice.choice(("all", "types", "ports", "ports"))
    match kind:
        case "all":
            return entry(verdict, protocol=-1, peers=peers)
        case "types":
            return entry(verdict, types, protocol=protocol, peers=peers)
        case _:
            return entry(verdict, ports, peers=peers)


def fated(snapshot: Desired, client: Pod, target: str, family: int, protocol: int, port: int) -> Fate:
    fake = FakeBackend()
    fake.apply(snapshot)
    port_of_client = client.port
    interface, mac = (port_of_client.interface, port_of_client.mac) if port_of_client else ("uplink", "")
    return fake.verdict_of(Packet(client.addresses[family], target, protocol, port, interface, mac))


@pytest.mark.parametrize("seed", range(4))
def test_packets_meet_what_the_law_says(world: World, family: int, seed: int) -> None:
    target = world.server.addresses[family]
    both = tables(seed * 10 + family, family)
    met: set[Fate] = set()
    with Proxy(world.node, family, SETTINGS) as proxy:
        for _ in range(3):
            ingress, egress = next(both), next(both)
            snapshot = world.snapshot(server_ingress=ingress, client_egress=egress)
            world.apply(snapshot)
            for client in (world.client, world.stranger, world.outside):
                for port in (80, 8080, 9000):
                    fate = fated(snapshot, client, target, family, TCP, port)
                    seen = client.connect(target, port).split()[0]
                    words = {"refused": Fate.REFUSE, "hello": Fate.PASS, "proxy": Fate.STEER}
                    assert words.get(seen) is fate, (seen, client.name, port, ingress, egress, proxy.failures)
                    met.add(fate)
                fate = fated(snapshot, client, target, family, *ECHO[family])
                answered = client.ping(target, timeout=0.7 if fate is Fate.PASS else 0.1)
                assert answered == (fate is Fate.PASS), (client.name, ingress, egress)
    assert len(met) > 1, "seeds that tell nothing apart"
