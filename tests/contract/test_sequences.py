"""One backend object through many desired states, each a small change of the previous one, as in a long-lived agent.

After each, the kernel lists what that state alone would produce on a fresh machine: incremental updates leave no
trace of the history, neither in the kernel nor in reports.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from tests.contract.conftest import BACKENDS, entry
from tests.contract.test_backend import SNAPSHOTS, Kernel
from tproxy_rules.backend import QUIET, Backend, Installed
from tproxy_rules.desired import Bridge, Desired, Endpoint, Entry, Frontend, Port, Table, Tier, Verdict, union
from tproxy_rules.digest import digest

pytestmark = pytest.mark.sandbox
ALLOW, STEER, DENY, PASS = Verdict.ALLOW, Verdict.STEER, Verdict.DENY, Verdict.PASS
PEERS = range(100, 112)
BRIDGE = Bridge("cni0", "02:aa:00:00:00:01")


@pytest.fixture(params=BACKENDS)
def make(request: pytest.FixtureRequest, sandbox: None) -> Iterator[Callable[[], Kernel]]:
    made: list[Kernel] = []

    def one() -> Kernel:
        made.append(Kernel(request.param))
        return made[-1]

    yield one
    for kernel in made:
        kernel.close()


class Life:
    """Random desired states, each a few changes from the previous one."""

    def __init__(self, seed: int) -> None:
        self._dice = random.Random(seed)
        self.snapshot = SNAPSHOTS["rich"]
        self._steps = (
            self._identity,
            self._identity,
            self._peers,
            self._peers,
            self._table,
            self._endpoint,
            self._rare,
        )

    def next(self) -> Desired:
        for _ in range(self._dice.randint(1, 4)):
            self.snapshot = self._dice.choice(self._steps)(self.snapshot)
        return self.snapshot

    def _identity(self, one: Desired) -> Desired:
        """An address or a prefix is added, removed or gets another identity."""
        dice, known = self._dice, dict(one.identities)
        prefix = dice.choice(
            (
                f"10.3.0.{dice.randrange(9)}/32",
                f"fd00:3::{dice.randrange(1, 9)}/128",
                f"10.{dice.randrange(4, 8)}.0.0/16",
                f"10.4.{dice.randrange(4)}.0/24",
                f"fd00:{dice.randrange(4, 8)}::/32",
                "0.0.0.0/0",
            )
        )
        if known.pop(prefix, None) is None or dice.random() < 0.5:
            known[prefix] = dice.choice(PEERS)
        return replace(one, identities=tuple(known.items()))

    def _peers(self, one: Desired) -> Desired:
        """One peer is added to or removed from entries everywhere, as by a new pod."""
        peer = self._dice.choice(PEERS)

        def entered(found: Entry) -> Entry:
            if found.any_peer or self._dice.random() < 0.5:
                return found
            peers = set(found.peers) ^ {peer}
            return replace(found, peers=tuple(sorted(peers)))

        def table(found: Table | None) -> Table | None:
            if found is None:
                return None
            tiers = tuple(
                Tier(tuple(tuple(entered(each) for each in stage) for stage in tier.stages), tier.closed)
                for tier in found.tiers
            )
            return replace(found, tiers=tiers)

        endpoints = (replace(each, ingress=table(each.ingress), egress=table(each.egress)) for each in one.endpoints)
        return replace(one, endpoints=tuple(endpoints))

    def _table(self, one: Desired) -> Desired:
        """Another policy for one endpoint, or the same for two."""
        if not one.endpoints:
            return one
        tables = [each.ingress for each in one.endpoints] + [self._any_table(), None]
        endpoints = list(one.endpoints)
        at = self._dice.randrange(len(endpoints))
        ingress, egress = self._dice.choice(tables), self._dice.choice((endpoints[at].egress, self._any_egress(), None))
        endpoints[at] = replace(endpoints[at], ingress=ingress, egress=egress)
        return replace(one, endpoints=tuple(endpoints))

    def _endpoint(self, one: Desired) -> Desired:
        """A pod is added, removed, or changes its interface."""
        number = self._dice.randrange(1, 6)
        rest = tuple(each for each in one.endpoints if each.id != number)
        if len(rest) < len(one.endpoints) and self._dice.random() < 0.6:
            return replace(one, endpoints=rest)
        port = Port(f"veth{number}", f"02:00:00:00:00:{number:02x}", "cni0" if one.bridges else "")
        alike = self._dice.choice([each.ingress for each in rest] or [None])
        fresh = Endpoint(
            number,
            (f"10.1.0.{10 + number}", f"fd00:1::{number}"),
            self._dice.choice((port, None)),
            self._dice.choice((alike, self._any_table())),
            self._dice.choice((self._any_egress(), None)),
        )
        return replace(one, endpoints=(*rest, fresh))

    def _rare(self, one: Desired) -> Desired:
        """Rare changes of the node itself."""
        match self._dice.randrange(4):
            case 0:
                bridges = () if one.bridges else (BRIDGE,)
                return replace(one, bridges=bridges, endpoints=tuple(replace(e, port=None) for e in one.endpoints))
            case 1:
                front = Frontend("10.96.0.7", 6, self._dice.randrange(80, 83), steer=self._dice.random() < 0.5)
                return replace(one, frontends=(front,))
            case 2:
                reset = not one.settings.refuse_with_reset
                return replace(one, settings=replace(one.settings, refuse_with_reset=reset))
            case _:
                return replace(one, host_identity=self._dice.choice((1, *PEERS)))

    def _any_egress(self) -> Table:
        """Log entries of a policy, or of refusals without a policy."""
        if self._dice.random() < 0.7:
            return self._any_table()
        refused = [entry(Verdict.DENY, protocol=each) for each in self._dice.sample((4, 47, 50), 2)]
        return Table((Tier(((*refused, entry(Verdict.DENY, 8472, protocol=17)),), closed=False),), governed=False)

    def _any_table(self) -> Table:
        dice = self._dice
        if dice.random() < 0.5:
            return union((self._entry() for _ in range(dice.randint(0, 5))), closed=dice.random() < 0.8)
        return Table(
            tuple(
                Tier(
                    tuple(tuple(self._entry() for _ in range(dice.randint(1, 3))) for _ in range(dice.randint(0, 3))),
                    closed=dice.random() < 0.5,
                )
                for _ in range(dice.randint(0, 3))
            )
        )

    def _entry(self) -> Entry:
        dice = self._dice
        verdict = dice.choice(tuple(Verdict))
        peers = None if dice.random() < 0.3 else tuple(sorted(dice.sample(PEERS, dice.randint(1, 4))))
        protocol = 6 if verdict is STEER else dice.choice((-1, 1, 6, 6, 17, 47, 58, 132))
        if protocol in (-1, 47):
            return entry(verdict, protocol=protocol, peers=peers)
        first = dice.choice((80, 85, 90, 8 << 8))
        return entry(verdict, range(first, first + dice.choice((1, 1, 6, 20))), protocol=protocol, peers=peers)


@pytest.mark.parametrize("seed", range(4))
def test_small_changes_lead_where_each_snapshot_alone_leads(
    make: Callable[[], Kernel], seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    kernel, life = make(), Life(seed)
    backend = kernel.do(kernel.fresh)
    for step in range(12):
        snapshot = life.next()
        kernel.do(lambda snapshot=snapshot: backend.apply(snapshot))  # type: ignore[misc]
        told = _told(kernel, backend)
        assert told == [Installed(digest(snapshot), intact=True)] * QUIET, f"step {step}"
        assert kernel.read() == told[0], f"step {step}: a fresh process sees the same"
        alone = make()
        alone.apply(snapshot)
        assert kernel.listing() == alone.listing(), f"step {step}"
        before = kernel.handles()
        kernel.do(lambda snapshot=snapshot: backend.apply(snapshot))  # type: ignore[misc]
        assert kernel.handles() == before, f"step {step}: the same again changes nothing"
    assert "replacing the whole table" not in caplog.text, "a difference that the kernel did not take"


def test_a_small_change_leaves_the_rest_alone(make: Callable[[], Kernel]) -> None:
    """With kernel handles: a recreated rule has another handle."""
    kernel = make()
    backend = kernel.do(kernel.fresh)
    old = SNAPSHOTS["rich"]
    kernel.do(lambda: backend.apply(old))
    before = _handles(kernel)
    grown = replace(old, identities=(*old.identities, ("10.3.0.9/32", 7)))
    kernel.do(lambda: backend.apply(grown))
    lost = before - _handles(kernel)
    assert len(lost) <= len(before) / 8, lost


def test_damage_between_two_snapshots_is_not_built_upon(make: Callable[[], Kernel]) -> None:
    kernel = make()
    backend, life = kernel.do(kernel.fresh), Life(99)
    kernel.do(lambda: backend.apply(life.snapshot))
    for command in (
        "nft flush chain inet l7proxy judge" if kernel.name == "nftables" else "iptables -t filter -F L7P-FWD",
        "nft add table inet somebody",
        "nft delete table inet l7proxy" if kernel.name == "nftables" else "ip6tables -t mangle -F L7P-PRE",
    ):
        kernel.namespace.sh(command)
        snapshot = life.next()
        kernel.do(lambda snapshot=snapshot: backend.apply(snapshot))  # type: ignore[misc]
        assert _told(kernel, backend) == [Installed(digest(snapshot), intact=True)] * QUIET
        alone = make()
        alone.namespace.sh("nft add table inet somebody")
        alone.apply(snapshot)
        kernel.namespace.sh("nft add table inet somebody")
        assert kernel.listing() == alone.listing(), command


_THEIRS = {
    "nftables": ("nft add table inet kube", "nft add chain inet kube l7proxy", "nft add rule inet kube l7proxy accept"),
    "iptables": ("iptables -N KUBE", "iptables -A FORWARD -j KUBE", "iptables -A KUBE -p tcp --dport 1 -j ACCEPT"),
}
_OURS = {
    "nftables": "nft flush chain inet l7proxy input",
    "iptables": "iptables -F L7P-IN",
}


def test_what_others_do_is_told_from_what_they_do_to_ours(make: Callable[[], Kernel]) -> None:
    """Updates stay incremental while other programs commit; but a foreign change of our tables is detected."""
    kernel = make()
    backend, old = kernel.do(kernel.fresh), SNAPSHOTS["rich"]
    kernel.do(lambda: backend.apply(old))
    rules = _handles(kernel)
    more = old
    for number, command in enumerate(_THEIRS[kernel.name]):
        kernel.do(lambda: [backend.read() for _ in range(3)])
        kernel.namespace.sh(command)
        more = replace(old, identities=(*old.identities, (f"10.3.1.{number}/32", 99)))
        kernel.do(lambda more=more: backend.apply(more))  # type: ignore[misc]
        assert kernel.do(backend.read) == Installed(digest(more), intact=True)
    assert len(rules - _handles(kernel)) <= len(rules) / 8, "replaced whole"
    kernel.namespace.sh("nft add table inet kube2", _OURS[kernel.name], "nft add table inet kube3")
    found = kernel.do(backend.read)
    assert found is not None and not found.intact
    kernel.do(lambda: backend.apply(more))
    assert _told(kernel, backend) == [Installed(digest(more), intact=True)] * QUIET
    alone = make()
    alone.namespace.sh(*_THEIRS[kernel.name], "nft add table inet kube2", "nft add table inet kube3")
    alone.apply(more)
    assert kernel.listing() == alone.listing()


def _told(kernel: Kernel, backend: Backend) -> list[Installed | None]:
    """Waits until the state is stable."""
    return kernel.do(lambda: [backend.read() for _ in range(QUIET)])


def _handles(kernel: Kernel) -> set[str]:
    return {line for line in kernel.handles().splitlines() if " handle " in line and "{" not in line}


def test_a_difference_is_recognised_by_the_next_process_once_it_was_quiet(make: Callable[[], Kernel]) -> None:
    """Until then it reports that it cannot know, and writes the whole state again."""
    kernel = make()
    backend, old = kernel.do(kernel.fresh), SNAPSHOTS["rich"]
    grown = replace(old, identities=(*old.identities, ("10.3.0.9/32", 7)))
    kernel.do(lambda: backend.apply(old))
    kernel.do(lambda: backend.apply(grown))
    assert kernel.do(backend.read) == Installed(digest(grown), intact=True)
    assert kernel.read() == Installed(digest(grown), intact=False)
    kernel.apply(grown)
    assert kernel.read() == Installed(digest(grown), intact=True)
